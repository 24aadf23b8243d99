//! Questions of anybody, answered of a node without Services.

use axum::extract::Query;
use axum::http::Uri;

use super::{HistoryQuery, TraceQuery};
use crate::commands::trace;
use crate::facts::{HistoryPage, NodeFacts, ServicePage, ServicesQuery, Snapshot};
use crate::state::convert::sloppy::parse_source;

/// Each is refused, or has an answer.
///
/// # Panics
/// An answer says more than was asked for.
pub fn asked(query: &str) {
    let Ok(uri) = Uri::builder().path_and_query(format!("/?{query}")).build() else { return };
    let snapshot = Snapshot::new(NodeFacts::default());
    if let Ok(Query(query)) = Query::<ServicesQuery>::try_from_uri(&uri)
        && let Ok(page) = ServicePage::of(&snapshot, &query)
    {
        assert_eq!((page.total, page.found, page.continue_at), (0, 0, None));
    }
    if let Ok(Query(query)) = Query::<HistoryQuery>::try_from_uri(&uri) {
        assert!(HistoryPage::of(&snapshot, query.since, query.limit).items.is_empty());
    }
    if let Ok(Query(TraceQuery { from, to, iif })) = Query::<TraceQuery>::try_from_uri(&uri)
        && let Some(source) = parse_source(&from)
        && let Ok(flow) = trace::flow(source, &to, iif)
    {
        let shown = format!("{flow:?}");
        assert!(!shown.chars().any(char::is_control), "{shown}");
    }
}
