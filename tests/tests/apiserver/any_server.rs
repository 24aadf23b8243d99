//! What is served follows the objects of any API server: see [`Cluster::all`].

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::time::Duration;

use kubeferry::status::get;
use kubeferry_tests::apiserver::{ApiServer, Resource, Verb};
use kubeferry_tests::cluster::{Cluster, VARIABLE};
use serde_json::Value;

use crate::node::{Node, Reached};

const LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Creates a Service with a port and a slice with its endpoint, the cluster's address of a number; returns the frontend.
fn create(node: &Node<Reached>, name: &str, endpoint: u8) -> SocketAddr {
    let cluster = &node.server.cluster;
    let ports = "[{name: http, protocol: TCP, port: 80, targetPort: 8080}]";
    // Of the family that the cluster gives first.
    let held =
        cluster.create(&format!("{{kind: Service, metadata: {{name: {name}}}, spec: {{ports: {ports}}}}}")).unwrap();
    let ip: IpAddr = held["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
    let (family, endpoints) =
        (if ip.is_ipv6() { "IPv6" } else { "IPv4" }, endpoints(cluster, ip.is_ipv6(), &[endpoint]));
    let metadata = format!("{{name: {name}, labels: {{kubernetes.io/service-name: {name}}}}}");
    let slice = format!(
        "{{kind: EndpointSlice, metadata: {metadata}, addressType: {family}, endpoints: {endpoints}, \
         ports: [{{name: http, protocol: TCP, port: 8080}}]}}"
    );
    cluster.create(&slice).unwrap();
    SocketAddr::new(ip, 80)
}

fn endpoints(cluster: &Cluster, is_ipv6: bool, numbers: &[u8]) -> String {
    let endpoint = |number: &u8| format!("{{addresses: ['{}']}}", cluster.address(is_ipv6, *number));
    format!("[{}]", numbers.iter().map(endpoint).collect::<Vec<_>>().join(", "))
}

#[test]
fn services_come_change_and_go() {
    for cluster in Cluster::all().unwrap() {
        let mut node = Node::of(cluster);
        let web = create(&node, "web", 1);
        node.run();
        node.expect("those that were there", &[web]);
        let api = create(&node, "api", 2);
        node.expect("a new one came", &[web, api]);
        let cluster = &node.server.cluster;
        let changed = format!("{{endpoints: {}}}", endpoints(cluster, web.is_ipv6(), &[3, 4]));
        cluster.change(Resource::EndpointSlice, "api", &changed).unwrap();
        let ours = |number| SocketAddr::new(cluster.address(web.is_ipv6(), number), 8080);
        let moved = || {
            let endpoints = node.endpoints();
            [1, 2, 3, 4].map(|number| endpoints.contains(&ours(number))).eq(&[true, false, true, true]).then_some(())
        };
        node.until("the endpoints to be those of the changed slice", moved);
        let port = "{spec: {ports: [{name: http, protocol: TCP, port: 81, targetPort: 8080}]}}";
        cluster.change(Resource::Service, "web", port).unwrap();
        node.expect("one has another port", &[SocketAddr::new(web.ip(), 81), api]);
        cluster.delete(Resource::Service, "web").unwrap();
        node.expect("one is gone", &[api]);
        // A real cluster may change meanwhile.
        let same = || {
            let diff = node.output(node.command("plan").arg("--diff").args(node.source()));
            assert!(diff.status.success(), "{diff:?}");
            diff.stdout.is_empty().then_some(())
        };
        node.until("plan --diff to find no difference", same);
    }
}

#[test]
fn what_another_proxy_serves_is_left_alone() {
    for cluster in Cluster::all().unwrap() {
        let mut node = Node::of(cluster);
        let web = create(&node, "web", 1);
        let others = create(&node, "others", 2);
        let label = |node: &Node<Reached>, value: &str| {
            let patch = format!("{{metadata: {{labels: {{{LABEL}: {value}}}}}}}");
            node.server.cluster.change(Resource::Service, "others", &patch).unwrap()
        };
        let held = label(&node, "other");
        assert_eq!(held["metadata"]["labels"][LABEL], "other");
        let ports = "[{name: http, protocol: TCP, port: 80}]";
        let spec = format!("{{clusterIP: None, ports: {ports}}}");
        let headless = format!("{{kind: Service, metadata: {{name: headless}}, spec: {spec}}}");
        assert_eq!(node.server.cluster.create(&headless).unwrap()["spec"]["clusterIP"], "None");
        node.run();
        node.expect("neither the headless nor the other's", &[web]);
        label(&node, "null");
        node.expect("the label is gone", &[web, others]);
        label(&node, "other");
        node.expect("the label is back", &[web]);
    }
}

#[test]
fn the_rules_outlive_the_process_and_the_next_run_takes_them_over() {
    for cluster in Cluster::all().unwrap() {
        let mut node = Node::of(cluster);
        let (web, old) = (create(&node, "web", 1), create(&node, "old", 2));
        node.run();
        node.expect("the first run's", &[web, old]);
        let status = node.terminate();
        assert_eq!(status.code(), Some(0), "{}", node.log());
        node.expect("left after SIGTERM", &[web, old]);
        node.server.cluster.delete(Resource::Service, "old").unwrap();
        node.run();
        node.expect("the second run has noticed the deletion", &[web]);
        node.crash();
        node.expect("left after a crash", &[web]);
    }
}

/// Names of everything that a server of plain HTTP holds.
fn held(server: &ApiServer) -> Vec<String> {
    let mut names = Vec::new();
    // An API server forgets Events by itself.
    for resource in Resource::ALL.into_iter().filter(|resource| *resource != Resource::Event) {
        let url = format!("{}{}/{}", server.url(), resource.group_path(), resource.plural());
        let list: Value = serde_json::from_str(&get(&url, Duration::from_secs(30)).unwrap().body).unwrap();
        let items = list["items"].as_array().unwrap();
        names.extend(items.iter().map(|item| format!("{} {}", resource.kind(), item["metadata"]["name"])));
    }
    names
}

#[test]
fn the_cluster_that_the_variable_names_is_used_and_left_as_it_was() {
    let server = ApiServer::start().unwrap();
    server.apply("{kind: Namespace, metadata: {name: default}}").unwrap();
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "any_server::services_come_change_and_go", "--nocapture"]);
    let output = test.env(VARIABLE, server.kubeconfig()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("the scripted one at https:") && said.contains("the real one at http:"), "{said}");
    assert!(server.count(Verb::Watch, Resource::Service) > 0);
    assert_eq!(held(&server), [r#"Namespace "default""#]);
}

#[test]
fn what_a_test_has_made_is_deleted_when_it_fails() {
    let server = ApiServer::start().unwrap();
    let cluster = Cluster::open(&server.kubeconfig()).unwrap();
    let failed = catch_unwind(AssertUnwindSafe(|| {
        let node = Node::of(cluster);
        create(&node, "web", 1);
        assert_eq!(held(&server).len(), 4, "a Service, a slice, a Node, a namespace");
        panic!("this is to be");
    }));
    assert_eq!(*failed.unwrap_err().downcast::<&str>().unwrap(), "this is to be");
    assert_eq!(held(&server), [""; 0]);
}
