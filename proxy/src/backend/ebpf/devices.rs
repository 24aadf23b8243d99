//! Which interfaces the programs are attached to, and what the programs have to know of them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use kubeferry_ebpf_common::{Address, Device};

use crate::node::Interface;
use crate::settings::DetectLocal;

// include/uapi/linux/if_arp.h
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
const ARPHRD_INFINIBAND: u16 = 32;
/// RT_SCOPE_LINK: wider scopes have smaller numbers.
const LINK: u8 = 253;

/// The interfaces that packets of services pass, with their rows of `devices`, by index. Patterns choose; without any,
/// all but interfaces that carry no IP and the ports of bonds, whose packets pass the bond too. What pods of one bridge
/// answer each other passes only its ports. Loopback is always there, for what the node sends to its own node ports.
pub fn rows<'a>(
    interfaces: &'a [Interface],
    patterns: &[String],
    detect: &DetectLocal,
) -> BTreeMap<u32, (&'a Interface, Device)> {
    let by_index: BTreeMap<u32, &Interface> = interfaces.iter().map(|interface| (interface.index, interface)).collect();
    let chosen = interfaces.iter().filter(|interface| match patterns {
        _ if interface.hardware == ARPHRD_LOOPBACK => true,
        [] => {
            let controller = interface.controller.and_then(|index| by_index.get(&index));
            let is_port = controller.is_some_and(|c| ["bond", "team"].contains(&c.kind.as_str()));
            !is_port && !["ifb", "nlmon", "can", "vcan", "vxcan"].contains(&interface.kind.as_str())
        }
        patterns => patterns.iter().any(|pattern| matches(pattern, &interface.name)),
    });
    let chosen: Vec<&Interface> = chosen.collect();
    // Sets: a node may have thousands of pods.
    let covered: BTreeSet<u32> = chosen.iter().map(|interface| interface.index).collect();
    let carriers: BTreeSet<u32> = chosen.iter().filter_map(|interface| interface.carrier).collect();
    chosen
        .into_iter()
        .map(|interface| {
            let mut flags = 0;
            let controller = interface.controller.and_then(|index| by_index.get(&index));
            let is_pods = |name: &str| match detect {
                DetectLocal::BridgeInterface(bridge) => name == bridge,
                DetectLocal::InterfaceNamePrefix(prefix) => name.starts_with(prefix.as_str()),
                DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => false,
            };
            // What comes in by a bridge's port comes in by the bridge.
            if is_pods(&interface.name) || controller.is_some_and(|controller| is_pods(&controller.name)) {
                flags |= Device::POD;
            }
            if ![ARPHRD_ETHER, ARPHRD_LOOPBACK].contains(&interface.hardware) {
                flags |= Device::NO_ETHERNET;
            }
            if interface.kind == "bridge" {
                flags |= Device::BRIDGE;
            }
            let is_port = |c: &Interface| match c.kind.as_str() {
                "bridge" | "bond" | "team" => covered.contains(&c.index),
                // What it sends has left by one of its internal ports.
                "openvswitch" => true,
                _ => false,
            };
            if controller.is_some_and(|c| is_port(c)) || carriers.contains(&interface.index) {
                flags |= Device::PORT;
            }
            if is_routed(interface, interfaces) {
                flags |= Device::ROUTED;
            }
            let [masquerade4, masquerade6] = [true, false].map(|v4| source(interface, interfaces, v4));
            let [a, b, c, d, e, f] = interface.link.unwrap_or_default();
            let link = [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes);
            // Of a number too large, programs know nothing; none has as many pods.
            let peer = interface
                .peer_namespace
                .and_then(|number| u16::try_from(number.checked_add(1)?).ok())
                .unwrap_or_default();
            (interface.index, (interface, Device { masquerade4, masquerade6, flags, link, peer }))
        })
        .collect()
}

/// Whether programs can read what passes an interface: 24 bytes stand before the IP header where IP is carried over InfiniBand.
pub fn is_readable(interface: &Interface) -> bool {
    interface.hardware != ARPHRD_INFINIBAND
}

/// Whether one other namespace is behind an interface, and nothing else. One that has an address of the node for itself alone may be the way
/// out: in a node that is a container it is a veth, too. CNIs that give interfaces of pods addresses give all of them the same.
fn is_routed(interface: &Interface, all: &[Interface]) -> bool {
    let is_elsewhere = |ip: IpAddr| {
        let others = all.iter().filter(|other| other.index != interface.index);
        others.flat_map(|other| &other.addresses).any(|held| held.address == ip)
    };
    let of_all = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    interface.peer_namespace.is_some()
        && interface.controller.is_none()
        && interface.addresses.iter().all(|held| of_all(held.address) || is_elsewhere(held.address))
}

