//! `/api/v1/`: the facts as JSON, read-only. What is told is in [`facts`](crate::facts); here is how it is asked for.

mod answers;
mod guard;
mod openapi;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::get;
use axum::{Router, middleware};
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::routes::Serving;
use crate::commands::trace;
use crate::facts::{HistoryPage, ServicePage, ServicesQuery, TraceFacts};
use crate::state::convert::sloppy::parse_source;
use crate::state::objects::ObjectName;

use answers::{Answers, Wrong};
pub use guard::allows_host;
pub(super) use guard::guard;
pub use openapi::document;

/// How many answers are made at one time; more wait.
const AT_ONCE: usize = 4;
/// How long they wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// Syncs of an answer, unless told otherwise.
const SYNCS: usize = 50;

/// What the routes share.
#[derive(Clone, Debug)]
struct Api {
    serving: Serving,
    answers: Arc<Answers>,
    at_once: Arc<Semaphore>,
    openapi: Arc<str>,
}

/// The routes, to be served at the metrics address. Every method but GET and HEAD is answered with 405.
pub fn routes(serving: Serving) -> Router {
    let api = Api {
        serving,
        answers: Arc::default(),
        at_once: Arc::new(Semaphore::new(AT_ONCE)),
        openapi: document().to_string().into(),
    };
    Router::new()
        .route("/api/v1/node", get(node))
        .route("/api/v1/services", get(services))
        .route("/api/v1/services/{namespace}/{name}", get(service))
        .route("/api/v1/history", get(history))
        .route("/api/v1/ignored", get(ignored))
        .route("/api/v1/trace", get(trace_packet))
        .route("/api/v1/openapi.json", get(openapi_document))
        .layer(middleware::from_fn(guard))
        .with_state(api)
}

type Asked<T> = Result<Query<T>, QueryRejection>;

/// Nothing may be asked with it.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// What of the history is wanted.
#[derive(Deserialize, Debug)]
#[serde(default, deny_unknown_fields)]
struct HistoryQuery {
    since: u64,
    limit: usize,
}

impl Default for HistoryQuery {
    fn default() -> Self {
        Self { since: 0, limit: SYNCS }
    }
}

/// Which packet is meant.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct TraceQuery {
    from: String,
    to: String,
    iif: Option<String>,
}

impl Api {
    /// Waits for a place among those that are answered at one time.
    async fn place(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Wrong> {
        match tokio::time::timeout(PATIENCE, self.at_once.clone().acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Wrong::Busy),
        }
    }

    /// An answer that is made of the snapshot alone.
    async fn of_snapshot<T: serde::Serialize + 'static>(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        make: impl FnOnce(&crate::facts::Snapshot) -> Result<T, Wrong> + Send + 'static,
    ) -> Response {
        let snapshot = match self.serving.facts.snapshot().await {
            Some(snapshot) => snapshot,
            None => return Wrong::Busy.into(),
        };
        let key = uri.path_and_query().map_or("", |asked| asked.as_str());
        if let Some(answer) = self.answers.known(&snapshot, key) {
            return answer.to(headers);
        }
        let place = match self.place().await {
            Ok(place) => place,
            Err(wrong) => return wrong.into(),
        };
        let (answers, key) = (self.answers.clone(), key.to_owned());
        let made = tokio::task::spawn_blocking(move || {
            let _place = place;
            let answer = answers::Answer::json(&make(&snapshot)?)?;
            answers.keep(&snapshot, key, &answer);
            Ok::<_, Wrong>(answer)
        });
        match made.await {
            Ok(Ok(answer)) => answer.to(headers),
            Ok(Err(wrong)) => Response::from(wrong),
            Err(_) => Wrong::Broken.into(),
        }
    }
}

async fn node(State(api): State<Api>, uri: Uri, headers: HeaderMap, asked: Asked<Nothing>) -> Response {
    if let Err(wrong) = asked {
        return Wrong::from(wrong).into();
    }
    let report = api.serving.health.report();
    let answer = api.of_snapshot(&uri, &headers, move |snapshot| {
        let mut node = snapshot.node.clone();
        node.healthy = report.healthy;
        node.node_eligible = report.node_eligible.unwrap_or(false);
        Ok(node.with_problem())
    });
    answer.await
}

async fn services(State(api): State<Api>, uri: Uri, headers: HeaderMap, asked: Asked<ServicesQuery>) -> Response {
    match asked {
        Ok(Query(query)) => {
            let page = move |snapshot: &_| Ok(ServicePage::of(snapshot, &query)?);
            api.of_snapshot(&uri, &headers, page).await
        }
        Err(wrong) => Wrong::from(wrong).into(),
    }
}

async fn history(State(api): State<Api>, uri: Uri, headers: HeaderMap, asked: Asked<HistoryQuery>) -> Response {
    match asked {
        Ok(Query(query)) => {
            let page = move |snapshot: &_| Ok(HistoryPage::of(snapshot, query.since, query.limit));
            api.of_snapshot(&uri, &headers, page).await
        }
        Err(wrong) => Wrong::from(wrong).into(),
    }
}

async fn ignored(State(api): State<Api>, uri: Uri, headers: HeaderMap, asked: Asked<Nothing>) -> Response {
    match asked {
        Ok(_) => api.of_snapshot(&uri, &headers, |snapshot| Ok(snapshot.ignored.clone())).await,
        Err(wrong) => Wrong::from(wrong).into(),
    }
}

async fn service(
    State(api): State<Api>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
    asked: Asked<Nothing>,
) -> Response {
    let answer = async {
        asked?;
        let _place = api.place().await?;
        let found = api.serving.facts.service(ObjectName::new(&namespace, &name)).await.ok_or(Wrong::Busy)?;
        let facts = found.ok_or_else(|| Wrong::NotFound(format!("no Service {namespace}/{name} is served")))?;
        answers::Answer::json(&facts)
    };
    answers::respond(answer.await, &headers)
}

async fn trace_packet(State(api): State<Api>, headers: HeaderMap, asked: Asked<TraceQuery>) -> Response {
    let answer = async {
        let Query(TraceQuery { from, to, iif }) = asked?;
        let source = parse_source(&from)
            .ok_or_else(|| Wrong::Asked(format!("from={from:?} is no source: give IP or IP:PORT")))?;
        let flow = trace::flow(source, &to, iif).map_err(|error| Wrong::Asked(format!("to: {error:#}")))?;
        let _place = api.place().await?;
        let trace = api.serving.facts.trace(flow.clone()).await.ok_or(Wrong::Busy)?;
        answers::Answer::json(&TraceFacts::with_steps(&flow, &trace))
    };
    answers::respond(answer.await, &headers)
}

async fn openapi_document(State(api): State<Api>, headers: HeaderMap) -> Response {
    answers::Answer::text(api.openapi.to_string()).to(&headers)
}
