//! Sockets that are translated when they connect or send, and those that are left to packets: what clients get, what they
//! are told, and by which of the two.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod cluster;
mod datagrams;
mod held;
mod one_port;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};

use cluster::{By, Cluster, NODE, answer, ask, exchange, forms, socket};
use kubeferry_ebpf_common::SocketConnection;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_tests::client::{DEADLINE, until};

const WEB: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const WEBS: &[&str] = &["web1", "web2"];

#[test]
fn cluster_ips_are_translated_when_sockets_connect_or_send() {
    let cluster = Cluster::start(NODE, &[]);
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for to in WEB {
            cluster.reaches(maker, to, WEBS, false, By::Socket);
        }
        for to in WEB {
            let mut servers = BTreeSet::new();
            let both = || {
                servers.insert(cluster.tcp(maker.tcp(socket(to).is_ipv6()).unwrap(), socket(to)).server);
                (servers.len() == 2).then_some(())
            };
            until("both endpoints to answer", both).unwrap();
        }
    }
    cluster.no_packet_was_translated();
}

#[test]
fn an_unconnected_socket_stays_with_its_endpoint() {
    let cluster = Cluster::start(NODE, &[]);
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for (v6, to) in WEB.iter().flat_map(|to| forms(to)) {
            let socket = maker.udp(v6).unwrap();
            let servers: BTreeSet<_> = (0..20).map(|_| exchange(&socket, to).unwrap().0).collect();
            assert_eq!(servers.len(), 1, "{to}");
            // `exchange` looks where the answer is from.
            assert!(cluster.pinned.forget_services().unwrap() > 0);
            assert!(exchange(&socket, to).is_some());
        }
    }
}

/// That of MPTCP: the kernel says nothing of its end, so it would count as active for good.
#[test]
fn a_socket_that_the_kernel_makes_for_itself_is_left_to_packets() {
    let cluster = Cluster::start(NODE, &[]);
    let is_idle = || cluster.pinned.backends().unwrap().iter().all(|backend| backend.active == 0).then_some(());
    until("the first connections to be over", is_idle).unwrap();
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for (v6, to) in WEB.iter().flat_map(|to| forms(to)) {
            let reached = cluster.tcp(maker.mptcp(v6).unwrap(), to);
            assert!(WEBS.contains(&reached.server.as_str()), "{to}: {reached:?}");
            assert_eq!(reached.by, By::Packets, "{to}: {reached:?}");
            until("nothing to count as active", is_idle).unwrap();
        }
    }
    assert!(cluster.socket_connections().rows().unwrap().is_empty());
}

/// While connections come from maps of other sizes, those may know a socket that ours do not.
#[test]
fn a_socket_that_is_closed_while_maps_are_moved_is_noted_until_that_is_over() {
    let mut cluster = Cluster::start(NODE, &[]);
    let stream = cluster.pod_sockets.tcp(false).unwrap().connect(socket(WEB[0]), DEADLINE).unwrap();
    drop(cluster.running.take());
    let sockets = cluster.socket_connections();
    let known: Vec<u64> = sockets.rows().unwrap().into_iter().map(|(cookie, _)| cookie).collect();
    assert_eq!(known.len(), 1);
    sockets.delete(&known).unwrap();
    cluster.pinned.set_moving(true).unwrap();
    drop(stream);
    until("a word of it", || sockets.get(&known[0]).unwrap().filter(SocketConnection::is_closed)).unwrap();
    // As if it had been killed on the way.
    cluster.start_again();
    until("the next start to end that", || sockets.get(&known[0]).unwrap().is_none().then_some(())).unwrap();
    cluster.until_served();
}

#[test]
fn sockets_that_come_and_go_take_nothing_from_those_that_stay() {
    let cluster = Cluster::start(NODE, &["--map-sizes", "sockets=64"]);
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for to in WEB.map(socket) {
            let connect = || maker.tcp(to.is_ipv6()).unwrap().connect(to, DEADLINE).unwrap();
            let stream = connect();
            let datagrams = maker.udp(to.is_ipv6()).unwrap();
            datagrams.connect(to).unwrap();
            for _ in 0..500 {
                drop(connect());
            }
            assert_eq!((stream.peer_addr().unwrap(), datagrams.peer_addr().unwrap()), (to, to));
            ask(stream);
        }
    }
    cluster.no_packet_was_translated();
}

#[test]
fn a_bound_socket_keeps_its_address() {
    let cluster = Cluster::start(NODE, &[]);
    for (maker, ips) in [
        (&cluster.node_sockets, ["192.0.2.1", "2001:db8:2::1"]),
        (&cluster.pod_sockets, ["10.244.1.7", "fd00:10:244:1::7"]),
    ] {
        for (ip, to) in ips.iter().zip(WEB) {
            let at = SocketAddr::new(ip.parse().unwrap(), 40_000);
            let tcp = maker.tcp(at.is_ipv6()).unwrap().bind(at).unwrap();
            let (stream, by) = cluster.seen(|| tcp.connect(socket(to), DEADLINE).unwrap());
            assert_eq!((ask(stream).1, by), (at, By::Socket));
        }
    }
}

