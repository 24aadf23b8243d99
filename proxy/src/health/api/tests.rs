use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures::future::join_all;
use serde_json::Value;
use tokio::sync::Semaphore;
use tower::ServiceExt;

use super::*;
use crate::facts::{self, Ask, NodeFacts, Snapshot, Told};
use crate::health::Health;
use crate::metrics::Metrics;

/// The routes over a loop that knows nothing.
fn api() -> Router {
    Counted::new().api
}

/// The same, and what the loop sees of it.
struct Counted {
    api: Router,
    /// How many Services and packets it was asked for.
    asked: Arc<AtomicUsize>,
    /// What it has to get for a Service's answer.
    leave: Arc<Semaphore>,
    /// Goes up when something changes.
    generation: Arc<AtomicU64>,
}

impl Counted {
    fn new() -> Self {
        let (facts, mut asks, generation) = facts::channel();
        let (asked, leave) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(1)));
        let (counter, wait) = (asked.clone(), leave.clone());
        tokio::spawn(async move {
            while let Some(ask) = asks.recv().await {
                match ask {
                    Ask::Snapshot(reply) => drop(reply.send(Arc::new(Snapshot::new(NodeFacts::default())))),
                    Ask::Service(_, reply) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        let wait = wait.clone();
                        tokio::spawn(async move {
                            let _leave = wait.acquire().await;
                            let _ = reply.send(Told::by(|| None));
                        });
                    }
                    Ask::Trace(_, reply) => {
                        counter.fetch_add(1, Ordering::SeqCst);
                        drop(reply.send(Told::by(crate::desired::trace::Trace::default)));
                    }
                    Ask::Count(reply) => drop(reply.send(())),
                }
            }
        });
        let serving = Serving {
            health: Health::new(Duration::from_secs(60), false),
            metrics: Arc::new(Metrics::new()),
            facts,
            mode: "nftables",
            flags: Arc::default(),
            config: Arc::default(),
            started: jiff::Timestamp::now(),
            guards_metrics: false,
            profiling: false,
        };
        Self { api: routes(serving), asked, leave, generation }
    }
}

async fn ask(api: &Router, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = api.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (head.status, head.headers, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn nothing_can_be_changed() {
    let api = api();
    for path in ["/api/v1/node", "/api/v1/services", "/api/v1/services/a/b", "/api/v1/history", "/api/v1/openapi.json"]
    {
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"] {
            let (code, headers, body) = ask(&api, method, path, &[]).await;
            assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
            assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string(), "{body}");
            assert_eq!(headers["allow"], "GET,HEAD");
        }
    }
}

#[tokio::test]
async fn every_answer_has_the_headers_and_no_site_may_read_it() {
    let api = api();
    let origin = [("origin", "http://example.org")];
    for (path, expected) in [
        ("/api/v1/node", 200),
        ("/api/v1/services/a/b", 404),
        ("/api/v1/history?x=1", 400),
        ("/api/v1/services/%ff/x", 400),
        ("/api/v1/", 404),
        ("/api/v1/other", 404),
        ("/api/v1/services/a/b/c", 404),
    ] {
        let (code, headers, body) = ask(&api, "GET", path, &origin).await;
        assert_eq!(code.as_u16(), expected, "{path}: {body}");
        assert!(headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["content-type"], "application/json");
        assert!(!headers.contains_key("access-control-allow-origin"));
        assert!(code == 200 || serde_json::from_str::<Value>(&body).unwrap()["error"].is_string(), "{body}");
    }
}

#[tokio::test]
async fn a_name_that_a_site_may_own_is_refused() {
    let api = api();
    for (host, allowed) in [
        ("127.0.0.1:10249", true),
        ("localhost:10249", true),
        ("LOCALHOST", true),
        ("[::1]:10249", true),
        ("192.0.2.1", true),
        ("example.org", false),
        ("localhost.example.org:10249", false),
        ("127.0.0.1.nip.io:10249", false),
        ("127.0.0.1@example.org", false),
        ("", false),
    ] {
        assert_eq!(allows_host(host), allowed, "{host}");
        let (code, ..) = ask(&api, "GET", "/api/v1/node", &[("host", host)]).await;
        assert_eq!(code == StatusCode::OK, allowed, "{host}: {code}");
    }
    assert_eq!(ask(&api, "GET", "/api/v1/node", &[]).await.0, StatusCode::OK, "HTTP/1.0 has no Host");
}