/// The address that the kernel would masquerade with on the way out of an interface: its first global one of the family,
/// else the first of another interface (`inet_select_addr`).
fn source(interface: &Interface, all: &[Interface], v4: bool) -> Address {
    let of = |interface: &Interface, widest: u8| {
        let held = interface.addresses.iter();
        let usable = |ip: IpAddr| ip.is_ipv4() == v4 && !ip.is_loopback() && !ip.is_unspecified();
        held.filter(|held| held.scope < widest && usable(held.address)).map(|held| held.address).next()
    };
    let own = of(interface, 1).or_else(|| of(interface, LINK));
    own.or_else(|| all.iter().find_map(|other| of(other, 1)))
        .or_else(|| all.iter().find_map(|other| of(other, LINK)))
        .map_or(Address::ZERO, Address::from)
}

/// Whether frames of an interface are carried at XDP: patterns choose; without any, hardware.
pub fn is_uplink(interface: &Interface, patterns: &[String]) -> bool {
    match patterns {
        [] => interface.physical && interface.hardware == ARPHRD_ETHER,
        patterns => patterns.iter().any(|pattern| matches(pattern, &interface.name)),
    }
}

/// Whether a name is as a pattern says: `*` stands for any letters, `?` for one.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    // reached[n]: the pattern so far matches the first n letters.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for letter in pattern {
        let before = reached.clone();
        for n in 0..=name.len() {
            reached[n] = match letter {
                '*' => before[n] || (n > 0 && reached[n - 1]),
                _ => n > 0 && before[n - 1] && (letter == '?' || letter == name[n - 1]),
            };
        }
    }
    reached[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Held;

    fn interface(index: u32, name: &str, kind: &str, controller: Option<u32>, addresses: &[(&str, u8)]) -> Interface {
        let held = |(ip, scope): &(&str, u8)| Held { address: ip.parse().unwrap(), scope: *scope };
        let hardware = if name == "lo" { ARPHRD_LOOPBACK } else { ARPHRD_ETHER };
        let addresses = addresses.iter().map(held).collect();
        Interface {
            index,
            name: name.into(),
            kind: kind.into(),
            hardware,
            physical: name == "eth0",
            link: (name == "eth0").then_some([2, 0, 0, 0, 0, 1]),
            controller,
            carrier: None,
            peer_namespace: None,
            addresses,
        }
    }

    fn node() -> Vec<Interface> {
        vec![
            interface(1, "lo", "", None, &[("127.0.0.1", 254), ("::1", 254)]),
            interface(2, "eth0", "", None, &[("169.254.7.7", 253), ("192.0.2.7", 0), ("fe80::1", 253), ("fd00::7", 0)]),
            interface(3, "cni0", "bridge", None, &[("10.244.1.1", 0)]),
            interface(4, "veth1", "veth", Some(3), &[("fe80::4", 253)]),
            interface(5, "veth2", "veth", None, &[]),
            Interface { hardware: 65_534, ..interface(6, "wg0", "wireguard", None, &[]) },
            interface(7, "ifb0", "ifb", None, &[]),
        ]
    }

    fn names(patterns: &[&str]) -> Vec<String> {
        let patterns: Vec<_> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        let interfaces = node();
        let rows = rows(&interfaces, &patterns, &DetectLocal::NodeCidr);
        rows.values().map(|(interface, _)| interface.name.clone()).collect()
    }

    #[test]
    fn what_carries_packets_of_services_is_chosen() {
        assert_eq!(names(&[]), ["lo", "eth0", "cni0", "veth1", "veth2", "wg0"]);
        assert_eq!(names(&["veth*", "eth?"]), ["lo", "eth0", "veth1", "veth2"]);
        assert_eq!(names(&["*"]), ["lo", "eth0", "cni0", "veth1", "veth2", "wg0", "ifb0"]);
        assert_eq!(names(&["*h*0", "v*h*1"]), ["lo", "eth0", "veth1"]);
        assert_eq!(names(&["veth", "?", ""]), ["lo"]);
    }

    #[test]
    fn ports_of_bonds_are_uplinks_and_have_no_row() {
        for kind in ["bond", "team"] {
            let port = |index, name| Interface { physical: true, ..interface(index, name, "", Some(10), &[]) };
            let bonded = [
                interface(1, "lo", "", None, &[("127.0.0.1", 254)]),
                port(8, "eth1"),
                port(9, "eth2"),
                interface(10, "agg0", kind, None, &[("192.0.2.9", 0)]),
            ];
            let chosen = |patterns: &[String]| {
                let rows = rows(&bonded, patterns, &DetectLocal::NodeCidr);
                rows.values().map(|(interface, device)| (interface.name.clone(), device.flags)).collect::<Vec<_>>()
            };
            let row = |name: &str, flags| (name.to_owned(), flags);
            assert_eq!(chosen(&[]), [row("lo", 0), row("agg0", 0)], "{kind}: what comes in by a port comes in by it");
            assert_eq!(chosen(&["eth1".to_owned()]), [row("lo", 0), row("eth1", 0)], "{kind}: if asked for");
            let uplinks: Vec<u32> = bonded.iter().filter(|i| is_uplink(i, &[])).map(|i| i.index).collect();
            assert_eq!(uplinks, [8, 9], "{kind}");
        }
    }

    #[test]
    fn ip_over_infiniband_cannot_be_read() {
        let nodes: Vec<bool> = node().iter().map(is_readable).collect();
        assert_eq!(nodes, [true; 7]);
        let ib0 = Interface { hardware: ARPHRD_INFINIBAND, ..interface(8, "ib0", "", None, &[("192.0.2.8", 0)]) };
        assert!(!is_readable(&ib0));
    }

    #[test]
    fn uplinks_are_hardware_or_what_is_named() {
        let uplinks = |patterns: &[&str]| {
            let patterns: Vec<_> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            let interfaces = node().into_iter().filter(|interface| is_uplink(interface, &patterns));
            interfaces.map(|interface| interface.name).collect::<Vec<_>>()
        };
        assert_eq!(uplinks(&[]), ["eth0"]);
        assert_eq!(uplinks(&["veth?"]), ["veth1", "veth2"]);
    }

    #[test]
    fn devices_know_their_masquerade_address() {
        let interfaces = node();
        let rows = rows(&interfaces, &[], &DetectLocal::NodeCidr);
        let of = |index: u32| {
            let (_, device) = rows[&index];
            [device.masquerade4, device.masquerade6].map(|address| IpAddr::from(address).to_string())
        };
        assert_eq!(of(2), ["192.0.2.7", "fd00::7"]);
        assert_eq!(of(3), ["10.244.1.1", "fd00::7"]);
        assert_eq!(of(5), ["192.0.2.7", "fd00::7"], "another interface's");
        let flags = [2, 3, 4, 6].map(|index| rows[&index].1.flags);
        assert_eq!(flags, [0, Device::BRIDGE, Device::PORT, Device::NO_ETHERNET]);
        let alone = self::rows(&interfaces, &["veth1".to_owned()], &DetectLocal::NodeCidr);
        assert_eq!(alone[&4].1.flags, 0, "the programs are not at its bridge");
        let above = Interface { carrier: Some(2), ..interface(8, "mv0", "macvlan", None, &[]) };
        let with_above = [&interfaces[..], &[above]].concat();
        assert_eq!(self::rows(&with_above, &[], &DetectLocal::NodeCidr)[&2].1.flags, Device::PORT);
        // Open vSwitch's: what an internal port sends leaves by another once more, whether the switch itself is chosen or not.
        let switched = [
            interface(8, "ovs-system", "openvswitch", None, &[]),
            interface(9, "eth1", "", Some(8), &[]),
            interface(10, "br-int", "openvswitch", None, &[]),
        ];
        let of_switch = self::rows(&switched, &["eth1".to_owned(), "br-int".to_owned()], &DetectLocal::NodeCidr);
        assert_eq!([9, 10].map(|index| of_switch[&index].1.flags), [Device::PORT, 0]);
        assert_eq!(rows[&2].1.link.map(u16::to_ne_bytes).concat(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(rows[&1].1.link, [0; 3]);
    }

    #[test]
    fn devices_of_pods_are_told_from_ways_out() {
        let is_routed = |change: fn(&mut Interface)| {
            let mut pod =
                Interface { peer_namespace: Some(3), ..interface(5, "veth2", "veth", None, &[("fe80::5", 253)]) };
            change(&mut pod);
            let other = interface(9, "veth9", "veth", None, &[("10.244.1.1", 0)]);
            let all = [&node()[..4], &[other, pod]].concat();
            rows(&all, &[], &DetectLocal::NodeCidr)[&5].1.flags & Device::ROUTED != 0
        };
        assert!(is_routed(|_| ()));
        assert!(is_routed(|pod| pod.addresses.clear()));
        assert!(
            !is_routed(|pod| pod.peer_namespace = None),
            "both of its ends are in the node's namespace, or it has one"
        );
        assert!(!is_routed(|pod| pod.controller = Some(3)), "it is on a bridge");
        assert!(
            is_routed(|pod| pod.addresses.push(Held { address: [10, 244, 1, 1].into(), scope: 0 })),
            "as all pods' have"
        );
        assert!(!is_routed(|pod| pod.addresses.push(Held { address: [192, 0, 2, 8].into(), scope: 0 })), "an uplink");
    }

    #[test]
    fn devices_know_the_namespace_of_their_other_end() {
        let peer = |peer_namespace| {
            let interfaces = [Interface { peer_namespace, ..interface(5, "veth2", "veth", None, &[]) }];
            rows(&interfaces, &[], &DetectLocal::NodeCidr)[&5].1.peer
        };
        assert_eq!([None, Some(0), Some(65_534), Some(65_535), Some(u32::MAX)].map(peer), [0, 1, 65_535, 0, 0]);
    }

    #[test]
    fn pods_are_told_by_interface() {
        let interfaces = node();
        let pods = |detect| {
            let all = ["*".to_owned()];
            let rows = rows(&interfaces, &all, &detect);
            rows.values().filter(|(_, d)| d.flags & Device::POD != 0).map(|(i, _)| i.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(pods(DetectLocal::InterfaceNamePrefix("veth".into())), ["veth1", "veth2"]);
        assert_eq!(pods(DetectLocal::BridgeInterface("cni0".into())), ["cni0", "veth1"]);
        assert!(pods(DetectLocal::NodeCidr).is_empty());
    }
}
