//! When syncs start: `minSyncPeriod` after the last, with all that came meanwhile.

use std::collections::BTreeSet;

use kubeferry::facts::{SyncFacts, SyncKind};
use serde_json::Value;

use super::node::{Node, service, service_with, slice};

/// Of the last syncs: when each began and ended.
fn syncs(node: &Node) -> Vec<(f64, f64)> {
    let body = node.ask("http://127.0.0.1:10249/api/v1/history").body;
    let history: Value = serde_json::from_str(&body).unwrap();
    let items: Vec<SyncFacts> = serde_json::from_value(history["items"].clone()).unwrap();
    let end = |sync: &SyncFacts| sync.at.as_nanosecond() as f64 / 1e9;
    let mut syncs: Vec<_> = items.iter().map(|sync| (end(sync) - sync.took_seconds, end(sync))).collect();
    syncs.sort_by(|a, b| a.1.total_cmp(&b.1));
    syncs
}

#[test]
fn min_sync_period_lies_between_syncs() {
    const PERIOD: f64 = 1.5;
    let mut node = Node::new();
    node.server.apply(&service("web-0", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let url = node.server.url();
    node.start(&["--server", &url, "--iptables-min-sync-period", "1500ms"]);
    node.expect("the first sync", &["10.96.0.1:80"]);
    let mut wanted = vec!["10.96.0.1:80".to_owned()];
    for number in 2..8 {
        node.server.apply(&service(&format!("web-{number}"), &format!("10.96.0.{number}"), &["10.244.1.1"])).unwrap();
        wanted.push(format!("10.96.0.{number}:80"));
    }
    node.expect("all that came meanwhile", &wanted.iter().map(String::as_str).collect::<Vec<_>>());
    node.server.apply(&service("last", "10.96.0.9", &["10.244.1.1"])).unwrap();
    wanted.push("10.96.0.9:80".to_owned());
    node.expect("one more", &wanted.iter().map(String::as_str).collect::<Vec<_>>());
    let told = || Some(syncs(&node)).filter(|syncs| syncs.len() >= 3);
    let syncs = node.until("three syncs to be told", told);
    for pair in syncs.windows(2) {
        // The clock of what is told is read a little later than that of the pace.
        assert!(pair[1].0 - pair[0].1 > PERIOD - 0.25, "{syncs:?}");
    }
}

#[test]
fn an_update_that_leaves_the_ports_equal_is_no_sync() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.run();
    node.expect("the first sync", &["10.96.0.1:80"]);
    let labelled = service_with("web", "10.96.0.1", ", labels: {a: b}, annotations: {c: d}");
    node.server.apply(&format!("{labelled}---\n{}", slice("web", &["10.244.1.1"]))).unwrap();
    // What comes after it is there, so it has been taken in as well.
    node.server.apply(&service("more", "10.96.0.2", &["10.244.1.2"])).unwrap();
    node.expect("the change after it", &["10.96.0.1:80", "10.96.0.2:80"]);
    let changed = || {
        let history: Value = serde_json::from_str(&node.ask("http://127.0.0.1:10249/api/v1/history").body).unwrap();
        let items: Vec<SyncFacts> = serde_json::from_value(history["items"].clone()).unwrap();
        let later = items.into_iter().filter(|sync| sync.kind == SyncKind::Partial);
        let objects: BTreeSet<String> = later.flat_map(|sync| sync.objects).collect();
        Some(objects).filter(|objects| objects.contains("default/more"))
    };
    let changed = node.until("the sync to be told", changed);
    assert_eq!(changed.iter().map(String::as_str).collect::<Vec<_>>(), ["default/more"]);
}
