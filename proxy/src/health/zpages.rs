//! `/flagz` and `/statusz` in the text form that Kubernetes components have (KEP-4828, KEP-4827).

use std::fmt::Write;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::routes::{NOSNIFF, PATHS, Serving};

const COMPONENT: &str = "kubeferry";
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
    guarantees and is for debugging purposes only.";
/// The Kubernetes whose kube-proxy we follow.
const EMULATED: &str = "1.36";

/// Every flag of `run` with its value.
pub(super) async fn flagz(State(serving): State<Serving>, headers: HeaderMap) -> Response {
    let mut text = format!("\n{COMPONENT} flags\n{WARNING}\n\n");
    for (name, value) in serving.flags.iter() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}={value}");
    }
    answer(&headers, text)
}

/// Since when it runs, what it is, and what else can be asked.
pub(super) async fn statusz(State(serving): State<Serving>, headers: HeaderMap) -> Response {
    let mut paths = PATHS.to_vec();
    if serving.profiling {
        paths.push("/debug");
        paths.sort_unstable();
    }
    let text = status(serving.started, Timestamp::now(), &paths);
    answer(&headers, text)
}

fn status(started: Timestamp, now: Timestamp, paths: &[&str]) -> String {
    let up = (now.as_second() - started.as_second()).max(0);
    format!(
        "\n{COMPONENT} statusz\n{WARNING}\n\nStarted: {}\nUp: {} hr {:02} min {:02} sec\nBinary version: {}\n\
         Emulation version: {EMULATED}\nPaths: {}\n",
        started.strftime("%a %b %e %H:%M:%S UTC %Y"),
        up / 3600,
        up / 60 % 60,
        up % 60,
        env!("CARGO_PKG_VERSION"),
        paths.join(" "),
    )
}

fn answer(headers: &HeaderMap, text: String) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
    if accepts_text(accept) {
        return ([content_type], text).into_response();
    }
    let refusal = "media type not acceptable, must be: text/plain\n";
    (StatusCode::NOT_ACCEPTABLE, [content_type, NOSNIFF], refusal).into_response()
}

/// Whether an `Accept` header takes plain text; with a parameter only `charset=utf-8`, as in Kubernetes.
fn accepts_text(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let parameters: Vec<&str> = parts.filter(|part| !part.starts_with("q=")).collect();
        matches!(kind, "text/plain" | "text/*" | "*/*")
            && match parameters[..] {
                [] => true,
                [one] => one.eq_ignore_ascii_case("charset=utf-8"),
                _ => false,
            }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_has_the_form_of_kubernetes_components() {
        let started = Timestamp::from_second(1_725_603_591).unwrap();
        let now = Timestamp::from_second(1_725_603_591 + 3 * 3600 + 4 * 60 + 5).unwrap();
        assert_eq!(
            status(started, now, &["/healthz", "/metrics"]),
            format!(
                "\nkubeferry statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                 compatibility guarantees and is for debugging purposes only.\n\nStarted: Fri Sep  6 06:19:51 UTC 2024\n\
                 Up: 3 hr 04 min 05 sec\nBinary version: {}\nEmulation version: 1.36\nPaths: /healthz /metrics\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn only_plain_text_is_told() {
        for yes in ["*/*", "text/plain", "text/*;q=0.5", "application/json, text/plain; charset=UTF-8"] {
            assert!(accepts_text(yes), "{yes}");
        }
        for no in ["application/json", "text/html", "text/plain;charset=latin1", "some header", ""] {
            assert!(!accepts_text(no), "{no}");
        }
    }
}
