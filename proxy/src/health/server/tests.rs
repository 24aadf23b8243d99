use std::sync::{Arc, RwLock};
use std::time::Instant;

use serde_json::json;

use super::*;
use crate::args::{CommonArgs, ServeArgs};
use crate::facts::{self, Ask, NodeFacts, Snapshot};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::state::objects::Family;
use crate::status::{self, Response, Status};

struct Fixture {
    serving: Serving,
    health: SocketAddr,
    metrics: SocketAddr,
}

/// Both servers on loopback, and a loop that answers with a status.
async fn serving(timeout: Duration) -> Fixture {
    let (facts, mut asks, _) = facts::channel();
    tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            match ask {
                Ask::Snapshot(reply) => {
                    let node = NodeFacts { backend: "nftables".into(), node: "n1".into(), ..NodeFacts::default() };
                    let _ = reply.send(Arc::new(Snapshot::new(node)));
                }
                Ask::Count(reply) => drop(reply.send(())),
                Ask::Service(..) | Ask::Trace(..) => {}
            }
        }
    });
    let serving = Serving {
        health: Health::new(timeout, false),
        metrics: Arc::new(Metrics::new()),
        facts,
        mode: "nftables",
        flags: Arc::new([("node-name".to_owned(), "n1".to_owned()), ("once".to_owned(), String::new())].into()),
        config: Arc::new(RwLock::new(json!({"kubeproxy.config.k8s.io": {"Mode": "nftables"}}))),
        started: jiff::Timestamp::now(),
        guards_metrics: false,
        profiling: false,
    };
    let mut addresses = Vec::new();
    for routes in [health_routes(serving.clone()), metrics_routes(serving.clone())] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await });
    }
    Fixture { serving, health: addresses[0], metrics: addresses[1] }
}

async fn get(address: SocketAddr, path: &str) -> Response {
    let url = format!("http://{address}{path}");
    tokio::task::spawn_blocking(move || status::get(&url, Duration::from_secs(20))).await.unwrap().unwrap()
}

fn has(response: &Response, line: &str) -> bool {
    response.headers.iter().any(|header| header.eq_ignore_ascii_case(line))
}

#[tokio::test]
async fn health_is_told_with_code_body_and_headers() {
    let fixture = serving(Duration::ZERO).await;
    fixture.serving.health.updated(&Family::BOTH);
    for path in ["/healthz", "/livez"] {
        let response = get(fixture.health, path).await;
        assert_eq!(response.code, 200, "{path}");
        assert!(has(&response, "content-type: application/json"), "{response:?}");
        assert!(has(&response, "x-content-type-options: nosniff"), "{response:?}");
        assert_eq!(response.body.contains("\"nodeEligible\":true"), path == "/healthz", "{response:?}");
    }
    fixture.serving.health.queued(&[Family::V6]);
    for path in ["/healthz", "/livez"] {
        let response = get(fixture.health, path).await;
        assert_eq!(response.code, 503, "{path}");
        assert!(response.body.contains("\"healthy\":false"), "{response:?}");
    }
    assert_eq!(get(fixture.health, "/other").await.code, 404);
    let text = get(fixture.metrics, "/metrics").await.body;
    for line in ["healthz_total{code=\"200\"} 1", "healthz_total{code=\"503\"} 1", "livez_total{code=\"503\"} 1"] {
        assert!(text.contains(&format!("kubeproxy_proxy_{line}")), "{line}");
    }
}

#[tokio::test]
async fn the_metrics_address_serves_the_rest() {
    let fixture = serving(Duration::from_secs(60)).await;
    assert_eq!(get(fixture.metrics, "/healthz").await.body, "ok");
    assert_eq!(get(fixture.metrics, "/proxyMode").await.body, "nftables");
    let metrics = get(fixture.metrics, "/metrics").await;
    assert!(has(&metrics, "content-type: text/plain; version=0.0.4; charset=utf-8"), "{:?}", metrics.headers);
    let status = get(fixture.metrics, "/status").await;
    let status: Status = serde_json::from_str(&status.body).unwrap();
    assert_eq!((status.node.as_str(), status.healthy, status.node_eligible), ("n1", true, true));
}

fn settings(address: SocketAddr, hard_fail: bool) -> Settings {
    let flag = |text: String| Some(text);
    let args = ServeArgs {
        healthz_bind_address: flag(address.to_string()),
        metrics_bind_address: flag(String::new()),
        bind_address_hard_fail: Some(hard_fail),
        ..ServeArgs::default()
    };
    Settings::checked(&CommonArgs::default(), &args, None, "n1").unwrap().0
}

#[tokio::test]
async fn a_taken_address_ends_it_only_on_request() {
    let fixture = serving(Duration::from_secs(60)).await;
    let error = serve(&settings(fixture.health, true), fixture.serving).await.unwrap_err().to_string();
    assert!(error.contains("/healthz") && error.contains("--healthz-bind-address"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_taken_address_is_tried_again_until_it_is_free() {
    let fixture = serving(Duration::from_secs(60)).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let server = tokio::spawn(async move { serve(&settings(address, false), fixture.serving).await });
    // The clock of the runtime is paused: this passes several attempts without waiting.
    tokio::time::sleep(RETRY * 3).await;
    assert!(!server.is_finished());
    drop(taken);
    let deadline = Instant::now() + Duration::from_secs(20);
    let url = format!("http://{address}/livez");
    loop {
        let url = url.clone();
        tokio::time::sleep(RETRY).await;
        match tokio::task::spawn_blocking(move || status::get(&url, Duration::from_secs(5))).await.unwrap() {
            Ok(response) => break assert_eq!(response.code, 200),
            Err(error) => assert!(Instant::now() < deadline, "waited for /livez after the address was free: {error}"),
        }
    }
    server.abort();
}

#[tokio::test]
async fn the_unspecified_address_is_that_of_both_families() {
    let listener = bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    for host in ["127.0.0.1", "[::1]"] {
        tokio::net::TcpStream::connect(format!("{host}:{port}"))
            .await
            .unwrap_or_else(|error| panic!("{host}: {error}"));
    }
    let again = bind(SocketAddr::from(([0, 0, 0, 0], port))).await.unwrap_err();
    assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    let one = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    assert!(one.local_addr().unwrap().is_ipv4());
}
