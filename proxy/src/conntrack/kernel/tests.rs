//! Connection tracking of the real kernel: what is listed and deleted.

use std::{
    collections::BTreeSet,
    net::{TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use super::*;
use crate::netns::{drop_capabilities, in_new_netns, run};

const RULES: &str = "
table inet t {
  chain zone { type filter hook output priority raw; udp dport 7777 ct zone set 7; }
  chain out {
type nat hook output priority -100;
ip daddr 10.96.0.10 udp dport 53 dnat ip to 10.244.1.5:5353
ip daddr 10.96.0.10 udp dport 54 dnat ip to 10.244.1.6:5353
ip daddr 10.96.0.10 tcp dport 53 dnat ip to 10.244.1.5:5353
ip daddr 172.18.0.2 udp dport 30053 dnat ip to 10.244.1.5:5353
ip6 daddr fd00::10 udp dport 53 dnat ip6 to [fd00:1::5]:5353
  }
}
";

/// Flows through translations on loopback: UDP and TCP, both families, one in a zone of its own.
fn with_flows(test: impl FnOnce(&Conntrack) + Send) {
    in_new_netns(|| {
        run("nft", &["-f", "-"], RULES);
        for address in ["10.244.1.5/32", "10.244.1.6/32", "fd00:1::5/128"] {
            run("ip", &["addr", "add", address, "dev", "lo", "nodad"], "");
        }
        for route in ["10.96.0.0/16", "172.18.0.0/16", "fd00::/64"] {
            run("ip", &["route", "add", route, "dev", "lo"], "");
        }
        let sockets = ["10.244.1.5:5353", "10.244.1.6:5353", "[fd00:1::5]:5353", "10.244.1.5:7777"]
            .map(|address| UdpSocket::bind(address).unwrap());
        let listener = TcpListener::bind("10.244.1.5:5353").unwrap();
        let v4 = UdpSocket::bind("10.244.1.5:5000").unwrap();
        let v6 = UdpSocket::bind("[fd00:1::5]:5000").unwrap();
        let send = || {
            for to in ["10.96.0.10:53", "10.96.0.10:54", "172.18.0.2:30053", "10.244.1.5:7777"] {
                v4.send_to(b"x", to).unwrap();
            }
            v6.send_to(b"x", "[fd00::10]:53").unwrap();
        };
        send();
        for socket in &sockets {
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let deadline = std::time::Instant::now() + Duration::from_secs(30);
            // A datagram may be lost; sent again it belongs to the same flow.
            while socket.recv(&mut [0; 1]).is_err() {
                assert!(std::time::Instant::now() < deadline, "no packet arrived in 30s at {socket:?}");
                send();
            }
        }
        let _client = TcpStream::connect("10.96.0.10:53").unwrap();
        let _server = listener.accept().unwrap();
        let conntrack = Conntrack::open().unwrap();
        let tcp = || {
            // The TCP entry alone is neither listed among those of UDP nor by the kernel where it filters.
            let count = |filter: &dyn Fn(&mut Writer)| {
                conntrack.socket.dump("all", IPCTNL_MSG_CT_GET, Family::V4.number(), filter).unwrap().messages().count()
            };
            count(&|_| {}) - count(&|writer| write_filter(writer, UDP))
        };
        assert_eq!(tcp(), 1);
        test(&conntrack);
        assert_eq!(tcp(), 1, "what TCP has open is never touched");
    });
}

fn flows(conntrack: &Conntrack) -> BTreeSet<String> {
    [Family::V4, Family::V6]
        .into_iter()
        .flat_map(|family| conntrack.entries(family, UDP).unwrap().0)
        .map(|entry| format!("{} {}", entry.original.destination, entry.reply.source))
        .collect()
}

const ALL: [&str; 5] = [
    "10.244.1.5:7777 10.244.1.5:7777",
    "10.96.0.10:53 10.244.1.5:5353",
    "10.96.0.10:54 10.244.1.6:5353",
    "172.18.0.2:30053 10.244.1.5:5353",
    "[fd00::10]:53 [fd00:1::5]:5353",
];

fn set(flows: &[&str]) -> BTreeSet<String> {
    flows.iter().map(|flow| (*flow).to_owned()).collect()
}

#[test]
fn one_entry_is_deleted_and_the_others_stay() {
    with_flows(|conntrack| {
        assert_eq!(flows(conntrack), set(&ALL));
        for (family, destination) in
            [(Family::V4, "10.96.0.10:53"), (Family::V6, "[fd00::10]:53"), (Family::V4, "10.244.1.5:7777")]
        {
            let (entries, complete) = conntrack.entries(family, UDP).unwrap();
            assert!(complete);
            let destination = destination.parse().unwrap();
            let entry = entries.iter().find(|entry| entry.original.destination == destination).unwrap();
            assert!(conntrack.delete(entry).unwrap());
            assert!(!conntrack.delete(entry).unwrap(), "it is gone");
        }
        assert_eq!(flows(conntrack), set(&[ALL[2], ALL[3]]));
    });
}

#[test]
fn stale_flows_are_cleaned() {
    with_flows(|conntrack| {
        let parse = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let service = |addresses: &[&str], node_ports: &[u16], serving: &[&str]| UdpService {
            addresses: parse(addresses),
            node_ports: node_ports.iter().copied().collect(),
            serving: parse(serving),
        };
        let before = [
            service(&["10.96.0.10:53", "[fd00::10]:53"], &[30053], &["10.244.1.5:5353", "[fd00:1::5]:5353"]),
            service(&["10.96.0.10:54"], &[], &[]),
        ];
        let nothing = clean(&before).unwrap();
        assert_eq!(nothing, Cleaned { listed: 5, deleted: 0, deleted_v6: 0, partial: false });
        let after = [
            service(&["10.96.0.10:53", "[fd00::10]:53"], &[30053], &["10.244.1.7:5353", "[fd00:1::5]:5353"]),
            service(&["10.96.0.10:54"], &[], &[]),
        ];
        let cleaned = clean(&after).unwrap();
        assert_eq!((cleaned.deleted, cleaned.deleted_v6), (2, 0));
        assert_eq!(flows(conntrack), set(&[ALL[0], ALL[2], ALL[4]]));
        let cleaned = clean(&[service(&["[fd00::10]:53"], &[], &["[fd00:1::7]:5353"])]).unwrap();
        assert_eq!((cleaned.deleted, cleaned.deleted_v6), (1, 1), "each family is counted");
    });
}

#[test]
fn connections_that_nobody_has_answered_are_forgotten_and_no_others() {
    with_flows(|conntrack| {
        let asked: [SocketAddr; 2] = ["10.96.0.77:80", "10.96.0.78:80"].map(|to| to.parse().unwrap());
        for to in asked {
            TcpStream::connect_timeout(&to, Duration::from_millis(100)).unwrap_err();
        }
        // The kernel gives no others, since 5.15.
        let count = |entries: Result<(Vec<Entry>, bool), Error>| entries.unwrap().0.len();
        assert_eq!(count(conntrack.entries(Family::V4, TCP)), 3);
        assert_eq!(count(conntrack.listed(Family::V4, TCP, write_unanswered)), 2);
        let forget = |of: &[SocketAddr]| {
            forget_unanswered(|protocol, to| protocol == Protocol::Tcp && of.contains(&to)).unwrap()
        };
        assert_eq!(forget(&asked[1..]), 1);
        assert_eq!(forget_unanswered(|protocol, _| protocol == Protocol::Sctp).unwrap(), 0);
        assert_eq!(forget_unanswered(|_, _| true).unwrap(), 1, "what is translated or answered stays");
        assert_eq!(forget(&asked), 0);
    });
}

#[test]
fn the_missing_right_is_named() {
    with_flows(|_| {
        let service = UdpService {
            serving: ["10.244.1.7:5353".parse().unwrap()].into(),
            node_ports: [30053].into(),
            ..UdpService::default()
        };
        std::thread::scope(|scope| {
            let cleaned = scope.spawn(|| {
                drop_capabilities();
                clean(&[service])
            });
            let error = cleaned.join().unwrap().unwrap_err().to_string();
            assert!(error.contains("CAP_NET_ADMIN"), "{error}");
        });
    });
}