#[tokio::test]
async fn who_has_the_body_already_is_told_so() {
    let api = api();
    let (code, headers, body) = ask(&api, "GET", "/api/v1/services", &[]).await;
    assert_eq!(code, StatusCode::OK);
    let tag = headers["etag"].to_str().unwrap().to_owned();
    for tags in [tag.clone(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let (code, headers, rest) = ask(&api, "GET", "/api/v1/services", &[("if-none-match", &tags)]).await;
        assert_eq!((code, rest.as_str()), (StatusCode::NOT_MODIFIED, ""), "{tags}");
        assert_eq!(headers["etag"], tag.as_str());
    }
    let (code, _, again) = ask(&api, "GET", "/api/v1/services", &[("if-none-match", "\"other\"")]).await;
    assert_eq!((code, again), (StatusCode::OK, body));
}

#[tokio::test]
async fn what_is_asked_wrongly_is_named() {
    let api = api();
    for (path, part) in [
        ("/api/v1/services?limit=0", "limit must be"),
        ("/api/v1/services?limit=many", "limit"),
        ("/api/v1/services?sort=size", "size"),
        ("/api/v1/services?serch=web", "serch"),
        ("/api/v1/node?x=1", "x"),
        ("/api/v1/trace?to=tcp:10.96.0.1:80", "from"),
        ("/api/v1/trace?from=nobody&to=tcp:10.96.0.1:80", "nobody"),
        ("/api/v1/trace?from=10.0.0.1&to=10.96.0.1:80", "tcp:10.96.0.10:80"),
    ] {
        let (code, _, body) = ask(&api, "GET", path, &[]).await;
        assert_eq!(code, StatusCode::BAD_REQUEST, "{path}");
        assert!(body.contains(part), "{path}: {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_ask_the_same_at_one_time_are_one_question() {
    let Counted { api, asked, generation, .. } = Counted::new();
    let path = "/api/v1/trace?from=10.0.0.1&to=tcp:10.96.0.1:80";
    let answers = join_all((0..50).map(|_| ask(&api, "GET", path, &[]))).await;
    assert!(answers.iter().all(|(code, _, body)| (*code, body) == (StatusCode::OK, &answers[0].2)), "{answers:?}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    ask(&api, "GET", "/api/v1/trace?from=10.0.0.2&to=tcp:10.96.0.1:80", &[]).await;
    assert_eq!(asked.load(Ordering::SeqCst), 2, "another question");
    generation.fetch_add(1, Ordering::SeqCst);
    ask(&api, "GET", path, &[]).await;
    assert_eq!(asked.load(Ordering::SeqCst), 3, "another snapshot");
}

#[tokio::test(start_paused = true)]
async fn the_loop_is_asked_for_one_thing_at_a_time_and_too_many_are_told_to_come_back() {
    let Counted { api, asked, leave, .. } = Counted::new();
    let held = leave.acquire_many(1).await.unwrap();
    let askers: Vec<_> = (0..100)
        .map(|number| {
            let api = api.clone();
            tokio::spawn(async move { ask(&api, "GET", &format!("/api/v1/services/a/{number}"), &[]).await })
        })
        .collect();
    // Searches do not wait for them.
    for number in 0..20 {
        let (code, ..) = ask(&api, "GET", &format!("/api/v1/services?search={number}"), &[]).await;
        assert_eq!(code, StatusCode::OK);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    drop(held);
    let answers: Vec<_> = join_all(askers).await.into_iter().map(Result::unwrap).collect();
    let busy: Vec<_> = answers.iter().filter(|(code, ..)| *code == StatusCode::SERVICE_UNAVAILABLE).collect();
    assert_eq!((busy.len(), asked.load(Ordering::SeqCst)), (36, 64));
    assert!(busy.iter().all(|(_, headers, body)| headers["retry-after"] == "1" && body.contains("busy")), "{busy:?}");
}

#[tokio::test(start_paused = true)]
async fn who_goes_leaves_nothing_behind() {
    let Counted { api, asked, leave, .. } = Counted::new();
    let held = leave.acquire_many(1).await.unwrap();
    // Who asks and goes has the loop do no more than one thing at a time either.
    for number in 0..100 {
        let path = format!("/api/v1/services/a/{number}");
        let gone = tokio::time::timeout(Duration::from_millis(10), ask(&api, "GET", &path, &[])).await;
        assert!(gone.is_err());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    drop(held);
    assert_eq!(ask(&api, "GET", "/api/v1/services/a/b", &[]).await.0, StatusCode::NOT_FOUND);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[test]
fn the_description_names_every_route_and_every_schema_that_it_needs() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let paths: Vec<&String> = document["paths"].as_object().unwrap().keys().collect();
    assert_eq!(paths.len(), 7, "{paths:?}");
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        let name = reference.strip_prefix("#/components/schemas/").unwrap_or_else(|| panic!("{reference}"));
        assert!(document["components"]["schemas"][name].is_object(), "{name} is not there");
    }
}
