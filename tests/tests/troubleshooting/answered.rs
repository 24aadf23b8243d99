//! What the page asks for is answered, its metrics are there, and packets end as it says: sections 1, 2, 4 and 10.

use std::process::Command;

use kubeferry_tests::client::Connection;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Follower;
use serde_json::Value;

use super::page::{code, page, quoted, section};
use super::served::Served;

const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {clusterIP: 10.96.0.10, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: default}
spec: {clusterIP: 10.96.0.12, internalTrafficPolicy: Local, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: local-4, namespace: default, labels: {kubernetes.io/service-name: local}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.2.1], nodeName: worker-2}]
---
apiVersion: v1
kind: Service
metadata: {name: ranged, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.13
  loadBalancerSourceRanges: [203.0.113.0/24]
  ports: [{name: http, port: 80}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ranged-4, namespace: default, labels: {kubernetes.io/service-name: ranged}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
---
apiVersion: v1
kind: Service
metadata: {name: lost, namespace: default}
spec: {clusterIP: 10.96.0.14, ports: [{name: http, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: lost-4, namespace: default, labels: {kubernetes.io/service-name: lost}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [203.0.113.200], nodeName: worker-2}]
---
apiVersion: v1
kind: Service
metadata: {name: node-port, namespace: default}
spec: {type: NodePort, clusterIP: 10.96.0.15, ports: [{name: http, port: 80, nodePort: 30080}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: node-port-4, namespace: default, labels: {kubernetes.io/service-name: node-port}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16]}
";

#[test]
fn what_it_asks_for_is_answered_and_its_metrics_are_there() {
    let served = Served::start(Datapath::Nftables, MANIFESTS, &[]);
    let metrics = served.get("/metrics");
    let (mut paths, mut names) = (0, 0);
    for code in code(&page()) {
        if let Some(name) = Some(&code).filter(|code| code.starts_with("kubeferry_") || code.starts_with("kubeproxy_"))
        {
            let is_it = |line: &str| line.strip_prefix("# TYPE ").and_then(|rest| rest.split(' ').next()) == Some(name);
            assert!(metrics.lines().any(is_it), "there is no metric {name}");
            names += 1;
        }
        let path = match code.strip_prefix("curl -s ") {
            Some(url) => url.trim_matches('\'').strip_prefix("127.0.0.1:10249"),
            None => Some(&code[..]).filter(|code| code.starts_with("/api/v1/")),
        };
        if let Some(path) = path.filter(|path| *path != "/api/v1/") {
            let answer: Value = serde_json::from_str(&served.get(path)).unwrap();
            paths += 1;
            match path.split('?').next().unwrap() {
                "/api/v1/trace" => assert!(answer["why"].is_array() && answer["outcome"].is_string(), "{answer:#}"),
                "/api/v1/node" => assert!(answer["settings"].is_object(), "{answer:#}"),
                _ => {}
            }
        }
    }
    assert!(paths >= 5 && names >= 4, "{paths} paths, {names} metrics");
    let none: Value =
        serde_json::from_str(&served.get("/api/v1/trace?from=10.244.1.7&to=tcp:10.244.1.1:30080")).unwrap();
    assert_eq!(none["outcome"], "none", "{none:#}");
}

#[test]
fn packets_end_as_it_says() {
    let served = Served::start(Datapath::Nftables, MANIFESTS, &[]);
    let follower = Follower::start(&[], &served.web.hosts.node).unwrap();
    served.web.hosts.node.ip(&["route add unreachable 203.0.113.200/32"]).unwrap();
    let reach = |to: &str| {
        let to = to.parse().unwrap();
        // Answered or not: what becomes of the packet is the question.
        let _ = Connection::attempt(served.web.client(), to);
        follower.line(None, to).unwrap()
    };
    let mut said = String::new();
    for (to, end) in [
        ("10.96.0.10:80", "refused"),
        ("10.96.0.12:80", "dropped"),
        ("198.51.100.7:80", "dropped"),
        ("10.96.99.99:80", "dropped"),
        ("10.96.0.14:80", "unseen"),
        ("192.0.2.1:30080", "went"),
    ] {
        let line = reach(to);
        assert_eq!((line["end"].as_str(), line["agrees"] == Value::Bool(false)), (Some(end), false), "{line:#}");
        said += &line.to_string();
    }
    let rule =
        "add table inet firewall { chain forward { type filter hook forward priority 0; tcp dport 8080 drop; }; }";
    let added = served.web.hosts.node.output(Command::new("nft").arg(rule), "").unwrap();
    assert!(added.status.success(), "{added:?}");
    said += &reach("10.96.0.15:80").to_string();
    let page = [1, 2, 4].map(section).concat();
    let reasons = quoted(&page);
    assert!(reasons.len() >= 6, "{reasons:?}");
    for reason in reasons {
        assert!(said.contains(reason) || reason == "source rewritten", "nothing says {reason:?}: {said}");
    }
    for part in ["dropped by firewall/forward, rule ", ", which is not ours", "not seen again", "went out by "] {
        assert!(page.contains(part) && said.contains(part), "{part:?}: {said}");
    }
}
