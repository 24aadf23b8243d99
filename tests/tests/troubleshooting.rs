//! `docs/troubleshooting.md` is true: its commands are taken, what it asks for is answered, its metrics are there, and what it says
//! of packets is said of packets.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::path::Path;
use std::process::Command;

use kubeferry_tests::client::{Connection, Running, synced, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Follower;
use kubeferry_tests::web::Web;
use serde_json::Value;

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    std::fs::read_to_string(path).unwrap()
}

/// Lines of blocks of code, and code within sentences, which may go on over the end of a line.
fn code(page: &str) -> Vec<String> {
    let mut code = Vec::new();
    for (number, part) in page.split("```").enumerate() {
        if number % 2 == 1 {
            code.extend(part.lines().filter(|line| !line.is_empty()).map(str::to_owned));
        } else {
            let spans = part.split('`').skip(1).step_by(2);
            code.extend(spans.map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")));
        }
    }
    code
}

/// What stands in italics: texts of the tools.
fn quoted(page: &str) -> Vec<&str> {
    let ends = |text: &str| text.starts_with(|letter: char| letter.is_alphabetic()) && text.contains(' ');
    page.split('*')
        .filter(|text| ends(text) && text.len() < 60 && !text.contains('\n') && !text.contains('`'))
        .collect()
}

#[test]
fn the_commands_are_taken() {
    let page = page();
    let mut commands = 0;
    for command in code(&page).iter().filter(|code| code.starts_with("kubeferry ")) {
        let parsed = kubeferry::args::parse(command.split(' '));
        parsed.unwrap_or_else(|error| panic!("{command}: {error}"));
        commands += 1;
    }
    assert!(commands >= 15, "only {commands} found");
    let problems = page.lines().filter(|line| line.starts_with("## ")).count();
    assert_eq!(problems, 10);
}

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

struct Served {
    // In this order: what runs ends before what it runs in.
    _running: Running,
    web: Web,
}

impl Served {
    fn new() -> Self {
        let web = Web::build().unwrap();
        web.write(MANIFESTS).unwrap();
        let running = Datapath::Nftables.run(&web.source, &web.hosts.node).unwrap();
        until("the first sync", || synced(&web.hosts.node)).unwrap();
        Self { _running: running, web }
    }

    fn get(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:10249{path}");
        let answer = self.web.hosts.node.run(|| kubeferry::status::get(&url, kubeferry_tests::client::DEADLINE));
        let answer = answer.unwrap().unwrap();
        assert_eq!(answer.code, 200, "{path}: {}", answer.body);
        answer.body
    }
}

#[test]
fn what_it_asks_for_is_answered_and_its_metrics_are_there() {
    let served = Served::new();
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
    let served = Served::new();
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
    let page = page();
    let reasons = quoted(&page);
    assert!(reasons.len() >= 6, "{reasons:?}");
    for reason in reasons {
        assert!(said.contains(reason) || reason == "source rewritten", "nothing says {reason:?}: {said}");
    }
    for part in ["dropped by firewall/forward, rule ", ", which is not ours", "not seen again", "went out by "] {
        assert!(page.contains(part) && said.contains(part), "{part:?}: {said}");
    }
}
