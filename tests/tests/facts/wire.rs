//! `--service-metrics full` beside what the client's own stack saw, by each hook that carries packets; and sockets, which are
//! connected to an endpoint without one.

use std::net::SocketAddr;
use std::path::Path;

use kubeferry_tests::bpf::sockets::Maker;
use kubeferry_tests::client::{Connection, DEADLINE, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::hosts::Host;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::sockets::without_offloads;
use kubeferry_tests::web::{MANIFESTS, Web};
use kubeferry_tests::xdp::PassAll;
use serde_json::Value;

use super::asking::json;
use super::counters::{settled, start, start_with};
use super::one_source::agree;

const HOSTS: [&str; 3] = ["web1", "web2", "client"];

on_both_datapaths! {
    packets_bytes_and_active_connections_are_those_of_the_wire,
}

/// What the client's own stack has seen of a port of the Service: packets and bytes.
fn seen(client: &Netns, name: &str) -> (u64, u64) {
    let text = client.nft(&["-j", "list", "counters"], "").unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let mut counters = all["nftables"].as_array().unwrap().iter().map(|one| &one["counter"]);
    let counter = counters.find(|counter| counter["name"] == name).unwrap();
    (counter["packets"].as_u64().unwrap(), counter["bytes"].as_u64().unwrap())
}

fn packets_bytes_and_active_connections_are_those_of_the_wire(datapath: Datapath) {
    let web = Web::build().unwrap();
    HOSTS.iter().for_each(|name| plain(&web.hosts.node, web.hosts.host(name)));
    let _running = start(&web, &datapath, "full");
    all_is_that_of_the_wire(&web, &datapath, web.client(), web.vip());
}

/// Segments that the stack splits or joins on their way would be counted as others there.
fn plain(node: &Netns, host: &Host) {
    without_offloads(&host.namespace, "eth0").unwrap();
    without_offloads(node, &host.name).unwrap();
}

/// From outside to a node port. The node forwards nothing, so all of it is carried at XDP.
#[test]
fn what_xdp_carries_is_that_of_the_wire_too() {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    let outside = Host::join(node, "outside", 9, &[[203, 0, 113, 9].into()]).unwrap();
    let hosts = [web.hosts.host("web1"), web.hosts.host("web2"), &outside];
    hosts.iter().for_each(|host| plain(node, host));
    let far = hosts.map(|host| host.namespace.run(|| PassAll::attach("eth0")).unwrap().unwrap());
    let rules = "table inet test { chain forward { type filter hook forward priority 0; policy drop; }; }";
    node.nft(&["-f", "-"], rules).unwrap();
    let ports = MANIFESTS.replace("port: 80}", "port: 80, nodePort: 30080}");
    web.write(&ports.replace("  clusterIP: 10.96.0.10\n", "  type: NodePort\n  clusterIP: 10.96.0.10\n")).unwrap();
    let datapath = Datapath::ebpf().unwrap();
    let hooks = ["--socket-lb", "off", "--xdp", "native", "--xdp-devices", "web1,web2,outside"];
    let _running = start_with(&web, &datapath, "full", &hooks);
    all_is_that_of_the_wire(&web, &datapath, &outside.namespace, ([192, 0, 2, 1], 30080).into());
    drop(far);
}

/// Of a client's connections to where the Service is.
fn all_is_that_of_the_wire(web: &Web, datapath: &Datapath, client: &Netns, to: SocketAddr) {
    let node = &web.hosts.node;
    drop(until("the Service to answer", || Connection::attempt(client, to)).unwrap());
    let value = |port: &str, field: &str| {
        let service = json(node, "/api/v1/services/default/web");
        let port = service["ports"].as_array().unwrap().iter().find(|one| one["name"] == port).unwrap().clone();
        let sum: u64 = port["endpoints"].as_array().unwrap().iter().map(|one| one[field].as_u64().unwrap()).sum();
        assert_eq!(port[field].as_u64(), Some(sum), "{field}: {port}");
        sum
    };
    // What is expected may change meanwhile: an ACK goes out later than what it is for came in.
    let becomes = |port: &str, field: &str, expected: &dyn Fn() -> u64| {
        let mut last = (0, 0);
        let is = || {
            last = (value(port, field), expected());
            (last.0 == last.1).then_some(())
        };
        if let Err(error) = until(&format!("{field} of {port}"), is) {
            panic!("{error}: {} is told, {} is right", last.0, last.1);
        }
    };
    let equal = |port: &str, field: &str, expected: u64| becomes(port, field, &|| expected);
    // Of a reading that knows the connection which was opened to see that there is an answer.
    settled(node, "tcp");
    equal("tcp", "active", 0);
    let before = ["tcp", "udp"].map(|port| (value(port, "packets"), value(port, "bytes")));
    let mut rules = String::from("table inet seen {\ncounter tcp-4 { }\ncounter udp-4 { }\n");
    for (hook, end, way) in [("output", "daddr", "dport"), ("input", "saddr", "sport")] {
        rules += &format!("chain {hook} {{ type filter hook {hook} priority 0;\n");
        for protocol in ["tcp", "udp"] {
            rules += &format!("ip {end} {} {protocol} {way} {} counter name {protocol}-4\n", to.ip(), to.port());
        }
        rules += "}\n";
    }
    client.nft(&["-f", "-"], &(rules + "}\n")).unwrap();
    let mut open: Vec<_> = (0..6).map(|_| Connection::open(client, to).unwrap()).collect();
    open.iter_mut().for_each(|connection| (0..9).for_each(|_| drop(connection.ask().unwrap())));
    let socket = datagrams(client, to).unwrap();
    (0..5).for_each(|_| drop(until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap()));
    equal("tcp", "active", 6);
    equal("udp", "active", 1);
    // While they are open, and when they have ended.
    for round in 0..2 {
        for (port, (packets, bytes)) in ["tcp", "udp"].into_iter().zip(before) {
            let seen = || seen(client, &format!("{port}-4"));
            becomes(port, "packets", &|| packets + seen().0);
            becomes(port, "bytes", &|| bytes + seen().1);
            assert!(seen().0 >= 10, "{:?}", seen());
        }
        if round == 0 {
            open.clear();
            equal("tcp", "active", 0);
            // Their entries go, too, and what they carried stays.
            if let Datapath::Nftables = datapath {
                tool(node, &["-D", "-p", "tcp"]);
            }
        }
    }
    drop(socket);
    settled(node, "udp");
    agree(node, datapath, "full");
}

/// Has `conntrack` do this on the node.
fn tool(node: &Netns, arguments: &[&str]) {
    let output = node.output(std::process::Command::new("conntrack").args(arguments), "").unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Connections, active ones, packets and bytes of a port.
fn numbers(node: &Netns, port: &str) -> [u64; 4] {
    let service = json(node, "/api/v1/services/default/web");
    let mut ports = service["ports"].as_array().unwrap().iter();
    let port = ports.find(|one| one["name"] == port).unwrap();
    ["connections", "active", "packets", "bytes"].map(|field| {
        let each = port["endpoints"].as_array().unwrap().iter().map(|one| one[field].as_u64().unwrap());
        assert_eq!(port[field].as_u64(), Some(each.sum()), "{field}: {port}");
        port[field].as_u64().unwrap()
    })
}

/// Sockets of a pod and of the node: each is counted once as it connects, until it is closed, and none of its packets.
#[test]
fn sockets_are_counted_exactly_and_their_packets_are_not() {
    let mut web = Web::build().unwrap();
    // Whose sockets are a pod's of this node.
    web.node.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    web.write(MANIFESTS).unwrap();
    let node = &web.hosts.node;
    let datapath = Datapath::ebpf().unwrap();
    let Datapath::Ebpf(places) = &datapath else { unreachable!() };
    let program = Path::new(env!("CARGO_BIN_EXE_socket-maker"));
    let makers = [web.client(), node].map(|namespace| Maker::start(program, namespace, places.cgroup()).unwrap());
    let _running = start_with(&web, &datapath, "full", &["--socket-lb", "auto", "--xdp", "off"]);
    drop(web.until_served().unwrap());
    settled(node, "tcp");
    until("no connection", || (numbers(node, "tcp")[1] == 0).then_some(())).unwrap();
    let before = ["tcp", "udp"].map(|port| numbers(node, port));
    let becomes = |port: usize, more: [u64; 2]| {
        let [opened, _, packets, bytes] = before[port];
        let (name, expected) = (["tcp", "udp"][port], [opened + more[0], more[1], packets, bytes]);
        let mut last = [0; 4];
        let is = || {
            last = numbers(node, name);
            (last == expected).then_some(())
        };
        let waited = until(&format!("{name} to be {expected:?}"), is);
        waited.unwrap_or_else(|error| panic!("{error}: {last:?}"));
    };
    let connect = |maker: &Maker| {
        let stream = maker.tcp(false).unwrap().connect(web.vip(), DEADLINE).unwrap();
        let datagrams = maker.udp(false).unwrap();
        datagrams.connect(web.vip()).unwrap();
        (stream, datagrams)
    };
    let mut open: Vec<_> = makers.iter().flat_map(|maker| (0..6).map(|_| connect(maker)).collect::<Vec<_>>()).collect();
    for (_, datagrams) in &open {
        (0..3).for_each(|_| drop(until("a datagram's answer", || ask_once(datagrams).unwrap()).unwrap()));
    }
    becomes(0, [12, 12]);
    becomes(1, [12, 12]);
    // A datagram of a socket that is not connected has no end that somebody sees; those after it are the same one's.
    let loose = makers[0].udp(false).unwrap();
    (0..4).for_each(|_| assert_eq!(loose.send_to(b"?\n", web.vip()).unwrap(), 2));
    becomes(1, [13, 12]);
    open.truncate(5);
    becomes(0, [12, 5]);
    becomes(1, [13, 5]);
    open.clear();
    becomes(0, [12, 0]);
    becomes(1, [13, 0]);
    agree(node, &datapath, "full");
}
