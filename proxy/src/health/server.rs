//! The HTTP servers. The only IO of this module is the sockets.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::Health;
use super::state::Report;
use crate::metrics::{Format, Metrics};
use crate::settings::Settings;
use crate::status::StatusHandle;

/// How long to wait before an address that could not be bound is tried again; kube-proxy's.
const RETRY: Duration = Duration::from_secs(5);

/// What the servers tell.
#[derive(Clone, Debug)]
pub struct Serving {
    /// For `/healthz` and `/livez`.
    pub health: Health,
    /// For `/metrics`; answers of `/healthz` and `/livez` are counted in it.
    pub metrics: Arc<Metrics>,
    /// For `/status`.
    pub status: StatusHandle,
    /// For `/proxyMode`: `nftables`.
    pub mode: &'static str,
}

/// Why serving ended; only where `bind_hard_fail` is set.
#[derive(thiserror::Error, Debug)]
pub enum ServeError {
    /// An address cannot be bound.
    #[error("cannot serve {what} at {address}: {source}; free the address, or choose another with {flag}")]
    Bind {
        /// What was to be served there.
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

/// One server: what it is called in messages, and the flag that sets its address.
#[derive(Clone, Copy, Debug)]
struct Server {
    what: &'static str,
    flag: &'static str,
    hard_fail: bool,
}

/// Serves at the addresses of the settings until the future is dropped. An address that cannot be bound is tried again every
/// 5 s, with a warning each time.
///
/// # Errors
/// [`ServeError`], at once, where `bind_hard_fail` is set.
pub async fn serve(settings: &Settings, serving: Serving) -> Result<Infallible, ServeError> {
    let hard_fail = settings.bind_hard_fail;
    let health = Server { what: "/healthz", flag: "--healthz-bind-address", hard_fail };
    let metrics = Server { what: "/metrics", flag: "--metrics-bind-address", hard_fail };
    let (ended, _) = tokio::try_join!(
        health.serve(settings.healthz, health_routes(serving.clone())),
        metrics.serve(settings.metrics, metrics_routes(serving)),
    )?;
    Ok(ended)
}

impl Server {
    async fn serve(self, address: Option<SocketAddr>, routes: Router) -> Result<Infallible, ServeError> {
        let Some(address) = address else { return std::future::pending().await };
        loop {
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    info!(%address, "serving {}", self.what);
                    if let Err(error) = axum::serve(listener, routes.clone()).await {
                        warn!(%address, %error, "serving {} ended: starting again", self.what);
                    }
                }
                Err(source) if self.hard_fail => {
                    return Err(ServeError::Bind { what: self.what, address, flag: self.flag, source });
                }
                Err(error) => {
                    warn!(%address, %error, "cannot serve {}: trying again in 5s; {} sets the address", self.what, self.flag);
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// `/healthz` and `/livez` with kube-proxy's meaning.
pub fn health_routes(serving: Serving) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).with_state(serving)
}

/// `/metrics`, `/status`, `/proxyMode`, and a `/healthz` that only says that this server answers, as kube-proxy's does.
pub fn metrics_routes(serving: Serving) -> Router {
    Router::new()
        .route("/metrics", any(metrics))
        .route("/status", any(status))
        .route("/proxyMode", any(proxy_mode))
        .route("/healthz", any(|| async { plain("ok") }))
        .with_state(serving)
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

const NOSNIFF: (header::HeaderName, HeaderValue) =
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

fn plain(text: &'static str) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    ([content_type, NOSNIFF], text).into_response()
}

async fn proxy_mode(State(serving): State<Serving>) -> Response {
    plain(serving.mode)
}

async fn metrics(State(serving): State<Serving>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    ([(header::CONTENT_TYPE, format.content_type())], serving.metrics.text(format)).into_response()
}

async fn status(State(serving): State<Serving>) -> Response {
    match serving.status.ask().await {
        Some(mut status) => {
            let report = serving.health.report();
            status.healthy = report.healthy;
            status.node_eligible = report.node_eligible.unwrap_or(false);
            ([NOSNIFF], Json(status)).into_response()
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "the proxy is busy or ends: it did not tell its status in time\n")
            .into_response(),
    }
}

#[cfg(test)]
mod tests;
