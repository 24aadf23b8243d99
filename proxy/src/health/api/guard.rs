//! What a browser must not be talked into: reading the API from another site, or taking an answer for something else.

use std::net::IpAddr;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answers::ErrorFacts;

const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::X_FRAME_OPTIONS, "DENY"),
];

/// Refuses a `Host` that a site of somebody else may have in its own domain, and adds the headers.
pub(in crate::health) async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).map(|host| host.to_str().unwrap_or_default());
    let mut response = if host.is_none_or(allows_host) {
        next.run(request).await
    } else {
        let error = "this is answered only by IP address or as localhost: another name may be a web site's that has your \
             browser ask here (DNS rebinding)";
        (StatusCode::MISDIRECTED_REQUEST, Json(ErrorFacts { error: error.to_owned() })).into_response()
    };
    for (name, value) in HEADERS {
        // What answers may say something stricter of itself.
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Whether a `Host` header is an IP address or `localhost`, which no web site can make its own.
pub fn allows_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(name);
    // Without a user in front of it.
    !host.contains('@') && (bare.parse::<IpAddr>().is_ok() || name.eq_ignore_ascii_case("localhost"))
}
