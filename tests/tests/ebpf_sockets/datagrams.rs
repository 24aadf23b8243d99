//! Whom sockets of UDP hear: the Service that they have asked, and strangers as who they are.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};

use kubeferry_ebpf_common::SocketPeer;
use kubeferry_tests::client::until;
use kubeferry_tests::sockets::disconnect;

use super::cluster::{Cluster, NODE, exchange, socket};
use super::{WEB, WEBS};

/// Where a web pod serves.
fn endpoint(cluster: &Cluster, server: &str, v6: bool) -> SocketAddr {
    let ip: &IpAddr = cluster.hosts.host(server).addresses.iter().find(|ip| ip.is_ipv6() == v6).unwrap();
    SocketAddr::new(*ip, 8080)
}

/// As long as its port leads there, and no longer.
#[test]
fn what_an_endpoint_sends_long_after_comes_from_itself() {
    let cluster = Cluster::start(NODE, &[]);
    let services = cluster.socket_services();
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for to in WEB.map(socket) {
            let asks = maker.udp(to.is_ipv6()).unwrap();
            let (server, client) = exchange(&asks, to).unwrap();
            let from = endpoint(&cluster, &server, to.is_ipv6());
            let receive = || {
                cluster.answer_of(&server, client);
                let mut buffer = [0; 128];
                asks.recv_from(&mut buffer).unwrap().1
            };
            let age = |seconds: u32| {
                let rows = services.rows().unwrap();
                let ours = rows.into_iter().filter(|(key, _)| key.address == from.ip().into());
                let older = ours.map(|(key, peer)| (key, SocketPeer { seen: peer.seen.wrapping_sub(seconds), ..peer }));
                services.put(&older.collect::<Vec<_>>()).unwrap();
            };
            age(60);
            assert_eq!(receive(), to, "half a minute of silence is no end");
            // That answer began the time anew.
            age(100);
            assert_eq!(receive(), to);
            age(130);
            assert_eq!(receive(), from);
            assert!(exchange(&asks, to).is_some(), "whoever asks again is answered by the Service");
            assert_eq!(receive(), to);
        }
    }
}

/// It hears one endpoint alone, so that is the one that it has to reach.
#[test]
fn a_connected_socket_that_names_its_peer_reaches_its_endpoint() {
    let cluster = Cluster::start(NODE, &[]);
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for to in WEB.map(socket) {
            for _ in 0..10 {
                let asks = maker.udp(to.is_ipv6()).unwrap();
                asks.connect(to).unwrap();
                let named = asks.peer_addr().unwrap();
                assert!(exchange(&asks, named).is_some(), "{to}: no answer");
            }
        }
    }
}

/// `web` and `twin` have the same endpoints, two of them.
#[test]
fn one_socket_asks_two_services_and_hears_each() {
    let cluster = Cluster::start(NODE, &[]);
    let mut apart = 0;
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for (one, other) in WEB.iter().zip(["10.96.0.19:80", "[fd00:10:96::19]:80"]) {
            let (one, other) = (socket(one), socket(other));
            for _ in 0..10 {
                let asks = maker.udp(one.is_ipv6()).unwrap();
                // `exchange` looks whom it hears.
                let servers = [one, other, one, one, other, other].map(|to| exchange(&asks, to).expect("an answer").0);
                apart += usize::from(servers.into_iter().collect::<BTreeSet<_>>().len() == WEBS.len());
            }
        }
    }
    // Of forty, one or two draw five times what the other Service has.
    assert!(apart > 30, "only {apart} of 40 sockets have an endpoint for each Service");
    // Where there is one endpoint, it is of whom was asked last.
    cluster.change(&["1"]);
    for (one, other) in WEB.iter().zip(["10.96.0.19:80", "[fd00:10:96::19]:80"]) {
        let (one, other) = (socket(one), socket(other));
        let alone = || {
            let asks = |to: SocketAddr| exchange(&cluster.node_sockets.udp(to.is_ipv6()).unwrap(), to);
            let is_web1 = |to| asks(to).is_some_and(|(server, _)| server == "web1");
            (0..4).all(|_| is_web1(one) && is_web1(other)).then_some(())
        };
        until("web1 to be the one endpoint", alone).unwrap();
        let asks = cluster.node_sockets.udp(one.is_ipv6()).unwrap();
        for to in [one, other, one, one, other, other] {
            assert!(exchange(&asks, to).is_some(), "{to}: no answer");
        }
    }
}

/// No hook sees that a socket of UDP is connected no longer.
#[test]
fn a_socket_that_is_disconnected_hears_strangers_as_who_they_are() {
    let cluster = Cluster::start(NODE, &[]);
    let is_idle = || cluster.pinned.backends().unwrap().iter().all(|backend| backend.active == 0).then_some(());
    for maker in [&cluster.node_sockets, &cluster.pod_sockets] {
        for to in WEB.map(socket) {
            let asks = maker.udp(to.is_ipv6()).unwrap();
            asks.connect(to).unwrap();
            let (server, _) = exchange(&asks, to).expect("an answer");
            disconnect(&asks).unwrap();
            let itself = endpoint(&cluster, &server, to.is_ipv6());
            // Of a moment ago, it may be about to be connected.
            let is_over = || {
                assert!(exchange(&asks, itself).is_some(), "{itself}: no answer");
                is_idle()
            };
            until("its connection to be over", is_over).unwrap();
        }
    }
}

/// Two threads of one process have a socket: while one connects it, the other sends to somebody else. For a moment the hook has seen that it
/// connects, and it is not connected yet.
#[test]
fn a_socket_that_is_about_to_connect_is_not_taken_for_one_that_was_disconnected() {
    const TIMES: usize = 20_000;
    let cluster = Cluster::start(NODE, &[]);
    for to in WEB.map(socket) {
        let shared = cluster.node_sockets.udp(to.is_ipv6()).unwrap();
        let nobody = SocketAddr::new(if to.is_ipv6() { "::1" } else { "127.0.0.1" }.parse().unwrap(), 9);
        let ended = AtomicBool::new(false);
        let wrong = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    // Nobody is there, as the next call is told.
                    drop(shared.send_to(b"!\n", nobody));
                }
            });
            let connect = || {
                disconnect(&shared).unwrap();
                shared.connect(to).unwrap();
                shared.peer_addr().unwrap()
            };
            let wrong = (0..TIMES).map(|_| connect()).find(|peer| *peer != to);
            ended.store(true, Ordering::Relaxed);
            wrong
        });
        assert_eq!(wrong, None, "connected to {to}");
    }
}
