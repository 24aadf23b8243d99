//! `/api/v1/`: the facts as JSON, read-only. What is told is in [`facts`](crate::facts); here is how it is asked for.

mod answers;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod guard;
mod openapi;
#[cfg(test)]
mod tests;
mod turns;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::{any, get};
use axum::{Router, middleware};
use serde::Deserialize;

use super::routes::Serving;
use crate::commands::trace;
use crate::facts::{HistoryPage, ServicePage, ServicesQuery, Snapshot, TraceFacts};
use crate::state::convert::sloppy::parse_source;
use crate::state::objects::ObjectName;

pub(super) use answers::ErrorFacts;
use answers::{Answer, Answers, Wrong};
pub use guard::allows_host;
pub(super) use guard::guard;
pub use openapi::document;
use turns::Turns;

/// Of one CPU, making answers of a snapshot (searching, sorting, writing JSON) takes no more than one part in so many, but for
/// so much at once.
const MAKING: (u32, Duration) = (4, Duration::from_millis(500));
/// The same of the run loop, which has changes to bring into force.
const ASKING: (u32, Duration) = (10, Duration::from_millis(200));
/// Syncs of an answer, unless told otherwise.
const SYNCS: usize = 50;

/// What the routes share.
#[derive(Clone, Debug)]
struct Api {
    serving: Serving,
    answers: Arc<Answers>,
    /// For what is made of a snapshot.
    making: Turns,
    /// For what the run loop has to be asked for.
    asking: Turns,
    openapi: Arc<str>,
}

/// The routes, to be served at the metrics address. Every method but GET and HEAD is answered with 405.
pub fn routes(serving: Serving) -> Router {
    let api = Api {
        serving,
        answers: Arc::default(),
        making: Turns::new(MAKING.0, MAKING.1),
        asking: Turns::new(ASKING.0, ASKING.1),
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
        .method_not_allowed_fallback(async || Response::from(Wrong::Method))
        .route("/api/v1/", any(nothing_there))
        .route("/api/v1/{*path}", any(nothing_there))
        .layer(middleware::from_fn(guard))
        .with_state(api)
}

async fn nothing_there(uri: Uri) -> Response {
    Wrong::NotFound(format!("there is no {}: /api/v1/openapi.json says what there is", uri.path())).into()
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
    /// An answer that is made of the snapshot alone.
    async fn of_snapshot<T: serde::Serialize + 'static>(
        &self,
        uri: &Uri,
        headers: &HeaderMap,
        make: impl FnOnce(&Snapshot) -> Result<T, Wrong> + Send + 'static,
    ) -> Response {
        let work = async move |snapshot: Arc<Snapshot>| {
            let start = Instant::now();
            let making = move || Answer::json(&make(&snapshot)?);
            let made = tokio::task::spawn_blocking(making).await.unwrap_or(Err(Wrong::Broken));
            (made, start.elapsed())
        };
        answers::respond(self.answer(&self.making, uri, work).await, headers)
    }

    /// The newest snapshot, and the answer to this question if it was made of that already.
    async fn known(&self, key: &str) -> Result<(Arc<Snapshot>, Option<Answer>), Wrong> {
        let snapshot = self.serving.facts.snapshot().await.ok_or(Wrong::Busy)?;
        let answer = self.answers.known(&snapshot, key);
        Ok((snapshot, answer))
    }

    /// The answer to this question of the newest snapshot's time: one that was made, or one that `work` makes when it is its turn.
    /// It says how long that took.
    async fn answer<F>(&self, turns: &Turns, uri: &Uri, work: impl FnOnce(Arc<Snapshot>) -> F) -> Result<Answer, Wrong>
    where
        F: Future<Output = (Result<Answer, Wrong>, Duration)> + Send + 'static,
    {
        let key = uri.path_and_query().map_or("", |asked| asked.as_str()).to_owned();
        if let Some(answer) = self.known(&key).await?.1 {
            return Ok(answer);
        }
        // Nobody keeps a snapshot while they wait: in a large cluster it is megabytes, and there may be ten a second.
        let turn = turns.next().await?;
        // Whose turn it was before may have asked the same.
        if let Some(answer) = self.known(&key).await?.1 {
            return Ok(answer);
        }
        turn.may_begin().await?;
        let snapshot = self.known(&key).await?.0;
        let (answers, work) = (self.answers.clone(), work(snapshot.clone()));
        // A task of its own: whoever asks and goes must not have another at work beside it.
        let made = tokio::spawn(async move {
            let (made, time) = work.await;
            if let Ok(answer) = &made {
                answers.keep(&snapshot, key, answer);
            }
            turn.took(time);
            made
        });
        made.await.unwrap_or(Err(Wrong::Broken))
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
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    asked: Asked<Nothing>,
) -> Response {
    let answer = async {
        let Path((namespace, name)) = path.map_err(|error| Wrong::Asked(error.body_text()))?;
        asked?;
        let facts = api.serving.facts.clone();
        let work = async move |_| {
            let Some(told) = facts.service(ObjectName::new(&namespace, &name)).await else {
                return (Err(Wrong::Busy), Duration::ZERO);
            };
            let missing = || Wrong::NotFound(format!("no Service {namespace}/{name} is served"));
            (told.what.ok_or_else(missing).and_then(|facts| Answer::json(&facts)), told.took)
        };
        api.answer(&api.asking, &uri, work).await
    };
    answers::respond(answer.await, &headers)
}

async fn trace_packet(State(api): State<Api>, uri: Uri, headers: HeaderMap, asked: Asked<TraceQuery>) -> Response {
    let answer = async {
        let Query(TraceQuery { from, to, iif }) = asked?;
        let source = parse_source(&from)
            .ok_or_else(|| Wrong::Asked(format!("from={from:?} is no source: give IP or IP:PORT")))?;
        let flow = trace::flow(source, &to, iif).map_err(|error| Wrong::Asked(format!("to: {error:#}")))?;
        let facts = api.serving.facts.clone();
        let work = async move |_| match facts.trace(flow.clone()).await {
            Some(told) => (Answer::json(&TraceFacts::with_steps(&flow, &told.what)), told.took),
            None => (Err(Wrong::Busy), Duration::ZERO),
        };
        api.answer(&api.asking, &uri, work).await
    };
    answers::respond(answer.await, &headers)
}

async fn openapi_document(State(api): State<Api>, headers: HeaderMap) -> Response {
    answers::Answer::text(api.openapi.to_string()).to(&headers)
}
