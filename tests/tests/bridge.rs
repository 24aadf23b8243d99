//! Several pods on one bridge of the node, as with the CNI plugin `bridge`. What goes from one to another does not pass the
//! node's IP layer: without `net.bridge.bridge-nf-call-iptables` an answer bypasses connection tracking, and the client gets
//! it from the pod's own address.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use kubeferry_tests::bridge::{BRIDGE, Bridged, GATEWAYS, PODS, VIPS};
use kubeferry_tests::client::{Connection, DEADLINE, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::forging::{Victim, outlived};
use kubeferry_tests::hosts::Host;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::packets::FrameSocket;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sends datagrams to a Service until one is answered; returns whom the answer is from, and the client as the server saw it.
fn answered_by(from: &Netns, vip: SocketAddr) -> (SocketAddr, SocketAddr) {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Not connected: it takes answers from anybody.
    let socket = from.run(|| UdpSocket::bind(any).unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE / 60)).unwrap();
    let mut buffer = [0; 128];
    let attempt = || {
        socket.send_to(b"?\n", vip).unwrap();
        socket.recv_from(&mut buffer).ok()
    };
    let (length, answers) = until("an answer over UDP", attempt).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    (answers, text.trim_end().split_once(' ').unwrap().1.parse().unwrap())
}

#[test]
fn without_bridge_netfilter_an_answer_bypasses_the_node() {
    let cluster = Bridged::start(Datapath::Nftables, false, false).unwrap();
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        let (answers, seen) = answered_by(cluster.pod("client"), vip);
        assert_eq!(seen.ip(), ip(PODS[1].1[family]), "the question comes through, with the pod's own address");
        assert_eq!(answers, SocketAddr::new(ip(PODS[0].1[family]), 8080), "the answer is not from the Service");
    }
}

#[test]
fn with_bridge_netfilter_pods_of_one_bridge_reach_each_other_through_a_service() {
    let cluster = Bridged::start(Datapath::Nftables, true, false).unwrap();
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        let mut connection = Connection::open(cluster.pod("client"), vip).unwrap();
        let (server, seen) = connection.ask().unwrap();
        assert_eq!((server.as_str(), seen), ("web", connection.local().unwrap()), "the source is kept");
        let (answers, seen) = answered_by(cluster.pod("client"), vip);
        assert_eq!((answers, seen.ip()), (vip, ip(PODS[1].1[family])));
    }
    // The packet would have to leave by the port that it came in by, which a bridge does not do unless told to.
    cluster.node.ip(&["link set web type bridge_slave hairpin on"]).unwrap();
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        let (server, seen) = Connection::open(cluster.pod("web"), vip).unwrap().ask().unwrap();
        assert_eq!((server.as_str(), seen.ip()), ("web", ip(GATEWAYS[family])), "a hairpin is masqueraded");
    }
}

#[test]
fn ebpf_needs_no_bridge_netfilter() {
    for call in [false, true] {
        let cluster = Bridged::start(Datapath::ebpf().unwrap(), call, false).unwrap();
        for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
            let mut connection = Connection::open(cluster.pod("client"), vip).unwrap();
            let (server, seen) = connection.ask().unwrap();
            assert_eq!((server.as_str(), seen), ("web", connection.local().unwrap()), "the source is kept");
            let (answers, seen) = answered_by(cluster.pod("client"), vip);
            assert_eq!((answers, seen.ip()), (vip, ip(PODS[1].1[family])));
            let (server, seen) = Connection::open(cluster.pod("web"), vip).unwrap().ask().unwrap();
            assert_eq!((server.as_str(), seen.ip()), ("web", ip(GATEWAYS[family])), "a hairpin is masqueraded");
        }
    }
}

#[test]
fn masquerade_all_serves_pods_of_one_bridge_without_bridge_netfilter() {
    let cluster = Bridged::start(Datapath::Nftables, false, true).unwrap();
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        // A hairpin too: the node routes it, the bridge has no part in it.
        for pod in ["client", "web"] {
            let (server, seen) = Connection::open(cluster.pod(pod), vip).unwrap().ask().unwrap();
            assert_eq!((server.as_str(), seen.ip()), ("web", ip(GATEWAYS[family])), "from {pod}");
        }
        let (answers, seen) = answered_by(cluster.pod("client"), vip);
        assert_eq!((answers, seen.ip()), (vip, ip(GATEWAYS[family])));
    }
}

/// What a pod sends on by way of the bridge has come in by the bridge, whichever of its pods that was.
#[test]
fn a_pod_ends_no_connection_of_another_of_its_bridge() {
    let cluster = Bridged::start(Datapath::ebpf().unwrap(), false, false).unwrap();
    let (client, endpoint) = (ip("203.0.113.9"), SocketAddr::new(ip(PODS[0].1[0]), 8080));
    let outside = Host::join(&cluster.node, "outside", 9, &[client]).unwrap();
    let wire = cluster.pod("client").run(|| FrameSocket::open("eth0")).unwrap().unwrap();
    // From the second pod.
    let macs = [BRIDGE, [2, 0, 0, 0, 2, 1]];
    let open = |_| Victim::open(&outside.namespace, VIPS[0].parse().unwrap(), endpoint);
    assert!(open(0).unwrap().is_masqueraded());
    outlived(&wire, macs, open).unwrap();
}

/// What is masqueraded leaves by the bridge, and by its port, where it looks as if connection tracking had given it its address.
#[test]
fn a_client_over_udp_keeps_its_port_where_packets_leave_twice() {
    let cluster = Bridged::start(Datapath::ebpf().unwrap(), false, false).unwrap();
    let outside = Host::join(&cluster.node, "outside", 9, &[ip("203.0.113.9")]).unwrap();
    let vip = VIPS[0].parse().unwrap();
    drop(until("the Service to answer", || Connection::attempt(&outside.namespace, vip)).unwrap());
    let socket = datagrams(&outside.namespace, vip).unwrap();
    let seen = || ask_once(&socket).unwrap().expect("an answer").1;
    let first = seen();
    assert_eq!(first.ip(), ip(GATEWAYS[0]), "it is masqueraded");
    for question in 1..6 {
        assert_eq!(seen(), first, "question {question}");
    }
}