#[test]
fn the_nodes_sockets_reach_every_kind_of_address() {
    let cluster = Cluster::start(NODE, &[]);
    let maker = &cluster.node_sockets;
    for to in ["192.0.2.1:30080", "[2001:db8:2::1]:30080", "198.51.100.10:80", "[2001:db8:100::10]:80"] {
        cluster.reaches(maker, to, WEBS, false, By::Socket);
    }
    // The node counts as inside: Local leaves it all endpoints.
    for to in ["192.0.2.1:30081", "[2001:db8:2::1]:30081", "198.51.100.11:80", "[2001:db8:100::11]:80"] {
        cluster.reaches(maker, to, &["far"], false, By::Socket);
    }
    for to in ["10.96.0.12:80", "[fd00:10:96::12]:80"] {
        cluster.reaches(maker, to, &["web1"], false, By::Socket);
    }
    cluster.no_packet_was_translated();
    for to in ["10.96.0.13:80", "[fd00:10:96::13]:80"] {
        cluster.is_silent(maker, to, Counter::NoLocalEndpoint);
    }
    for to in ["10.96.0.14:80", "[fd00:10:96::14]:80"] {
        cluster.reaches(maker, to, WEBS, true, By::Packets);
    }
    for to in ["10.96.0.15:80", "[fd00:10:96::15]:80", "10.96.0.10:81", "[fd00:10:96::10]:81"] {
        cluster.is_refused(maker, to);
    }
    for to in ["198.51.100.17:80", "[2001:db8:100::17]:80"] {
        cluster.is_silent(maker, to, Counter::SourceRange);
    }
}

#[test]
fn pods_sockets_are_translated_where_the_source_stays() {
    let cluster = Cluster::start(NODE, &[]);
    let maker = &cluster.pod_sockets;
    for to in ["192.0.2.1:30081", "[2001:db8:2::1]:30081", "198.51.100.11:80", "[2001:db8:100::11]:80"] {
        cluster.reaches(maker, to, &["far"], false, By::Socket);
    }
    for to in ["10.96.0.12:80", "[fd00:10:96::12]:80"] {
        cluster.reaches(maker, to, &["web1"], false, By::Socket);
    }
    cluster.no_packet_was_translated();
    for to in ["192.0.2.1:30080", "[2001:db8:2::1]:30080", "198.51.100.10:80", "[2001:db8:100::10]:80"] {
        cluster.reaches(maker, to, WEBS, true, By::Packets);
    }
    for to in ["10.96.0.13:80", "[fd00:10:96::13]:80"] {
        cluster.is_silent(maker, to, Counter::NoLocalEndpoint);
    }
    for to in ["10.96.0.14:80", "[fd00:10:96::14]:80"] {
        cluster.reaches(maker, to, WEBS, false, By::Packets);
    }
    for to in ["10.96.0.15:80", "[fd00:10:96::15]:80", "10.96.0.10:81", "[fd00:10:96::10]:81"] {
        cluster.is_refused(maker, to);
    }
    for to in ["10.96.0.16:80", "[fd00:10:96::16]:80"] {
        cluster.reaches(maker, to, &["client"], true, By::Packets);
    }
    for to in ["198.51.100.17:80", "[2001:db8:100::17]:80"] {
        cluster.reaches(maker, to, WEBS, true, By::Packets);
    }
}

#[test]
fn pods_sockets_are_left_alone_where_the_source_may_have_to_change() {
    let without_ranges = NODE.replace("pod-cidrs", "# pod-cidrs");
    let by_device = without_ranges.replace("cluster-cidr", "# cluster-cidr")
        + "detect-local-mode: InterfaceNamePrefix\npod-interface-name-prefix: client\n";
    for (node, masqueraded) in
        [(without_ranges, false), (by_device, false), (format!("{NODE}masquerade-all: true\n"), true)]
    {
        let cluster = Cluster::start(&node, &[]);
        for to in WEB {
            cluster.reaches(&cluster.pod_sockets, to, WEBS, masqueraded, By::Packets);
            cluster.reaches(&cluster.node_sockets, to, WEBS, false, By::Socket);
        }
    }
}

#[test]
fn without_a_detector_pods_sockets_are_translated() {
    let node = NODE.replace("cluster-cidr", "# cluster-cidr").replace("pod-cidrs", "# pod-cidrs");
    let cluster = Cluster::start(&node, &[]);
    for to in WEB {
        cluster.reaches(&cluster.pod_sockets, to, WEBS, false, By::Socket);
    }
}

#[test]
fn off_leaves_every_socket_to_packets() {
    let cluster = Cluster::start(NODE, &["--socket-lb", "off"]);
    for to in WEB {
        cluster.reaches(&cluster.node_sockets, to, WEBS, true, By::Packets);
        cluster.reaches(&cluster.pod_sockets, to, WEBS, false, By::Packets);
    }
}

