//! Connections of one client and port to one endpoint at a time, some of them by ways that no program for packets sees: to the
//! endpoint itself, or translated when the socket connected. The endpoint has to tell them apart.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use kubeferry_tests::bpf::sockets::Maker;
use kubeferry_tests::client::{DEADLINE, ask_once, until};
use rustix::net::sockopt::set_socket_reuseaddr;

use super::cluster::{Cluster, NODE, answer, plain, socket};

/// To an endpoint, past every Service.
const DIRECT: [&str; 2] = ["10.244.1.1:8080", "[fd00:10:244:1::1]:8080"];
/// Translated when the socket connects.
const BY_SOCKET: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
/// Translated by packets, because of ClientIP affinity.
const BY_PACKETS: [&str; 2] = ["10.96.0.14:80", "[fd00:10:96::14]:80"];
/// Translated by packets and masqueraded, if a pod connects.
const MASQUERADED: [&str; 2] = ["198.51.100.10:80", "[2001:db8:100::10]:80"];

const POD: [&str; 2] = ["10.244.1.7", "fd00:10:244:1::7"];
const ON_NODE: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];

/// `web1` is the one endpoint of every Service here.
fn cluster(node: &str, flags: &[&str]) -> Cluster {
    let cluster = Cluster::start(node, flags);
    cluster.change(&["1"]);
    for to in BY_SOCKET.into_iter().chain(BY_PACKETS).map(socket) {
        let alone = || {
            let connect = |_| cluster.pod_sockets.tcp(to.is_ipv6()).unwrap().connect(to, DEADLINE).unwrap();
            (0..8).map(connect).all(|stream| ask(&stream).0 == "web1").then_some(())
        };
        until("web1 to be the one endpoint", alone).unwrap();
    }
    cluster
}

/// A question over a connection that stays: who answers, and whom it sees.
fn ask(mut stream: &TcpStream) -> (String, SocketAddr) {
    stream.write_all(b"?\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    answer(line.as_bytes())
}

fn connect(maker: &Maker, from: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = maker.tcp(to.is_ipv6()).unwrap().bind_beside_others(from).unwrap();
    socket.connect(to, DEADLINE).unwrap_or_else(|error| panic!("{from} to {to}: {error}"))
}

/// Connects from one port by these ways, one after the other, and asks over all of them, in this order and back.
fn all_at_a_time(maker: &Maker, from: SocketAddr, ways: &[SocketAddr]) {
    let mut streams: Vec<(TcpStream, SocketAddr)> = Vec::new();
    for to in ways {
        let stream = connect(maker, from, *to);
        let seen = ask(&stream).1;
        assert!(streams.iter().all(|(_, other)| *other != seen), "{from} to {ways:?}: two are seen as {seen}");
        streams.push((stream, plain(seen)));
    }
    for _ in 0..2 {
        for (stream, seen) in &streams {
            assert_eq!(ask(stream), ("web1".to_owned(), *seen), "{from} to {ways:?}");
        }
        streams.reverse();
    }
    // The end of one is not the others'.
    while streams.pop().is_some() {
        streams.iter().for_each(|(stream, seen)| assert_eq!(ask(stream).1, *seen));
    }
}

/// From ports of its own for each family, way past the programs and order.
fn every_order(maker: &Maker, client: [&str; 2], past: &[[&str; 2]], others: &[[&str; 2]]) {
    let mut port = 41_000;
    for family in 0..2 {
        for way in past {
            let mut ways: Vec<_> = [way].into_iter().chain(others).map(|to| socket(to[family])).collect();
            for _ in 0..2 {
                all_at_a_time(maker, SocketAddr::new(client[family].parse().unwrap(), port), &ways);
                port += 1;
                ways.reverse();
            }
        }
    }
}

#[test]
fn a_pods_port_reaches_one_endpoint_by_ways_that_packets_do_not_show() {
    let cluster = cluster(NODE, &[]);
    every_order(&cluster.pod_sockets, POD, &[DIRECT, BY_SOCKET], &[BY_PACKETS]);
    every_order(&cluster.pod_sockets, POD, &[DIRECT, BY_SOCKET], &[MASQUERADED]);
    every_order(&cluster.pod_sockets, POD, &[DIRECT, BY_SOCKET], &[BY_PACKETS, MASQUERADED]);
}

#[test]
fn the_nodes_port_reaches_one_endpoint_by_ways_that_packets_do_not_show() {
    let cluster = cluster(NODE, &[]);
    every_order(&cluster.node_sockets, ON_NODE, &[DIRECT, BY_SOCKET], &[BY_PACKETS]);
}

#[test]
fn the_nodes_port_keeps_its_endpoint_where_the_source_stays() {
    let without_a_detector = NODE.replace("cluster-cidr", "# cluster-cidr").replace("pod-cidrs", "# pod-cidrs");
    let cluster = cluster(&without_a_detector, &[]);
    // The other order is one of the differences in the backend's README.
    for (port, way) in (41_000..).zip([DIRECT, BY_SOCKET]) {
        for family in 0..2 {
            let from = SocketAddr::new(ON_NODE[family].parse().unwrap(), port);
            all_at_a_time(&cluster.node_sockets, from, &[way, BY_PACKETS].map(|to| socket(to[family])));
        }
    }
}

#[test]
fn the_nodes_port_reaches_an_endpoint_in_the_host_network_by_ways_that_packets_do_not_show() {
    let cluster = cluster(NODE, &[]);
    let serve = |ip: &str| {
        let listener = cluster.hosts.node.run(|| TcpListener::bind((ip, 8080))).unwrap().unwrap();
        thread::spawn(move || {
            listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| converse(stream))))
        });
    };
    ON_NODE.into_iter().for_each(serve);
    let itself = ["192.0.2.1:8080", "[2001:db8:2::1]:8080"];
    every_order(&cluster.node_sockets, ON_NODE, &[itself], &[["10.96.0.18:80", "[fd00:10:96::18]:80"]]);
    every_order(&cluster.pod_sockets, POD, &[itself], &[["10.96.0.18:80", "[fd00:10:96::18]:80"]]);
}

