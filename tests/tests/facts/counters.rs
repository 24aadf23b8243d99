//! `--service-metrics` on both datapaths: known connections, and what is told of them.

use kubeferry_tests::client::{Connection, Running, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::{MANIFESTS, Web};
use serde_json::Value;

use super::asking::{ask, json, try_json};

/// The Service of [`MANIFESTS`] with other lines in its `spec`, and its endpoints up to this one.
pub fn manifests(spec: &str, endpoints: usize) -> String {
    let all =
        "endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}, {addresses: [10.244.1.2], nodeName: worker-1}]";
    let some: Vec<String> =
        (1..=endpoints).map(|last| format!("{{addresses: [10.244.1.{last}], nodeName: worker-1}}")).collect();
    let changed = MANIFESTS.replace("  clusterIP: 10.96.0.10\n", &format!("  clusterIP: 10.96.0.10\n{spec}"));
    assert!(changed.contains(all));
    changed.replace(all, &format!("endpoints: [{}]", some.join(", ")))
}

on_both_datapaths! {
    connections_are_counted_exactly_over_changes_and_a_restart,
    known_clients_and_every_address_are_counted,
}

pub fn start(web: &Web, datapath: &Datapath, level: &str) -> Running {
    // Packets of translated sockets are not counted.
    start_with(web, datapath, level, &["--socket-lb", "off", "--xdp", "off"])
}

/// The same with other flags for eBPF's hooks.
pub fn start_with(web: &Web, datapath: &Datapath, level: &str, hooks: &[&str]) -> Running {
    let mut command = web.source.command("run").unwrap();
    command.args(["--service-metrics", level]);
    if let Datapath::Ebpf(places) = datapath {
        places.apply(&mut command).args(hooks);
    }
    let running = Running::start_command(&mut command, &web.hosts.node).unwrap();
    until("the proxy to have synced", || {
        try_json(&web.hosts.node, "/api/v1/node").filter(|node| node["sync"]["succeeded"].as_u64() > Some(0))
    })
    .unwrap();
    running
}

/// What is told of a port: the connections of each endpoint, and of all.
fn told(node: &Netns, port: &str) -> (Vec<(String, u64)>, u64) {
    let service = json(node, "/api/v1/services/default/web");
    let port = service["ports"].as_array().unwrap().iter().find(|one| one["name"] == port).unwrap().clone();
    let number = |value: &Value| value["connections"].as_u64().unwrap_or_else(|| panic!("{value}"));
    let each = |one: &Value| (one["address"].as_str().unwrap().to_owned(), number(one));
    (port["endpoints"].as_array().unwrap().iter().map(each).collect(), number(&port))
}

fn all(node: &Netns, port: &str) -> u64 {
    told(node, port).1
}

/// Waits until so many are told of a port: counters are read again only after a while. The connections of each endpoint.
pub fn until_all(node: &Netns, port: &str, expected: u64) -> Vec<(String, u64)> {
    let mut last = 0;
    let equal = || {
        let (each, total) = told(node, port);
        last = total;
        (total == expected).then_some(each)
    };
    until(&format!("{expected} connections of {port}"), equal).unwrap_or_else(|error| panic!("{error}: {last}"))
}

/// What is told of a port when nothing goes by.
pub fn settled(node: &Netns, port: &str) -> u64 {
    let read = || json(node, "/api/v1/node")["traffic"]["read"].clone();
    let before = read();
    until("the counters to be read again", || (read() != before).then_some(())).unwrap();
    all(node, port)
}

/// The value of `/metrics` for a port.
pub fn metric(node: &Netns, port: &str) -> u64 {
    let text = ask(node, "/metrics").body;
    let is = |line: &&str| {
        line.starts_with("kubeferry_service_connections_total{") && line.contains(&format!("port=\"{port}\""))
    };
    let line = text.lines().find(is).unwrap_or_else(|| panic!("no series of {port}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Opens so many connections; the endpoints that answered.
pub fn open(web: &Web, to: std::net::SocketAddr, count: usize) -> Vec<String> {
    let ask = |_| Connection::open(web.client(), to).unwrap().ask().unwrap().0;
    (0..count).map(ask).collect()
}

/// Puts other objects there and waits until they are in force.
pub fn change(web: &Web, manifests: &str) {
    let newest = || json(&web.hosts.node, "/api/v1/history")["newest"].as_u64().unwrap();
    let before = newest();
    web.write(manifests).unwrap();
    until("the change to be in force", || (newest() > before).then_some(())).unwrap();
}

fn connections_are_counted_exactly_over_changes_and_a_restart(datapath: Datapath) {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let running = start(&web, &datapath, "connections");
    drop(web.until_served().unwrap());
    let before = settled(node, "tcp");
    let names = open(&web, web.vip(), 40);
    let total = before + 40;
    let each = until_all(node, "tcp", total);
    assert_eq!(each.iter().map(|(_, count)| count).sum::<u64>(), total);
    let second = names.iter().filter(|name| *name == "web2").count() as u64;
    assert!((second..=second + before).contains(&each[1].1), "{each:?}: {second} of {before} + 40");
    assert_eq!(metric(node, "tcp"), total);

    // Packets of a connection that is there already are none.
    let socket = datagrams(web.client(), web.vip()).unwrap();
    let udp = settled(node, "udp");
    (0..5).for_each(|_| drop(until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap()));
    until_all(node, "udp", udp + 1);

    // A row that goes takes what it counted with it.
    change(&web, &manifests("", 1));
    assert_eq!(settled(node, "tcp"), total, "an endpoint left");
    open(&web, web.vip(), 7);
    change(&web, &manifests("", 2));
    open(&web, web.vip(), 8);
    let each = until_all(node, "tcp", total + 15);
    assert!(each[1].1 <= second + before + 8, "{each:?}");
    // An endpoint that comes and goes between two looks is counted, too.
    change(&web, &manifests("", 1));
    change(&web, &manifests("", 2));
    open(&web, web.vip(), 12);
    change(&web, &manifests("", 1));
    change(&web, &manifests("", 2));
    let total = total + 12;
    until_all(node, "tcp", total + 15);
    change(&web, &manifests("  externalIPs: [192.0.2.77]\n", 2));
    assert_eq!(settled(node, "tcp"), total + 15, "an address more");

    // What somebody else does to other rows costs no count.
    if let Datapath::Nftables = datapath {
        node.nft(&["-f", "-"], "delete element inet kubeferry frontends4 { 10.96.0.10 . tcp . 80 }").unwrap();
        until("the repair", || (json(node, "/api/v1/node")["drift"]["repairs"] == 1).then_some(())).unwrap();
    }
    open(&web, web.vip(), 3);
    until_all(node, "tcp", total + 18);
    assert_eq!(metric(node, "tcp"), total + 18);

    // A restart begins with what the rows hold, and goes on.
    assert!(running.stop().unwrap().success());
    open(&web, web.vip(), 4);
    let _again = start(&web, &datapath, "connections");
    let held = settled(node, "tcp");
    let (each, _) = told(node, "tcp");
    assert_eq!(each.iter().map(|(_, count)| count).sum::<u64>(), held);
    assert!(held >= 4 + 3 && held <= total + 22, "{held}");
    open(&web, web.vip(), 5);
    until_all(node, "tcp", held + 5);
}

fn known_clients_and_every_address_are_counted(datapath: Datapath) {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let spec = "  type: NodePort\n  sessionAffinity: ClientIP\n  externalIPs: [192.0.2.77]\n";
    for annotations in ["{}", "{kubeferry.dev/scheduler: rr}"] {
        let objects =
            manifests(spec, 2).replace("{name: tcp, port: 80}", "{name: tcp, port: 80, nodePort: 30080}").replace(
                "{name: web, namespace: default}",
                &format!("{{name: web, namespace: default, annotations: {annotations}}}"),
            );
        web.write(&objects).unwrap();
        let running = start(&web, &datapath, "connections");
        drop(web.until_served().unwrap());
        let before = settled(node, "tcp");
        let mut names = open(&web, web.vip(), 6);
        names.extend(open(&web, ([192, 0, 2, 77], 80).into(), 6));
        names.extend(open(&web, ([192, 0, 2, 1], 30080).into(), 6));
        assert!(names.iter().all(|name| *name == names[0]), "one client, one endpoint: {names:?}");
        let each = until_all(node, "tcp", before + 18);
        let of = if names[0] == "web1" { 0 } else { 1 };
        assert!(each[of].1 >= 18 && each[1 - of].1 <= before, "{each:?}");
        assert!(running.stop().unwrap().success());
    }
}

#[test]
fn without_service_metrics_nothing_is_counted_nor_told() {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let running = start(&web, &Datapath::Nftables, "off");
    drop(web.until_served().unwrap());
    let traffic = json(node, "/api/v1/node")["traffic"].clone();
    assert_eq!((&traffic["level"], &traffic["countsConnections"]), (&"off".into(), &false.into()), "{traffic}");
    let service = json(node, "/api/v1/services/default/web");
    assert_eq!(service["ports"][0]["connections"], Value::Null);
    assert!(!ask(node, "/metrics").body.contains("kubeferry_service_connections_total{"));
    let list = || node.nft(&["list", "table", "inet", "kubeferry"], "").unwrap();
    assert!(!list().contains("counter"));
    assert!(running.stop().unwrap().success());
    // Another level is another table; connections go on being served meanwhile.
    let _running = start(&web, &Datapath::Nftables, "connections");
    until("rows that count", || list().contains("counter packets").then_some(())).unwrap();
}

#[test]
fn programs_count_connections_for_schedulers_though_metrics_have_none() {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let _running = start(&web, &Datapath::ebpf().unwrap(), "off");
    drop(web.until_served().unwrap());
    let before = settled(node, "tcp");
    open(&web, web.vip(), 3);
    until_all(node, "tcp", before + 3);
    assert!(!ask(node, "/metrics").body.contains("kubeferry_service_connections_total{"));
}
