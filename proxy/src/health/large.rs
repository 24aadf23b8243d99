//! `/metrics` and `/status`: megabytes in a large cluster, shared by all who ask.

use std::sync::Weak;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::host::{is_local, misdirected};
use super::routes::{NOSNIFF, Serving, format};
use super::shared::{Full, Shared};
use crate::facts::Snapshot;
use crate::metrics::Format;
use crate::status::Status;

#[derive(Clone, Debug)]
struct Large {
    serving: Serving,
    prometheus: Shared<()>,
    open_metrics: Shared<()>,
    status: Shared<Told>,
}

/// What `/status` tells: of which snapshot, and whether the proxy is healthy and the node may get new traffic.
#[derive(Debug)]
struct Told {
    of: Weak<Snapshot>,
    healthy: bool,
    eligible: bool,
}

impl PartialEq for Told {
    fn eq(&self, other: &Self) -> bool {
        self.of.ptr_eq(&other.of) && (self.healthy, self.eligible) == (other.healthy, other.eligible)
    }
}

/// The routes, to be served at the metrics address.
pub(super) fn routes(serving: Serving) -> Router {
    let large =
        Large { serving, prometheus: Shared::default(), open_metrics: Shared::default(), status: Shared::default() };
    Router::new().route("/metrics", any(metrics)).route("/status", any(status)).with_state(large)
}

async fn metrics(State(large): State<Large>, headers: HeaderMap) -> Response {
    if large.serving.guards_metrics && !is_local(&headers) {
        return misdirected();
    }
    large.serving.facts.count().await;
    let format = format(&headers);
    let shared = match format {
        Format::Prometheus => &large.prometheus,
        Format::OpenMetrics => &large.open_metrics,
    };
    let metrics = large.serving.metrics.clone();
    let body = shared.get((), move || metrics.text(format).into_bytes()).await;
    answer(body, format.content_type())
}

async fn status(State(large): State<Large>) -> Response {
    let Some(snapshot) = large.serving.facts.snapshot().await else {
        return busy("the proxy is busy or ends: it did not tell its status in time\n");
    };
    let report = large.serving.health.report();
    let (healthy, node_eligible) = (report.healthy, report.node_eligible.unwrap_or(false));
    let key = Told { of: std::sync::Arc::downgrade(&snapshot), healthy, eligible: node_eligible };
    let make = move || {
        // It is made of text and numbers.
        serde_json::to_vec(&Status { healthy, node_eligible, ..Status::from(&*snapshot) }).unwrap_or_default()
    };
    answer(large.status.get(key, make).await, "application/json")
}

fn answer(body: Result<Bytes, Full>, content_type: &'static str) -> Response {
    match body {
        Ok(body) => ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type)), NOSNIFF], body).into_response(),
        Err(Full) => busy("too many large answers are being read: ask again\n"),
    }
}

fn busy(why: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, HeaderValue::from_static("1"))], why).into_response()
}