#[test]
fn all_translates_whatever_has_an_endpoint() {
    let cluster = Cluster::start(NODE, &["--socket-lb", "all"]);
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for to in [WEB[0], WEB[1], "192.0.2.1:30080", "[2001:db8:2::1]:30080", "10.96.0.14:80", "198.51.100.17:80"] {
            cluster.reaches(maker, to, WEBS, false, By::Socket);
        }
        cluster.is_refused(maker, "10.96.0.15:80");
        cluster.is_silent(maker, "10.96.0.13:80", Counter::NoLocalEndpoint);
    }
    cluster.reaches(&cluster.pod_sockets, "10.96.0.16:80", &["client"], false, By::Socket);
    cluster.no_packet_was_translated();
}

#[test]
fn a_udp_socket_moves_when_its_endpoint_goes() {
    let cluster = Cluster::start(NODE, &[]);
    cluster.change(&["1"]);
    let makers = [&cluster.node_sockets, &cluster.pod_sockets];
    let wanted: Vec<_> =
        makers.iter().flat_map(|maker| WEB.iter().flat_map(|to| forms(to)).map(move |to| (maker, to))).collect();
    for (maker, (v6, to)) in &wanted {
        let alone =
            || (0..8).all(|_| exchange(&maker.udp(*v6).unwrap(), *to).is_some_and(|(server, _)| server == "web1"));
        until("web1 to be the one endpoint", || alone().then_some(())).unwrap();
    }
    let sockets: Vec<_> = wanted.iter().map(|(maker, (v6, to))| (maker.udp(*v6).unwrap(), *to)).collect();
    let reach = |server: &str| {
        for (socket, to) in &sockets {
            let reached = || exchange(socket, *to).filter(|(answered, _)| answered == server).map(drop);
            until(&format!("datagrams to {to} to reach {server}"), reached).unwrap();
        }
    };
    reach("web1");
    cluster.change(&["2"]);
    reach("web2");
    cluster.change(&["1"]);
    reach("web1");
}

#[test]
fn the_last_answer_of_an_endpoint_that_goes_comes_from_the_service() {
    let cluster = Cluster::start(NODE, &[]);
    cluster.change(&["1"]);
    for to in [WEB[0], WEB[1]] {
        let to = socket(to);
        let client = cluster.node_sockets.udp(to.is_ipv6()).unwrap();
        let reached = |wanted: &str| exchange(&client, to).filter(|(server, _)| server == wanted).map(|(_, from)| from);
        cluster.change(&["1"]);
        let asked_from = until("web1 to answer", || reached("web1")).unwrap();
        cluster.change(&["2"]);
        until("web2 to answer", || reached("web2")).unwrap();
        let late = || {
            cluster.answer_of("web1", asked_from);
            client.recv_from(&mut [0; 128]).unwrap().1
        };
        assert_eq!(late(), to, "an answer that was on its way");
        // Later, what comes from there has nothing to do with the Service.
        until("the socket to see the stranger", || (late() != to).then_some(())).unwrap();
    }
}

#[test]
fn a_connected_udp_socket_is_told_when_its_endpoint_goes() {
    let cluster = Cluster::start(NODE, &["--end-pod-sockets"]);
    let connect = |socket: &UdpSocket, to: SocketAddr| {
        socket.connect(to).unwrap();
        let mut buffer = [0; 128];
        let length = socket.send(b"?\n").and_then(|_| socket.recv(&mut buffer)).ok()?;
        Some(answer(&buffer[..length]).0)
    };
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        cluster.change(&["1"]);
        for (v6, to) in WEB.iter().flat_map(|to| forms(to)) {
            let alone = || (0..8).all(|_| connect(&maker.udp(v6).unwrap(), to).is_some_and(|server| server == "web1"));
            until("web1 to be the one endpoint", || alone().then_some(())).unwrap();
        }
        let connected = |(v6, to)| {
            let socket = maker.udp(v6).unwrap();
            assert_eq!(connect(&socket, to).as_deref(), Some("web1"));
            (socket, to)
        };
        let sockets: Vec<_> = WEB.iter().flat_map(|to| forms(to)).map(connected).collect();
        cluster.change(&["2"]);
        for (socket, to) in &sockets {
            let told = || (socket.recv(&mut [0]).unwrap_err().kind() == ErrorKind::ConnectionAborted).then_some(());
            until("a socket to be told that its endpoint has gone", told).unwrap();
            let moved = || connect(socket, *to).filter(|server| server == "web2");
            until("the socket to reach web2", moved).unwrap();
        }
    }
}

#[test]
fn the_end_of_the_proxy_leaves_sockets_as_they_are() {
    let mut cluster = Cluster::start(NODE, &[]);
    let stream = cluster.node_sockets.tcp(false).unwrap().connect(socket(WEB[0]), DEADLINE).unwrap();
    cluster.running.take().unwrap().stop().unwrap();
    assert_eq!(stream.peer_addr().unwrap(), socket(WEB[0]));
    ask(stream);
    cluster.reaches(&cluster.pod_sockets, WEB[1], WEBS, false, By::Socket);
}
