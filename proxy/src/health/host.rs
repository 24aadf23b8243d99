//! Whom a server on the loopback answers. A page in somebody's browser can have a name of its own lead to 127.0.0.1 and read
//! what is served there (DNS rebinding); then that name is in the request's `Host`.

use std::net::IpAddr;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::api::ErrorFacts;

/// Lets requests pass that were sent to an address or to `localhost`.
pub(super) async fn local_only(request: Request, next: Next) -> Response {
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    if is_local(request.headers()) || (reads && ANYBODYS.contains(&request.uri().path())) {
        return next.run(request).await;
    }
    if request.uri().path().starts_with("/api/") {
        return (StatusCode::MISDIRECTED_REQUEST, Json(ErrorFacts { error: WHY.to_owned() })).into_response();
    }
    misdirected()
}

const WHY: &str = "this address answers to 127.0.0.1, [::1] and localhost alone, not to another name (Host)";

/// What kube-proxy tells under any name, too, such as that of a Service or of a proxy before it: numbers and words that say nothing of
/// the cluster's objects. `/metrics` looks itself whether that holds of it.
const ANYBODYS: [&str; 6] = ["/healthz", "/healthz/ping", "/livez", "/metrics", "/metrics/slis", "/proxyMode"];

pub(super) fn misdirected() -> Response {
    (StatusCode::MISDIRECTED_REQUEST, format!("{WHY}\n")).into_response()
}

pub(super) fn is_local(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    hosts.all(|host| host.to_str().is_ok_and(is_local_name))
}

fn is_local_name(host: &str) -> bool {
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    let name = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((ip, port)) if port.is_empty() || port.strip_prefix(':').is_some_and(is_port) => ip,
        Some(_) => return false,
        None => host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_are_refused() {
        for fine in
            ["localhost", "LocalHost:10249", "127.0.0.1", "127.0.0.1:10249", "[::1]", "[::1]:10249", "192.0.2.1:1"]
        {
            assert!(is_local_name(fine), "{fine}");
        }
        for bad in [
            "",
            "evil.example",
            "evil.example:10249",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "[evil]:1",
            "[::1]x",
        ] {
            assert!(!is_local_name(bad), "{bad}");
        }
        assert!(is_local(&HeaderMap::new()), "HTTP/1.0 has none");
    }
}
