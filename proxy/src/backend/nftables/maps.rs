//! The maps and sets by name, and how their rows are said: as bytes for the kernel and as nft's text for people.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::desired::target::Frontend;
use crate::state::objects::{Family, Protocol};

use super::draw::Turn;
use super::netlink::{Data, Element};
use super::rows::{Key, Part, Value};
use super::rule::octets;

/// Every map and set whose rows are ours; `affinity4` and `affinity6` are written by packets.
pub const MAPS: [[&str; 2]; 13] = [
    ["frontends4", "frontends6"],
    ["nodeports4", "nodeports6"],
    ["endpoints4", "endpoints6"],
    ["nodeport_endpoints4", "nodeport_endpoints6"],
    ["ranged4", "ranged6"],
    ["source_ranges4", "source_ranges6"],
    ["remember4", "remember6"],
    ["remember_nodeports4", "remember_nodeports6"],
    ["hairpin4", "hairpin6"],
    ["cluster_ips4", "cluster_ips6"],
    ["service_cidrs4", "service_cidrs6"],
    ["nodeport_addresses4", "nodeport_addresses6"],
    ["turns4", "turns6"],
];

/// Those of them whose rows count connections with `--service-metrics`.
pub const COUNTED: [[&str; 2]; 3] =
    [["endpoints4", "endpoints6"], ["nodeport_endpoints4", "nodeport_endpoints6"], ["turns4", "turns6"]];

/// The map that a key is in.
pub fn map_of(key: &Key) -> &'static str {
    let (index, family) = match key {
        Key::Of(frontend, part) => {
            let node_port = matches!(frontend, Frontend::NodePort { .. });
            let index = match (part, node_port) {
                (Part::Verdict, false) => 0,
                (Part::Verdict, true) => 1,
                (Part::Endpoint(_), false) => 2,
                (Part::Endpoint(_), true) => 3,
                (Part::Ranged, _) => 4,
                (Part::SourceRange(_), _) => 5,
                (Part::Remember, false) => 6,
                (Part::Remember, true) => 7,
            };
            (index, frontend.family())
        }
        Key::Hairpin(ip) => (8, Family::of(*ip)),
        Key::ClusterIp(ip) => (9, Family::of(*ip)),
        Key::ServiceCidr(net) => (10, Family::of(net.addr())),
        Key::NodePortAddress(ip) => (11, Family::of(*ip)),
        Key::Turn(turn, _) => (12, turn.family),
    };
    MAPS[index][family as usize]
}

/// A row in nft's words: `key` or `key : value`.
pub fn row_text(key: &Key, value: &Value) -> String {
    let key_text = match key {
        Key::Of(frontend, part) => {
            let frontend = match frontend {
                Frontend::Address { ip, protocol, port } => format!("{ip} . {protocol} . {port}"),
                Frontend::NodePort { protocol, port, .. } => format!("{protocol} . {port}"),
            };
            match part {
                Part::Verdict | Part::Ranged | Part::Remember => frontend,
                Part::SourceRange(range) => format!("{frontend} . {range}"),
                Part::Endpoint(slot) => format!("{frontend} . {slot}"),
            }
        }
        Key::Hairpin(ip) => format!("{ip} . {ip}"),
        Key::ClusterIp(ip) | Key::NodePortAddress(ip) => ip.to_string(),
        Key::ServiceCidr(net) => net.to_string(),
        Key::Turn(turn, slot) => {
            let [high, low] = turn.numbers();
            format!("{} . {high} . {low} . {slot}", turn.protocol)
        }
    };
    match value {
        Value::Present => key_text,
        Value::Chain(chain) if matches!(key, Key::Of(_, Part::Remember)) => format!("{key_text} : jump {chain}"),
        Value::Chain(chain) => format!("{key_text} : goto {chain}"),
        Value::Endpoint(endpoint) => format!("{key_text} : {} . {}", endpoint.ip(), endpoint.port()),
    }
}

/// A row as the kernel takes it: one element, or two for a plain interval.
pub fn elements(key: &Key, value: &Value) -> Vec<Element> {
    let data = match value {
        Value::Present => Data::None,
        Value::Chain(chain) if matches!(key, Key::Of(_, Part::Remember)) => Data::Jump(chain.to_string()),
        Value::Chain(chain) => Data::Goto(chain.to_string()),
        Value::Endpoint(endpoint) => {
            let mut bytes = octets(endpoint.ip());
            push_port(&mut bytes, endpoint.port());
            Data::Value(bytes)
        }
    };
    match key {
        Key::ServiceCidr(net) => Element::interval(octets(net.network()), &octets(net.broadcast())),
        Key::Of(frontend, Part::SourceRange(range)) => {
            let (mut first, mut last) = (frontend_bytes(frontend), frontend_bytes(frontend));
            first.extend(octets(range.network()));
            last.extend(octets(range.broadcast()));
            vec![Element { key_end: Some(last), ..Element::new(first, data) }]
        }
        Key::Of(frontend, part) => {
            let mut bytes = frontend_bytes(frontend);
            if let Part::Endpoint(slot) = part {
                bytes.extend(slot.to_ne_bytes());
            }
            vec![Element::new(bytes, data)]
        }
        Key::Hairpin(ip) => vec![Element::new([octets(*ip), octets(*ip)].concat(), data)],
        Key::ClusterIp(ip) | Key::NodePortAddress(ip) => vec![Element::new(octets(*ip), data)],
        Key::Turn(turn, slot) => {
            let [high, low] = turn.numbers();
            let mut bytes = vec![turn.protocol.number(), 0, 0, 0];
            [high, low, *slot].iter().for_each(|number| bytes.extend(number.to_ne_bytes()));
            vec![Element::new(bytes, data)]
        }
    }
}

