//! What the servers answer.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use jiff::Timestamp;

use super::state::Report;
use super::{Health, api, debugging, large, page, zpages};
use crate::facts::Facts;
use crate::metrics::{Format, Metrics};

/// What the servers tell.
#[derive(Clone, Debug)]
pub struct Serving {
    /// For `/healthz` and `/livez`.
    pub health: Health,
    /// For `/metrics`; answers of `/healthz` and `/livez` are counted in it.
    pub metrics: Arc<Metrics>,
    /// For `/status` and `/api/v1/`; and has the counters of `/metrics` be those of now.
    pub facts: Facts,
    /// For `/proxyMode`: `nftables`.
    pub mode: &'static str,
    /// For `/flagz`: every flag with its value.
    pub flags: Arc<BTreeMap<String, String>>,
    /// For `/configz`: the settings in force, as they may change while this serves.
    pub config: Arc<RwLock<serde_json::Value>>,
    /// Whether `/metrics` is answered under a local name alone: it names Services (`--service-metrics`), at a loopback address.
    pub guards_metrics: bool,
    /// For `/statusz`: when the process started.
    pub started: Timestamp,
    /// Whether `/debug` is there (`enableProfiling`).
    pub profiling: bool,
}

/// Paths at the metrics address, as `/statusz` lists them.
pub(super) const PATHS: &[&str] =
    &["/api/v1", "/configz", "/flagz", "/healthz", "/metrics", "/proxyMode", "/status", "/statusz"];

/// `/healthz` and `/livez` with kube-proxy's meaning.
pub fn health_routes(serving: Serving) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).with_state(serving)
}

/// `/metrics`, `/status` and what kube-proxy has beside it: `/healthz` only says that this server answers.
pub fn metrics_routes(serving: Serving) -> Router {
    let router = Router::new()
        .route("/metrics/slis", any(slis))
        .route("/proxyMode", any(proxy_mode))
        .route("/healthz", any(ping))
        .route("/healthz/ping", any(ping))
        .route("/configz", any(configz))
        .route("/flagz", any(zpages::flagz))
        .route("/statusz", any(zpages::statusz));
    let router = if serving.profiling { debugging::add(router) } else { router };
    router
        .with_state(serving.clone())
        .merge(large::routes(serving.clone()))
        .merge(api::routes(serving))
        .merge(page::routes())
}

async fn healthz(State(serving): State<Serving>) -> Response {
    let (good, body) = serving.health.report().healthz();
    serving.metrics.healthz(good);
    answer(good, &body)
}

async fn livez(State(serving): State<Serving>) -> Response {
    let (good, body) = serving.health.report().livez();
    serving.metrics.livez(good);
    answer(good, &body)
}

fn answer(good: bool, body: &Report) -> Response {
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, [NOSNIFF], Json(body)).into_response()
}

/// Has a browser take the content for what it is said to be.
pub(super) const NOSNIFF: (header::HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// Plain text as kube-proxy answers it.
pub(super) fn plain(text: impl Into<String>) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    ([content_type, NOSNIFF], text.into()).into_response()
}

/// This server answers; counted at `/metrics/slis`. `?verbose` names the one check.
async fn ping(State(serving): State<Serving>, request: Request) -> Response {
    serving.metrics.slis().ping();
    let query = request.uri().query().unwrap_or_default();
    let verbose = query.split('&').any(|part| part.split('=').next() == Some("verbose"));
    match verbose && request.uri().path() == "/healthz" {
        true => plain("[+]ping ok\nhealthz check passed\n"),
        false => plain("ok"),
    }
}

async fn proxy_mode(State(serving): State<Serving>) -> Response {
    plain(serving.mode)
}

pub(super) fn format(headers: &HeaderMap) -> Format {
    Format::accepted(headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default())
}

async fn slis(State(serving): State<Serving>, method: Method, headers: HeaderMap) -> Response {
    let slis = serving.metrics.slis();
    if method == Method::DELETE {
        slis.reset();
        return plain("metrics reset\n");
    }
    let format = format(&headers);
    ([(header::CONTENT_TYPE, format.content_type())], slis.text(format)).into_response()
}

async fn configz(State(serving): State<Serving>) -> Response {
    let config = serving.config.read().unwrap_or_else(PoisonError::into_inner).clone();
    ([NOSNIFF], Json(config)).into_response()
}
