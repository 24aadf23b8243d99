//! Health check node ports, as a load balancer asks them.

use std::net::{SocketAddr, TcpListener};

use kubeferry::status::Response;
use kubeferry_tests::apiserver::Resource;
use serde_json::json;

use crate::breakable::BreakableNft;
use crate::node::{Node, service, slice};

/// A Service of both families with a health check node port.
fn balanced(name: &str, number: u8, port: u16) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: default}}, spec: {{type: LoadBalancer, \
         externalTrafficPolicy: Local, healthCheckNodePort: {port}, clusterIP: 10.96.0.{number}, \
         clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}'], ipFamilies: [IPv4, IPv6], \
         ports: [{{name: http, protocol: TCP, port: 80, nodePort: 300{number:02}}}]}}}}\n"
    )
}

/// An endpoint on a node with its conditions.
fn endpoint(ip: &str, node: &str, ready: bool, terminating: bool) -> String {
    format!(
        "{{addresses: ['{ip}'], nodeName: {node}, conditions: {{ready: {ready}, serving: true, terminating: {terminating}}}}}"
    )
}

fn slice_of(name: &str, endpoints: &[String]) -> String {
    slice(name, &[]).replace("endpoints: []", &format!("endpoints: [{}]", endpoints.join(", ")))
}

fn url(ip: &str, port: u16) -> String {
    format!("http://{}/healthz", SocketAddr::new(ip.parse().unwrap(), port))
}

/// kube-proxy's body.
fn body(name: &str, local: usize) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": true\n}}"
    )
}

/// What is answered, once it is this code.
fn until_code(node: &Node, url: &str, code: u16) -> Response {
    node.until(&format!("{url} to answer {code}"), || node.get(url).filter(|answer| answer.code == code))
}

fn until_closed(node: &Node, url: &str) {
    node.until(&format!("{url} to be closed"), || node.get(url).is_none().then_some(()));
}

#[test]
fn the_answer_is_kube_proxys_in_each_family() {
    let mut node = Node::new();
    let all = [
        endpoint("10.244.1.1", "n1", true, false),
        endpoint("10.244.1.2", "n1", true, false),
        endpoint("10.244.1.3", "n1", false, true),
        endpoint("10.244.2.1", "n2", true, false),
    ];
    node.server.apply(&balanced("web", 1, 31000)).unwrap();
    node.server.apply(&slice_of("web", &all)).unwrap();
    node.run();
    let answer = until_code(&node, &url("192.0.2.1", 31000), 200);
    assert_eq!(answer.body, body("web", 2), "two are here and ready");
    let mut headers: Vec<_> = answer.headers.iter().map(|line| line.to_lowercase()).collect();
    headers.retain(|line| !line.starts_with("date:"));
    headers.sort();
    let expected = [
        &format!("content-length: {}", body("web", 2).len()),
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 2",
    ];
    assert_eq!(headers, expected);
    // IPv6 has a server of its own, with its own count.
    let v6 = until_code(&node, &url("2001:db8:2::1", 31000), 503);
    assert_eq!(v6.body, body("web", 0));
    assert!(v6.headers.iter().any(|line| line.eq_ignore_ascii_case("x-load-balancing-endpoint-weight: 0")));
    // Any path, and of the selected addresses alone: the Node's primary one.
    assert_eq!(node.ask("http://192.0.2.1:31000/").code, 200);
    assert!(node.get(&url("127.0.0.1", 31000)).is_none());
}

#[test]
fn a_proxy_that_does_not_keep_up_takes_itself_from_the_load_balancer() {
    let mut node = Node::new();
    let here = endpoint("10.244.1.1", "n1", true, false);
    node.server.apply(&balanced("web", 1, 31000)).unwrap();
    node.server.apply(&slice_of("web", &[here])).unwrap();
    let (nft, server) = (BreakableNft::new(), node.server.url());
    node.start_with(|command| nft.apply(command.args(["--server", &server])));
    let url = url("192.0.2.1", 31000);
    until_code(&node, &url, 200);
    nft.fail(&node);
    node.server.apply(&service("more", "10.96.0.2", &["10.244.1.1"])).unwrap();
    let answer = until_code(&node, &url, 503);
    assert_eq!(answer.body, body("web", 1).replace("Healthy\": true", "Healthy\": false"), "one is here all the same");
    nft.mend();
    assert_eq!(until_code(&node, &url, 200).body, body("web", 1));
}

