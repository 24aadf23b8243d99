//! What was counted goes on being told: over harm that somebody does to the table, of endpoints that have left while their
//! connections go on, and of the Service that it was counted for.

use std::process::Command;

use kubeferry_tests::binary;
use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::{MANIFESTS, Web};
use serde_json::{Value, json as value};

use super::asking::{json, try_json};
use super::counters::{change, manifests, metric, open, settled, start, until_all};

on_both_datapaths! {
    who_has_left_and_has_connections_is_told,
    a_renamed_service_begins_at_nothing,
}

/// The objects of [`manifests`], with connections given in turn.
fn in_turn(endpoints: usize) -> String {
    let name = "{name: web, namespace: default}";
    let annotated = "{name: web, namespace: default, annotations: {kubeferry.dev/scheduler: rr}}";
    manifests("", endpoints).replace(name, annotated)
}

/// Port `tcp` of a Service; null while there is none.
fn port(node: &Netns, service: &str) -> Value {
    let facts = try_json(node, &format!("/api/v1/services/default/{service}")).unwrap_or_default();
    let mut ports = facts["ports"].as_array().into_iter().flatten();
    ports.find(|port| port["name"] == "tcp").cloned().unwrap_or_default()
}

/// A field of each endpoint of a port.
fn each(port: &Value, field: &str) -> Vec<u64> {
    port["endpoints"].as_array().unwrap().iter().map(|one| one[field].as_u64().unwrap()).collect()
}

#[test]
fn what_was_read_of_rows_outlives_the_table_and_its_rows() {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    web.write(&in_turn(2)).unwrap();
    let _running = start(&web, &Datapath::Nftables, "connections");
    drop(web.until_served().unwrap());
    let rows =
        || node.nft(&["list", "map", "inet", "kubeferry", "turns4"], "").ok().filter(|text| text.contains("8080"));
    let mut told = settled(node, "tcp");
    let mut more = |count: usize| {
        open(&web, web.vip(), count);
        told += count as u64;
        let each = until_all(node, "tcp", told);
        assert_eq!(each.iter().map(|(_, count)| count).sum::<u64>(), told, "{each:?}");
        assert_eq!(metric(node, "tcp"), told);
    };
    more(20);
    // Nobody looks between the harm and more connections than the rows had counted.
    node.nft(&["delete", "table", "inet", "kubeferry"], "").unwrap();
    until("the table", rows).unwrap();
    more(31);
    more(2);
    let text = rows().unwrap();
    let mut all_rows = text.split_once("elements = {").unwrap().1.split([',', '}']);
    let row = all_rows.find(|row| !row.contains("packets 0 ")).unwrap();
    let (key, _) = row.split_once(" counter ").unwrap();
    node.nft(&["delete", "element", "inet", "kubeferry", "turns4", &format!("{{ {key} }}")], "").unwrap();
    let all = text.matches("8080").count();
    until("the row", || rows().filter(|text| text.matches("8080").count() == all)).unwrap();
    more(60);
    more(3);
}

fn who_has_left_and_has_connections_is_told(datapath: Datapath) {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    web.write(&in_turn(2)).unwrap();
    let _running = start(&web, &datapath, "full");
    drop(web.until_served().unwrap());
    until("no connection", || (port(node, "web")["active"] == 0).then_some(())).unwrap();
    let mut connections: Vec<_> = (0..10).map(|_| Connection::open(web.client(), web.vip()).unwrap()).collect();
    connections.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
    until("ten connections", || (port(node, "web")["active"] == 10).then_some(())).unwrap();
    change(&web, &in_turn(1));
    // Both before somebody has read the counters again, and afterwards.
    for _ in 0..2 {
        let told = port(node, "web");
        assert_eq!((&told["active"], each(&told, "active")), (&value!(10), vec![5, 5]), "{told}");
        let [stays, left] = told["endpoints"].as_array().unwrap().as_slice() else { panic!("{told}") };
        let state = |of: &Value| ["draining", "ready", "serving"].map(|field| of[field].clone());
        assert_eq!(state(stays), [value!(false), value!(true), value!(true)], "{told}");
        assert_eq!(state(left), [value!(true), value!(false), value!(false)], "{told}");
        assert_eq!((&left["address"], &left["weight"]), (&value!("10.244.1.2:8080"), &value!(0)));
        assert_eq!(told["connections"].as_u64(), Some(each(&told, "connections").iter().sum()), "{told}");
        assert_eq!(told["counts"]["ready"], 1);
        settled(node, "tcp");
    }
    let mut top = Command::new(binary::path().unwrap());
    let output = node.output(top.args(["top", "--plain", "--count", "1", "--service", "web"]), "").unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("10.244.1.2:8080") && line.contains("draining")), "{text}");
    connections.clear();
    until("no connection", || (port(node, "web")["active"] == 0).then_some(())).unwrap();
}

fn a_renamed_service_begins_at_nothing(datapath: Datapath) {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let _running = start(&web, &datapath, "full");
    drop(web.until_served().unwrap());
    let before = settled(node, "tcp");
    let mut old: Vec<_> = (0..6).map(|_| Connection::open(web.client(), web.vip()).unwrap()).collect();
    old.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
    until_all(node, "tcp", before + 6);
    let renamed =
        MANIFESTS.replace("{name: web,", "{name: renamed,").replace("service-name: web", "service-name: renamed");
    web.write(&renamed).unwrap();
    let numbers = |port: &Value| ["connections", "active", "packets", "bytes"].map(|field| port[field].clone());
    let nothing = [0, 0, 0, 0].map(Value::from);
    until("the other name, counted", || port(node, "renamed")["active"].is_number().then_some(())).unwrap();
    let read = || json(node, "/api/v1/node")["traffic"]["read"].clone();
    for _ in 0..3 {
        old.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
        let told = port(node, "renamed");
        assert_eq!(numbers(&told), nothing, "{told}");
        assert!(each(&told, "connections").iter().chain(&each(&told, "active")).all(|count| *count == 0), "{told}");
        let before = read();
        until("the counters to be read again", || (read() != before).then_some(())).unwrap();
    }
    let mut new: Vec<_> = (0..4).map(|_| Connection::open(web.client(), web.vip()).unwrap()).collect();
    new.iter_mut().for_each(|connection| drop(connection.ask().unwrap()));
    let is_told = || (numbers(&port(node, "renamed"))[..2] == [4, 4].map(Value::from)).then_some(());
    until("four connections", is_told).unwrap();
    // Those of before end unnoticed.
    old.clear();
    let before = read();
    until("the counters to be read again", || (read() != before).then_some(())).unwrap();
    let told = port(node, "renamed");
    assert_eq!(numbers(&told)[..2], [4, 4].map(Value::from), "{told}");
    assert!(told["packets"].as_u64().unwrap() <= 4 * 12, "{told}");
}
