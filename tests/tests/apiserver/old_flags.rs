//! Flags that kube-proxy keeps for those who have used them for long.

use kubeferry_tests::apiserver::Resource;

use super::node::{Node, service};

#[test]
fn a_port_of_zero_turns_a_server_off() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let url = node.server.url();
    node.start(&["--server", &url, "--healthz-port", "0", "--metrics_port=0"]);
    node.expect("a sync", &["10.96.0.1:80"]);
    for at in ["http://127.0.0.1:10256/healthz", "http://127.0.0.1:10249/metrics"] {
        assert!(node.get(at).is_none(), "{at} is served");
    }
    let log = node.log();
    for flag in ["--healthz-port", "--metrics-port"] {
        assert!(log.lines().any(|line| line.contains("WARN") && line.contains(flag)), "{flag} in {log}");
    }
}

#[test]
fn the_name_of_the_node_is_trimmed_and_of_small_letters() {
    let mut node = Node::new();
    let url = node.server.url();
    node.start(&["--server", &url, "--hostname-override", " N1 "]);
    let starting = || {
        let events = node.server.objects(Resource::Event);
        events.into_iter().find(|event| event["reason"] == "Starting")
    };
    assert_eq!(node.until("the start to be told", starting)["regarding"]["name"], "n1");
}
