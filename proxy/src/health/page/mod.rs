//! The page for people: `/` at the metrics address, and what it is made of. It is part of the binary, shows what `/api/v1/` tells, and
//! loads nothing from anywhere else.

use axum::Router;
use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::api;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const ICON: &str = "image/svg+xml";

/// Scripts and styles of this page and questions to where it came from; nothing else, and no markup that a name could bring in.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Each file below `/assets/`: name, content type, content.
const ASSETS: [(&str, &str, &str); 15] = [
    ("api.js", SCRIPT, include_str!("api.js")),
    ("app.js", SCRIPT, include_str!("app.js")),
    ("dom.js", SCRIPT, include_str!("dom.js")),
    ("history.js", SCRIPT, include_str!("history.js")),
    ("icon.svg", ICON, include_str!("icon.svg")),
    ("ignored.js", SCRIPT, include_str!("ignored.js")),
    ("kept.js", SCRIPT, include_str!("kept.js")),
    ("port.js", SCRIPT, include_str!("port.js")),
    ("recent.js", SCRIPT, include_str!("recent.js")),
    ("renew.js", SCRIPT, include_str!("renew.js")),
    ("rooms.js", SCRIPT, include_str!("rooms.js")),
    ("service.js", SCRIPT, include_str!("service.js")),
    ("services.js", SCRIPT, include_str!("services.js")),
    ("style.css", STYLE, include_str!("style.css")),
    ("trace.js", SCRIPT, include_str!("trace.js")),
];

/// The routes, to be served at the metrics address. Every method but GET and HEAD is answered with 405.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(index)).route("/assets/{file}", get(asset)).layer(middleware::from_fn(api::guard))
}

async fn index() -> Response {
    file(HTML, include_str!("index.html"))
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|(file, ..)| *file == name) {
        Some((_, kind, content)) => file(kind, content),
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}

fn file(kind: &'static str, content: &'static str) -> Response {
    const CACHE: (HeaderName, HeaderValue) = (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static(kind));
    ([kind, CACHE, (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY))], content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_comes_from_elsewhere_and_nothing_is_read_as_markup() {
        let pages = ASSETS
            .iter()
            .map(|(name, _, content)| (*name, *content))
            .chain([("index.html", include_str!("index.html"))]);
        for (name, content) in pages {
            let content = content.replace("http://www.w3.org/2000/svg", "");
            for forbidden in [
                "http://",
                "https://",
                "//cdn",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "style=",
            ] {
                assert!(!content.contains(forbidden), "{name} has {forbidden}");
            }
        }
    }

    #[test]
    fn every_file_that_is_named_is_there() {
        let known: Vec<_> = ASSETS.iter().map(|(name, ..)| *name).collect();
        for (name, kind, content) in ASSETS {
            let imports = content.lines().filter_map(|line| line.split_once("from \"./")?.1.split_once('"'));
            for (file, _) in imports {
                assert!(kind == SCRIPT && known.contains(&file), "{name} imports {file}");
            }
        }
        for part in include_str!("index.html").split("/assets/").skip(1) {
            let file = part.split('"').next().unwrap_or_default();
            assert!(known.contains(&file), "index.html names {file}");
        }
    }
}
