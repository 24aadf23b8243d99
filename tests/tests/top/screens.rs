//! Whole screens, compared with those of `tests/screens`: long names and large numbers in terminals of several widths.

use std::path::Path;
use std::time::Duration;

use kubeferry::facts::{HealthState, NodeFacts};
use kubeferry_tests::client::until_for;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::terminal::Terminal;
use serde_json::{Value, json};

use crate::stranger::Stranger;
use crate::top;

/// Terminals' columns.
const WIDTHS: [u16; 3] = [60, 80, 130];

fn node() -> Value {
    let mut node = serde_json::to_value(NodeFacts {
        node: "ip-10-20-30-40.eu-central-1.compute.internal".to_owned(),
        backend: "nftables".to_owned(),
        problem: Some("the last sync failed: nft: Could not process rule: No space left on device".to_owned()),
        ..NodeFacts::default()
    })
    .unwrap();
    let counts = json!({"services": 12345, "ready": 123_456, "degraded": 12, "down": 3});
    let traffic = json!({"connections": 9_876_543_210_u64, "connectionsPerSecond": 123_456.7, "active": 1_234_567});
    node["counts"].as_object_mut().unwrap().extend(counts.as_object().unwrap().clone());
    node["traffic"].as_object_mut().unwrap().extend(traffic.as_object().unwrap().clone());
    node["sync"]["succeeded"] = json!(1_234_567);
    node
}

fn row(name: &str, health: HealthState, ready: u64, rate: f64, connections: u64) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({
        "namespace": namespace, "name": name, "type": "ClusterIP", "addresses": [], "ports": [], "portsTotal": 0,
        "endpoints": {"ready": ready}, "scheduler": "random", "policies": kubeferry::facts::Policies::default(),
        "health": {"state": health}, "connectionsPerSecond": rate, "connections": connections, "active": connections / 1000,
    })
}

fn list() -> Value {
    let items = [
        row("kube-system/prometheus-operated-a", HealthState::Ok, 3, 12_345.6, 123_456_789),
        row("kube-system/prometheus-operated-b", HealthState::Degraded, 12_345, 9.5, 9_876_543_210),
        row("monitoring/kube-prometheus-stack-prometheus-node-exporter", HealthState::Ok, 250, 0.0, 7),
        row(&format!("{}/{}", "n".repeat(63), "s".repeat(63)), HealthState::Down, 0, 0.0, 0),
    ];
    json!({"total": 12345, "found": 4, "skipped": 0, "items": items})
}

fn endpoint(address: &str, node: &str, connections: u64, share: f64) -> Value {
    json!({
        "address": address, "node": node, "ready": true, "serving": true, "weight": 1, "promisedShare": 1.0 / 3.0,
        "connections": connections, "share": share, "active": connections / 1000,
    })
}

fn service() -> Value {
    let node = |number: u64| format!("ip-10-20-30-4{number}.eu-central-1.compute.internal");
    let frontends = (0..40)
        .map(|number| json!({"address": format!("203.0.113.{number}:80"), "role": "externalIp", "state": "served"}));
    let port = |name: &str, family: &str, endpoints: Vec<Value>| {
        json!({
            "name": name, "protocol": "tcp", "family": family, "scheduler": "random", "counts": {"ready": 3},
            "frontends": frontends.clone().collect::<Vec<_>>(), "endpoints": endpoints, "connections": 123_456_789,
            "active": 123_456,
        })
    };
    let four = |number: u64, connections, share| {
        endpoint(&format!("10.244.100.{}:8080", 100 + number), &node(number), connections, share)
    };
    let six = |number: u64, connections, share| {
        endpoint(&format!("[2001:db8:1234:5678:9abc:def0:1234:567{number}]:18080"), &node(number), connections, share)
    };
    json!({
        "namespace": "kube-system", "name": "prometheus-operated-a", "type": "LoadBalancer",
        "health": {"state": "degraded", "reason": "3 of 6 endpoints are not ready, and 203.0.113.7:80 is that of default/another-service-of-this-cluster"},
        "policies": kubeferry::facts::Policies::default(), "sourceRanges": [], "truncated": false, "ignored": [],
        "ports": [
            port("http", "IPv4", vec![four(1, 61_728_394, 0.5), four(2, 61_728_395, 0.5), four(3, 0, 0.0)]),
            port("http", "IPv6", vec![six(1, 61_728_394, 0.5), six(2, 61_728_395, 0.5), six(3, 0, 0.0)]),
        ],
    })
}

/// The screen comes to be that of the file: it may be drawn in parts. `KUBEFERRY_SCREENS=write` writes the file instead, for a person to
/// read the difference.
fn compare(name: &str, terminal: &Terminal) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("screens").join(format!("{name}.txt"));
    let text = |screen: &str| {
        let lines: Vec<&str> = screen.lines().map(str::trim_end).collect();
        format!("{}\n", lines.join("\n").trim_end())
    };
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    let same = || (text(&terminal.screen()) == wanted).then_some(());
    drop(until_for(Duration::from_secs(5), "the screen to be that of the file", same));
    let screen = text(&terminal.screen());
    if std::env::var_os("KUBEFERRY_SCREENS").is_some_and(|what| what == "write") {
        std::fs::write(&path, &screen).unwrap();
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(screen, wanted, "{name} looks otherwise:\n{screen}\nand not as {}:\n{wanted}", path.display());
}

#[test]
fn names_and_numbers_are_whole_at_any_width() {
    let network = Netns::new("top-screens").unwrap();
    let answer = |path: &str| {
        let facts = match path {
            "/api/v1/node" => node(),
            path if path.starts_with("/api/v1/services/") => service(),
            _ => list(),
        };
        ("200 OK", facts.to_string())
    };
    let stranger = network.run(|| Stranger::new(answer)).unwrap();
    for width in WIDTHS {
        // One look: the screen holds still.
        let flags = ["--url", &stranger.url, "--interval", "1h"];
        let mut terminal = Terminal::start(&mut top(&flags), &network, 24, width).unwrap();
        terminal.until("the list", |screen| screen.contains("q quit")).unwrap();
        compare(&format!("list-{width}"), &terminal);
        terminal.press("\r").unwrap();
        terminal.until("the Service", |screen| screen.contains("Esc back") && screen.contains("ENDPOINT")).unwrap();
        compare(&format!("service-{width}"), &terminal);
        terminal.press("q").unwrap();
        assert!(terminal.ended().unwrap().success());
    }
}