fn frontend_bytes(frontend: &Frontend) -> Vec<u8> {
    let mut bytes = match frontend {
        Frontend::Address { ip, .. } => octets(*ip),
        Frontend::NodePort { .. } => Vec::with_capacity(12),
    };
    bytes.extend([frontend.protocol().number(), 0, 0, 0]);
    push_port(&mut bytes, frontend.port());
    bytes
}

fn push_port(bytes: &mut Vec<u8>, port: u16) {
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
}

/// What an element of a map says, as a row; `None` for one that no version of us writes there.
pub fn row(map: &str, element: &Element) -> Option<(Key, Value)> {
    let (index, family) = MAPS.iter().enumerate().find_map(|(index, names)| {
        let at = names.iter().position(|name| *name == map)?;
        Some((index, Family::BOTH[at]))
    })?;
    let value = match &element.data {
        Data::None => Value::Present,
        Data::Goto(chain) | Data::Jump(chain) => Value::Chain(chain.as_str().into()),
        Data::Value(bytes) => {
            let mut reader = Reader(bytes);
            let ip = reader.ip(family)?;
            Value::Endpoint(SocketAddr::new(ip, reader.port()?))
        }
        Data::Verdict(_) => return None,
    };
    let mut reader = Reader(&element.key);
    let key = match index {
        0 => Key::Of(reader.address(family)?, Part::Verdict),
        1 => Key::Of(reader.node_port(family)?, Part::Verdict),
        2 => Key::Of(reader.address(family)?, Part::Endpoint(reader.number()?)),
        3 => Key::Of(reader.node_port(family)?, Part::Endpoint(reader.number()?)),
        4 => Key::Of(reader.address(family)?, Part::Ranged),
        5 => {
            let frontend = reader.address(family)?;
            let first = reader.ip(family)?;
            let last = element.key_end.as_ref()?;
            let last = Reader(last.get(last.len().checked_sub(octets(first).len())?..)?).ip(family)?;
            Key::Of(frontend, Part::SourceRange(range(first, last)?))
        }
        6 => Key::Of(reader.address(family)?, Part::Remember),
        7 => Key::Of(reader.node_port(family)?, Part::Remember),
        8 => Key::Hairpin(reader.ip(family)?),
        9 => Key::ClusterIp(reader.ip(family)?),
        11 => Key::NodePortAddress(reader.ip(family)?),
        12 => {
            let (protocol, high, low) = (reader.protocol()?, reader.number()?, reader.number()?);
            Key::Turn(Turn { family, protocol, identity: u64::from(high) << 32 | u64::from(low) }, reader.number()?)
        }
        _ => return None,
    };
    Some((key, value))
}

/// The plain intervals of a set, which come as starts and ends in any order, as ranges; and how many are none that we
/// would write.
pub fn intervals(family: Family, elements: &[Element]) -> (Vec<IpNet>, usize) {
    let mut edges: Vec<(IpAddr, bool)> =
        elements.iter().filter_map(|element| Some((Reader(&element.key).ip(family)?, !element.interval_end))).collect();
    // At one address the end of the interval below comes before the start of the next.
    edges.sort();
    let mut nets = Vec::new();
    let mut start: Option<IpAddr> = None;
    for (ip, is_start) in edges {
        // nft leaves the end of an interval out where the next begins right there.
        if let Some(first) = start.take() {
            nets.push(before(ip).and_then(|last| range(first, last)));
        }
        start = is_start.then_some(ip);
    }
    let top =
        if family == Family::V4 { IpAddr::from(Ipv4Addr::BROADCAST) } else { IpAddr::from(Ipv6Addr::from(u128::MAX)) };
    nets.extend(start.map(|first| range(first, top)));
    let strange = nets.iter().filter(|net| net.is_none()).count();
    (nets.into_iter().flatten().collect(), strange)
}

fn before(ip: IpAddr) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits().checked_sub(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits().checked_sub(1)?).into(),
    })
}

/// The one prefix that goes from `first` to `last`.
fn range(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let width = if first.is_ipv4() { 32 } else { 128 };
    (0..=width)
        .filter_map(|length| IpNet::new(first, length).ok())
        .find(|net| net.network() == first && net.broadcast() == last)
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_at_checked(N)?;
        self.0 = rest;
        head.try_into().ok()
    }

    fn ip(&mut self, family: Family) -> Option<IpAddr> {
        Some(match family {
            Family::V4 => IpAddr::from(self.take::<4>()?),
            Family::V6 => IpAddr::from(self.take::<16>()?),
        })
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let [number, ..] = self.take::<4>()?;
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn number(&mut self) -> Option<u32> {
        self.take::<4>().map(u32::from_ne_bytes)
    }

    fn address(&mut self, family: Family) -> Option<Frontend> {
        Some(Frontend::Address { ip: self.ip(family)?, protocol: self.protocol()?, port: self.port()? })
    }

    fn node_port(&mut self, family: Family) -> Option<Frontend> {
        Some(Frontend::NodePort { family, protocol: self.protocol()?, port: self.port()? })
    }
}