/// Answers as `web1` does, until the client has gone.
fn converse(stream: TcpStream) {
    let client = stream.peer_addr().unwrap();
    for _ in BufReader::new(&stream).lines().map_while(Result::ok) {
        if (&stream).write_all(format!("web1 {client}\n").as_bytes()).is_err() {
            break;
        }
    }
}

#[test]
fn masqueraded_connections_leave_the_nodes_own_ports_alone() {
    let cluster = cluster(NODE, &["--masquerade-ports", "20000-20063"]);
    for family in 0..2 {
        let (ip, to) = (ON_NODE[family].parse().unwrap(), socket(DIRECT[family]));
        let own = |port| connect(&cluster.node_sockets, SocketAddr::new(ip, port), to);
        let mut streams: Vec<_> = (20_000..20_032).map(own).collect();
        let service = socket(MASQUERADED[family]);
        let masqueraded = |_| cluster.pod_sockets.tcp(service.is_ipv6()).unwrap().connect(service, DEADLINE).unwrap();
        streams.extend((0..8).map(masqueraded));
        let seen: Vec<_> = streams.iter().map(|stream| ask(stream).1).collect();
        // Now the node takes a port that one of them has been given.
        streams.push(own(seen[39].port()));
        let mut seen: BTreeSet<_> = streams.iter().map(|stream| ask(stream).1).collect();
        assert_eq!(seen.len(), streams.len(), "{seen:?}");
        seen.retain(|seen| seen.ip() != ip);
        assert!(seen.is_empty(), "not masqueraded: {seen:?}");
    }
}

#[test]
fn datagrams_of_a_connected_socket_stay_its_own() {
    let cluster = cluster(NODE, &[]);
    for (maker, client) in [(&cluster.pod_sockets, POD), (&cluster.node_sockets, ON_NODE)] {
        for family in 0..2 {
            let from = SocketAddr::new(client[family].parse().unwrap(), 41_000);
            let open = |to: &str| {
                let udp = maker.udp(from.is_ipv6()).unwrap();
                set_socket_reuseaddr(&udp, true).unwrap();
                rustix::net::bind(&udp, &from).unwrap();
                udp.connect(socket(to)).unwrap();
                udp
            };
            let answered = |socket| until("an answer", || ask_once(socket).unwrap()).unwrap();
            let sockets = [open(DIRECT[family]), open(BY_PACKETS[family])];
            for _ in 0..2 {
                let [direct, by_packets] = sockets.each_ref().map(answered);
                assert_eq!((direct.0, by_packets.0), ("web1".to_owned(), "web1".to_owned()));
                assert_ne!(direct.1, by_packets.1);
            }
        }
    }
}

#[test]
fn a_port_that_has_asked_a_service_asks_its_endpoint_and_is_answered() {
    let cluster = cluster(NODE, &[]);
    for (maker, client) in [(&cluster.pod_sockets, POD), (&cluster.node_sockets, ON_NODE)] {
        for family in 0..2 {
            for (port, direct) in (42_000..).zip([DIRECT, BY_SOCKET]) {
                let from = SocketAddr::new(client[family].parse().unwrap(), port);
                let open = |to: &str| {
                    let udp = maker.udp(from.is_ipv6()).unwrap();
                    rustix::net::bind(&udp, &from).unwrap();
                    udp.connect(socket(to)).unwrap();
                    udp
                };
                // The question is over, its entries are not.
                for to in [BY_PACKETS[family], direct[family], BY_PACKETS[family]] {
                    let udp = open(to);
                    for _ in 0..3 {
                        let (who, _) = ask_once(&udp).unwrap().unwrap_or_else(|| panic!("{from} to {to}: no answer"));
                        assert_eq!(who, "web1");
                    }
                }
            }
        }
    }
}
