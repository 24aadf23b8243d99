//! `/healthz` and `/livez`: whole answers, and what they depend on.

use std::net::TcpListener;

use jiff::Timestamp;
use kubeferry::status::Response;
use kubeferry_tests::apiserver::{Fault, Resource};
use serde_json::{Value, json};

use crate::breakable::BreakableNft;
use crate::node::{Node, service};

const HEALTHZ: &str = "http://127.0.0.1:10256/healthz";
const LIVEZ: &str = "http://127.0.0.1:10256/livez";

/// The body with every time that it tells as `TIME`.
fn timeless(answer: &Response) -> Value {
    let mut body: Value = serde_json::from_str(&answer.body).unwrap();
    for pointer in ["/lastUpdated", "/currentTime", "/status/IPv4/lastUpdated", "/status/IPv6/lastUpdated"] {
        if let Some(time) = body.pointer_mut(pointer) {
            assert!(time.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{time}");
            *time = "TIME".into();
        }
    }
    body
}

/// Of the whole, of the answer, of IPv4, of IPv6.
fn times(answer: &Response) -> [Timestamp; 4] {
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    ["/lastUpdated", "/currentTime", "/status/IPv4/lastUpdated", "/status/IPv6/lastUpdated"]
        .map(|pointer| body.pointer(pointer).unwrap().as_str().unwrap().parse().unwrap())
}

fn body(eligible: Option<bool>, healthy: bool) -> Value {
    let family = json!({"lastUpdated": "TIME", "healthy": healthy});
    let mut body = json!({"lastUpdated": "TIME", "currentTime": "TIME", "healthy": healthy,
        "status": {"IPv4": family, "IPv6": family}});
    if let Some(eligible) = eligible {
        body["nodeEligible"] = eligible.into();
    }
    body
}

fn until_code(node: &Node, url: &str, code: u16) -> Response {
    node.until(&format!("{url} to answer {code}"), || node.get(url).filter(|answer| answer.code == code))
}

/// Until a sync is told of, a moment after its rows are in force: before the first, health waits for nothing.
fn until_told(node: &Node) {
    node.until("a sync to be told of", || (timeless(&node.ask(LIVEZ)) == body(None, true)).then_some(()));
}

const TAINTED: &str = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24], \
    taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}, \
    status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}";

#[test]
fn the_whole_answer_and_the_nodes_part_in_it() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.run();
    node.expect("a sync", &["10.96.0.1:80"]);
    until_told(&node);
    let (healthz, livez) = (until_code(&node, HEALTHZ, 200), until_code(&node, LIVEZ, 200));
    assert_eq!(timeless(&healthz), body(Some(true), true));
    assert_eq!(timeless(&livez), body(None, true));
    let [updated, now, ..] = times(&livez);
    assert_eq!(updated, now, "{}", livez.body);
    let mut headers: Vec<_> = healthz.headers.iter().map(|line| line.to_lowercase()).collect();
    headers.retain(|line| !line.starts_with("date:") && !line.starts_with("content-length:"));
    headers.sort();
    assert_eq!(headers, ["content-type: application/json", "x-content-type-options: nosniff"]);
    // The autoscaler's taint, a deletion, and no Node at all: no new traffic, and no restart.
    let tainted = TAINTED.to_owned();
    let deleting =
        tainted.replace("metadata: {name: n1}", "metadata: {name: n1, deletionTimestamp: '2026-01-01T00:00:00Z'}");
    let deleting = deleting.replace("ToBeDeletedByClusterAutoscaler", "other");
    let fine = tainted.replace("ToBeDeletedByClusterAutoscaler", "other");
    for (what, bad) in [("tainted", Some(tainted)), ("deleting", Some(deleting)), ("gone", None)] {
        match bad {
            Some(bad) => node.server.apply(&bad).unwrap(),
            None => node.server.delete(Resource::Node, "", "n1").unwrap(),
        }
        let answer = until_code(&node, HEALTHZ, 503);
        assert_eq!(timeless(&answer), body(Some(false), true), "{what}");
        assert_eq!(node.ask(LIVEZ).code, 200, "{what}");
        node.server.apply(&fine).unwrap();
        until_code(&node, HEALTHZ, 200);
    }
    let counted = |code: &str| node.metric(&format!("kubeproxy_proxy_healthz_total{{code=\"{code}\"}}"));
    assert!(counted("200").unwrap() >= 4.0 && counted("503").unwrap() >= 3.0);
}

#[test]
fn a_change_that_waits_too_long_is_unhealthy() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let nft = BreakableNft::new();
    let url = node.server.url();
    node.start_with(|command| nft.apply(command.args(["--server", &url])));
    node.expect("a sync", &["10.96.0.1:80"]);
    until_told(&node);
    nft.fail(&node);
    node.server.apply(&service("more", "10.96.0.2", &["10.244.1.1"])).unwrap();
    let livez = until_code(&node, LIVEZ, 503);
    assert_eq!(timeless(&livez), body(None, false));
    let [updated, now, v4, v6] = times(&livez);
    assert!(updated == v4.max(v6) && updated < now, "the newest family's: {}", livez.body);
    assert_eq!(timeless(&until_code(&node, HEALTHZ, 503)), body(Some(true), false));
    assert!(node.metric("kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"}").unwrap() >= 1.0);
    nft.mend();
    assert_eq!(timeless(&until_code(&node, LIVEZ, 200)), body(None, true));
    node.expect("what waited", &["10.96.0.1:80", "10.96.0.2:80"]);
}

#[test]
fn before_the_first_sync_it_is_alive_and_a_down_server_changes_nothing() {
    let mut node = Node::new();
    node.server.hold(Resource::Service);
    node.run();
    let answer = until_code(&node, LIVEZ, 200);
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&body["healthy"], &body["status"]), (&json!(true), &json!({})));
    node.server.release(Resource::Service);
    until_code(&node, HEALTHZ, 200);
    node.server.fault(Fault::Down);
    assert_eq!(node.ask(HEALTHZ).code, 200);
}

#[test]
fn a_taken_address_is_tried_again() {
    let mut node = Node::new();
    let taken = ["0.0.0.0:10256", "127.0.0.1:10249"]
        .map(|address| node.namespace.run(|| TcpListener::bind(address)).unwrap().unwrap());
    node.run();
    for what in ["/healthz", "/metrics"] {
        let warning = format!("cannot serve {what}: trying again in 5s");
        node.until("a warning", || node.log().contains(&warning).then_some(()));
    }
    drop(taken);
    until_code(&node, HEALTHZ, 200);
    until_code(&node, "http://127.0.0.1:10249/metrics", 200);
}
