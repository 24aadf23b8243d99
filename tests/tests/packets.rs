//! The harness sees what it claims to see: hand-written rulesets that translate, masquerade, reject and drop are observed
//! as such, in both families and for all three transports.

// The functions that tests share are tests, too.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use kubeferry_tests::packets::{Arrival, Fate, Origin, Prober, Protocol};
use kubeferry_tests::world::World;

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
/// Of each family: node, a pod, a client outside, and a virtual address.
const FAMILIES: [[&str; 4]; 2] = [
    ["192.0.2.1", "10.1.0.5", "203.0.113.9", "10.96.0.1"],
    ["2001:db8:2::1", "2001:db8:1::5", "2001:db8:113::9", "2001:db8:96::1"],
];
const RULES: &str = "
table inet hand {
  chain translate {
    tcp dport 81 reject with tcp reset
    meta l4proto { tcp, udp, sctp } th dport 82 drop
    meta l4proto { tcp, udp, sctp } th dport 83 reject
    ip daddr 10.96.0.1 meta l4proto { tcp, udp, sctp } th dport 80 meta mark set 1 dnat ip to 10.1.0.5:8080
    ip6 daddr 2001:db8:96::1 meta l4proto { tcp, udp, sctp } th dport 80 meta mark set 1 dnat ip6 to [2001:db8:1::5]:8080
    ip daddr 10.96.0.1 meta l4proto { tcp, udp, sctp } th dport 90 dnat ip to 10.1.0.5:8080
    ip6 daddr 2001:db8:96::1 meta l4proto { tcp, udp, sctp } th dport 90 dnat ip6 to [2001:db8:1::5]:8080
    ip daddr 10.96.0.1 meta l4proto { tcp, udp, sctp } th dport 91 dnat ip to 192.0.2.1:8080
    ip6 daddr 2001:db8:96::1 meta l4proto { tcp, udp, sctp } th dport 91 dnat ip6 to [2001:db8:2::1]:8080
  }
  chain prerouting { type nat hook prerouting priority dstnat; jump translate; }
  chain output { type nat hook output priority -100; jump translate; }
  chain postrouting { type nat hook postrouting priority srcnat; meta mark 1 masquerade fully-random; }
}";

fn world() -> (World, Prober) {
    let world = World::bare(&["eth0".into(), "pods0".into()]).unwrap();
    world
        .node
        .ip(&[
            "addr add 192.0.2.1/32 dev eth0",
            "addr add 2001:db8:2::1/128 dev eth0 nodad",
            "route add 10.1.0.0/16 via 169.254.1.1 dev pods0 onlink",
            "route add 2001:db8:1::/64 via fe80::1 dev pods0 onlink",
        ])
        .unwrap();
    world.node.nft(&["-f", "-"], RULES).unwrap();
    let prober = world.prober().unwrap();
    (world, prober)
}

fn socket(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn outside() -> Origin {
    Origin::Cable("eth0".into())
}

fn pods() -> Origin {
    Origin::Cable("pods0".into())
}

#[test]
fn translation_and_masquerading_are_seen() {
    let (_world, mut prober) = world();
    let mut port = 20_000;
    for [node, pod, client, vip] in FAMILIES {
        for protocol in PROTOCOLS {
            for (origin, from) in [(outside(), client), (pods(), pod), (Origin::Node, node)] {
                port += 1;
                let from = socket(from, port);
                let plain = prober.probe(&origin, protocol, from, socket(vip, 90)).unwrap();
                assert_eq!(
                    plain,
                    Fate::Arrived(Arrival { at: pods(), from, to: socket(pod, 8080) }),
                    "{protocol} {origin:?}"
                );
                let Fate::Arrived(masqueraded) = prober.probe(&origin, protocol, from, socket(vip, 80)).unwrap() else {
                    panic!("{protocol} from {from} did not arrive");
                };
                assert_eq!((masqueraded.at, masqueraded.to), (pods(), socket(pod, 8080)));
                assert_eq!(masqueraded.from.ip(), socket(node, 0).ip(), "{protocol} {origin:?}");
                assert_ne!(masqueraded.from, from);
            }
        }
    }
}

#[test]
fn arrivals_at_the_node_itself_are_seen() {
    let (_world, mut prober) = world();
    for [node, _, client, vip] in FAMILIES {
        for protocol in PROTOCOLS {
            for (origin, from) in [(outside(), client), (Origin::Node, node)] {
                let from = socket(from, 20_001);
                // Straight to a closed port of the node: it arrives there, though the node answers that it is closed.
                let straight = prober.probe(&origin, protocol, from, socket(node, 7)).unwrap();
                assert_eq!(straight, Fate::Arrived(Arrival { at: Origin::Node, from, to: socket(node, 7) }));
                let translated = prober.probe(&origin, protocol, from, socket(vip, 91)).unwrap();
                assert_eq!(translated, Fate::Arrived(Arrival { at: Origin::Node, from, to: socket(node, 8080) }));
            }
        }
    }
}

#[test]
fn reject_and_drop_are_told_apart() {
    let (_world, mut prober) = world();
    for [node, pod, client, vip] in FAMILIES {
        for (origin, from) in [(outside(), client), (pods(), pod), (Origin::Node, node)] {
            for protocol in PROTOCOLS {
                let mut fate = |port| prober.probe(&origin, protocol, socket(from, 20_001), socket(vip, port)).unwrap();
                if protocol == Protocol::Tcp {
                    assert_eq!(fate(81), Fate::Reset, "{origin:?} {from}");
                }
                assert_eq!(fate(82), Fate::Silence, "{protocol} {origin:?} {from}");
                assert_eq!(fate(83), Fate::PortUnreachable, "{protocol} {origin:?} {from}");
            }
        }
    }
}

#[test]
fn what_nobody_translates_goes_on_to_its_destination() {
    let (_world, mut prober) = world();
    for [node, pod, client, vip] in FAMILIES {
        for (origin, from) in [(pods(), pod), (Origin::Node, node)] {
            let from = socket(from, 20_001);
            let fate = prober.probe(&origin, Protocol::Tcp, from, socket(vip, 1234)).unwrap();
            assert_eq!(fate, Fate::Arrived(Arrival { at: outside(), from, to: socket(vip, 1234) }));
        }
        let from = socket(client, 20_001);
        let fate = prober.probe(&outside(), Protocol::Udp, from, socket(pod, 1234)).unwrap();
        assert_eq!(fate, Fate::Arrived(Arrival { at: pods(), from, to: socket(pod, 1234) }));
    }
}

#[test]
fn a_thousand_probes_need_no_waiting() {
    let (_world, mut prober) = world();
    let [_, _, client, vip] = FAMILIES[0];
    for port in 20_000..21_000 {
        let fate = prober.probe(&outside(), Protocol::Tcp, socket(client, port), socket(vip, 82)).unwrap();
        assert_eq!(fate, Fate::Silence);
    }
}