#[test]
fn ports_come_go_and_count_with_the_objects() {
    let mut node = Node::new();
    let (first, second) = (url("192.0.2.1", 31000), url("192.0.2.1", 31001));
    node.server.apply(&balanced("web", 1, 31000)).unwrap();
    node.server.hold(Resource::EndpointSlice);
    node.run();
    node.until("the status to wait", || {
        node.status().filter(|status| status["waitingFor"] == json!(["EndpointSlice"]))
    });
    assert!(node.get(&first).is_none(), "nothing is opened before a sync");
    node.server.release(Resource::EndpointSlice);
    assert_eq!(until_code(&node, &first, 503).body, body("web", 0));
    node.server.apply(&slice_of("web", &[endpoint("10.244.1.1", "n1", true, false)])).unwrap();
    assert_eq!(until_code(&node, &first, 200).body, body("web", 1));
    // The datapath still serves a terminating endpoint; the load balancer is to go elsewhere.
    node.server.apply(&slice_of("web", &[endpoint("10.244.1.1", "n1", false, true)])).unwrap();
    assert_eq!(until_code(&node, &first, 503).body, body("web", 0));
    node.server.apply(&balanced("web", 1, 31001)).unwrap();
    until_code(&node, &second, 503);
    until_closed(&node, &first);
    // A port goes from one Service to another.
    node.server.apply(&balanced("web", 1, 31000)).unwrap();
    node.server.apply(&balanced("other", 2, 31001)).unwrap();
    node.server.apply(&slice_of("other", &[endpoint("10.244.1.1", "n1", true, false)])).unwrap();
    node.until("the other's answer", || node.get(&second).filter(|answer| answer.body == body("other", 1)));
    node.server.delete(Resource::Service, "default", "other").unwrap();
    until_closed(&node, &second);
    node.server
        .apply(&balanced("web", 1, 31000).replace("externalTrafficPolicy: Local", "externalTrafficPolicy: Cluster"))
        .unwrap();
    until_closed(&node, &first);
    assert!(node.log().lines().all(|line| !line.contains("cannot open a health check")), "{}", node.log());
}

#[test]
fn all_node_port_addresses_are_the_wildcards() {
    let mut node = Node::new();
    node.server.apply(&balanced("web", 1, 31000)).unwrap();
    node.server.apply(&slice_of("web", &[endpoint("10.244.1.1", "n1", true, false)])).unwrap();
    let server = node.server.url();
    node.start(&["--server", &server, "--nodeport-addresses", "0.0.0.0/0,::/0"]);
    for (ip, code) in [("192.0.2.1", 200), ("127.0.0.1", 200), ("2001:db8:2::1", 503), ("::1", 503)] {
        until_code(&node, &url(ip, 31000), code);
    }
}

#[test]
fn a_busy_port_is_told_and_opened_when_it_is_free() {
    let mut node = Node::new();
    let busy = node.namespace.run(|| TcpListener::bind("192.0.2.1:31000")).unwrap().unwrap();
    node.server.apply(&balanced("web", 1, 31000)).unwrap();
    node.server.apply(&slice_of("web", &[endpoint("10.244.1.1", "n1", true, false)])).unwrap();
    node.run();
    let failed = || {
        let events = node.server.objects(Resource::Event);
        events.into_iter().find(|event| event["reason"] == "FailedToStartServiceHealthcheck")
    };
    let event = node.until("the Event", failed);
    assert_eq!((&event["regarding"]["kind"], &event["regarding"]["name"]), (&json!("Service"), &json!("web")));
    assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("Listen")));
    let note = event["note"].as_str().unwrap();
    assert!(note.starts_with("node n1 failed to start healthcheck \"default/web\" on port 31000: "), "{note}");
    let failures = "kubeferry_health_check_node_port_failures_total{ip_family=\"IPv4\"}";
    assert!(node.metric(failures).unwrap() >= 1.0);
    // The other family is open.
    until_code(&node, &url("2001:db8:2::1", 31000), 503);
    drop(busy);
    // The next sync tries again.
    node.server.apply(&service("more", "10.96.0.9", &["10.244.1.9"])).unwrap();
    assert_eq!(until_code(&node, &url("192.0.2.1", 31000), 200).body, body("web", 1));
}
