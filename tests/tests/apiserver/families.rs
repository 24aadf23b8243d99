//! IP families: a host of one, and settings that are only of the other.

use crate::node::{Node, service};

const V6: [&str; 2] = ["--cluster-cidr", "fd00:10:244::/48"];

/// A node whose kernel has IPv6 turned off.
fn without_ipv6() -> Node {
    let node = Node::new();
    node.namespace.sysctl("net/ipv6/conf/all/disable_ipv6", "1").unwrap();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node
}

/// Starts with these flags, and waits for the end with this message; nothing is in the kernel.
fn refuses(mut node: Node, flags: &[&str], message: &str) {
    let url = node.server.url();
    node.start_bare(&[&["--server", &url], flags].concat());
    assert_eq!(node.ended().code(), Some(1));
    assert!(node.log().contains(message), "{}", node.log());
    assert!(!node.has_table());
}

#[test]
fn a_cluster_cidr_of_the_other_family_ends_the_start_on_a_host_of_one_family() {
    refuses(without_ipv6(), &V6, "the Node is IPv4 alone, but clusterCIDR is of the other family only");
}

#[test]
fn with_both_families_it_is_told_and_everything_works() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let url = node.server.url();
    node.start_bare(&[&["--server", &url][..], &V6].concat());
    node.expect("a sync", &["10.96.0.1:80"]);
    let told = "the Node is IPv4 first, but clusterCIDR is of the other family only";
    assert!(node.log().contains(told), "{}", node.log());
}

#[test]
fn pod_ranges_of_the_other_family_end_the_start() {
    let node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let ranges = "{apiVersion: v1, kind: Node, metadata: {name: n1}, spec: {podCIDR: 'fd00:1::/64', \
        podCIDRs: ['fd00:1::/64']}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}";
    node.server.apply(ranges).unwrap();
    let message = "the Node is IPv4 first, but the Node's spec.podCIDRs are of the other family only";
    refuses(node, &["--detect-local-mode", "NodeCIDR"], message);
}

#[test]
fn a_first_address_of_a_family_that_the_host_has_not_ends_the_start() {
    let message = "the Node's first address is IPv6, and this host has none of that family";
    refuses(without_ipv6(), &["--bind-address", "2001:db8:2::1"], message);
}

/// Nothing of IPv6 is opened, nor told of as failing.
#[test]
fn a_host_of_one_family_serves_it() {
    let mut node = without_ipv6();
    let dual = "{apiVersion: v1, kind: Service, metadata: {name: lb, namespace: default}, spec: {type: LoadBalancer, \
        externalTrafficPolicy: Local, healthCheckNodePort: 32001, clusterIP: 10.96.0.9, \
        clusterIPs: [10.96.0.9, 'fd00:10:96::9'], ipFamilies: [IPv4, IPv6], \
        ports: [{name: http, protocol: TCP, port: 80, nodePort: 30001}]}}\n";
    node.server.apply(dual).unwrap();
    let url = node.server.url();
    node.start_bare(&["--server", &url, "--cluster-cidr", "10.244.0.0/16"]);
    let open = "kubeferry_health_check_node_ports";
    node.until("the health check node port", || {
        node.metric(&format!("{open}{{ip_family=\"IPv4\"}}")).filter(|n| *n > 0.0)
    });
    assert_eq!(node.metric(&format!("{open}{{ip_family=\"IPv6\"}}")), Some(0.0));
    let failures = node.metric("kubeferry_health_check_node_port_failures_total{ip_family=\"IPv6\"}");
    assert!(failures.is_none_or(|failures| failures == 0.0), "{failures:?}");
    assert!(!node.log().contains("cannot open a health check node port"), "{}", node.log());
    let body = node.ask("http://127.0.0.1:10256/livez").body;
    assert!(body.contains("\"IPv4\"") && !body.contains("\"IPv6\""), "{body}");
}
