//! `/debug`, which is there with `enableProfiling`: the verbosity of the log can be changed, and profiles are refused with a word
//! on how to get one.

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;

use super::routes::{NOSNIFF, Serving, plain};
use crate::log;
use crate::settings::{LogSettings, filter_of_verbosity};

const NO_PROFILES: &str = "This program has no profiler: pprof is of the Go runtime, which is not here.\n\
    On the node, `perf record --pid PID --call-graph dwarf` makes a CPU profile of it, and `kubeferry status` and /metrics \
    tell times and sizes.\n";
/// More than any number has.
const LONGEST: usize = 64;

/// Adds the routes.
pub(super) fn add(router: Router<Serving>) -> Router<Serving> {
    router
        .route("/debug/pprof", any(profile))
        .route("/debug/pprof/", any(profile))
        .route("/debug/pprof/{*profile}", any(profile))
        .route("/debug/flags/v", any(verbosity))
}

async fn profile() -> Response {
    (StatusCode::NOT_IMPLEMENTED, plain(NO_PROFILES)).into_response()
}

/// kube-proxy's: PUT with a number sets the verbosity of the log, until the process ends.
async fn verbosity(request: Request) -> Response {
    if request.method() != Method::PUT {
        return text(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n".into());
    }
    let body: Bytes = match to_bytes(request.into_body(), LONGEST).await {
        Ok(body) => body,
        Err(_) => return text(StatusCode::BAD_REQUEST, "error reading request body: it is too long\n".into()),
    };
    let given = String::from_utf8_lossy(&body).trim().to_owned();
    match given.parse::<i64>() {
        Ok(verbosity) => {
            log::change(&LogSettings { filter: filter_of_verbosity(verbosity).to_owned(), ..LogSettings::default() });
            tracing::info!(verbosity, "log verbosity changed at /debug/flags/v");
            text(StatusCode::OK, format!("successfully set klog.logging.verbosity to {given}"))
        }
        Err(_) => text(StatusCode::BAD_REQUEST, format!("failed set klog.logging.verbosity {given}: not a number\n")),
    }
}

fn text(code: StatusCode, text: String) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    (code, [content_type, NOSNIFF], text).into_response()
}
