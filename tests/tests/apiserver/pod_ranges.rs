//! `--detect-local-mode NodeCIDR`: a start waits for the Node's pod ranges. How long is a matter for the unit test of the run loop,
//! whose clock can be put on.

use crate::node::{Node, service};

const HEALTHZ: &str = "http://127.0.0.1:10256/healthz";
const LIVEZ: &str = "http://127.0.0.1:10256/livez";
const SERVICES: &str = "kubeferry_watch_events_total{kind=\"Service\"}";
const WAITS: &str =
    "the Node has no spec.podCIDRs yet, which detectLocalMode NodeCIDR asks for: nothing is served before it has";

/// The Node with these ranges.
fn ranged(spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Node, metadata: {{name: n1, labels: {{kubernetes.io/hostname: n1}}}}, spec: {{{spec}}}, \
         status: {{addresses: [{{type: InternalIP, address: 192.0.2.1}}]}}}}"
    )
}

#[test]
fn a_start_waits_for_the_nodes_ranges_and_goes_on_when_they_come() {
    let mut node = Node::new();
    node.server.apply(&ranged("")).unwrap();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let url = node.server.url();
    node.start_bare(&["--server", &url, "--detect-local-mode", "NodeCIDR"]);
    node.until("the log to say what it waits for", || node.log().contains(WAITS).then_some(()));
    // What comes meanwhile is taken in, and the Node again without ranges.
    let before = node.until("/metrics", || node.metric(SERVICES));
    node.server.apply(&ranged("unschedulable: true")).unwrap();
    node.server.apply(&service("late", "10.96.0.2", &["10.244.1.1"])).unwrap();
    node.until("the second Service to be taken in", || node.metric(SERVICES).filter(|events| *events > before));
    assert_eq!((node.ask(HEALTHZ).code, node.ask(LIVEZ).code), (503, 200), "not ready, and no reason to end it");
    assert!(!node.has_table());
    assert_eq!(node.log().matches(WAITS).count(), 1, "it is said once: {}", node.log());

    node.server.apply(&ranged("podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24]")).unwrap();
    node.expect("both Services, once the ranges are there", &["10.96.0.1:80", "10.96.0.2:80"]);
    node.until("the node to be ready", || node.get(HEALTHZ).filter(|answer| answer.code == 200));
    let table = node.namespace.nft(&["list", "table", "inet", "kubeferry"], "").unwrap();
    assert!(table.contains("10.244.1.0/24"), "pods are told by their range: {table}");
}
