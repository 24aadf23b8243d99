//! Netlink: what the kernel answers, and rows as we send them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::pipeline;
use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::maps::{elements, map_of, row};
use crate::backend::nftables::netlink::fuzzing as nft;
use crate::backend::nftables::netlink::{Data, Element};
use crate::backend::nftables::rows::{Key, Part, Value, Wanted};
use crate::desired::target::Frontend;
use crate::state::objects::{Family, Protocol};
use crate::{conntrack as tracking, leftovers as left, node};

/// Answers of nf_tables: tables, chains, rules, sets, elements, acknowledgements.
pub fn nf_tables(bytes: &[u8]) {
    // Bytes that are no answer are refused.
    let _ = nft::read(bytes);
}

/// Rows that a transaction has taken.
pub fn taken(bytes: &[u8]) {
    // Bytes that are no answer are refused.
    let _ = nft::read_taken(bytes);
}

/// Entries of connection tracking. What an entry is deleted by is that entry.
pub fn conntrack(bytes: &[u8]) {
    tracking::fuzzing::entries(bytes);
}

/// What connections carried, by connection tracking.
pub fn counts(bytes: &[u8]) {
    tracking::fuzzing::counts(bytes);
}

/// Interfaces and addresses.
pub fn interfaces(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest) {
        node::fuzzing::message(&message.payload);
        let length = (message.header.length as usize).next_multiple_of(4).max(16);
        rest = rest.get(length..).unwrap_or_default();
    }
}

/// The first byte says whether it is an answer of the kernel or the text of `iptables-legacy-save`.
pub fn leftovers(bytes: &[u8]) {
    match bytes.split_first() {
        // Bytes that are no answer are refused.
        Some((0, answers)) => drop(left::fuzzing::answers(answers)),
        Some((_, saved)) => left::fuzzing::saved(&String::from_utf8_lossy(saved)),
        None => {}
    }
}

/// Sockets of UDP.
#[cfg(feature = "ebpf")]
pub fn sockets(bytes: &[u8]) {
    crate::backend::ebpf::sock_diag::read(bytes);
}

/// Filters of an interface. The program's number is somewhere in the answer.
#[cfg(feature = "ebpf")]
pub fn filters(bytes: &[u8]) {
    if let Ok(Some(number)) = crate::backend::ebpf::filters::read(bytes) {
        assert!(bytes.windows(4).any(|word| word == number.to_ne_bytes()), "{number}");
    }
}

/// Rows by any bytes, as the kernel takes them and back.
pub fn rows(bytes: &[u8]) {
    let mut cursor = Cursor(bytes);
    let group = usize::from(cursor.byte()) * 64;
    let mut wanted = Wanted::default();
    while !cursor.0.is_empty() && wanted.rows.len() < 256 {
        let (key, value) = cursor.row();
        wanted.rows.insert(key, value);
    }
    pipeline::rows(&wanted);
    let sent: Vec<(&str, Element)> = wanted
        .rows
        .iter()
        .flat_map(|(key, value)| elements(key, value).into_iter().map(move |element| (map_of(key), element)))
        .collect();
    let added = nft::there_and_back(&sent, true, group);
    assert!(added.iter().map(|(map, element)| (map.as_str(), element)).eq(sent.iter().map(|(map, e)| (*map, e))));
    let deleted = nft::there_and_back(&sent, false, group);
    let without_data = sent.iter().map(|(map, element)| (*map, Element { data: Data::None, ..element.clone() }));
    assert!(deleted.iter().map(|(map, element)| (map.as_str(), element.clone())).eq(without_data));
    // An element of any bytes is a row that gives the same element, or none.
    let maps = crate::backend::nftables::maps::MAPS;
    let [of, family] = [cursor.byte(), cursor.byte()].map(usize::from);
    let map = maps[of % maps.len()][family % 2];
    let key_end = bytes.len().is_multiple_of(2).then(|| bytes.to_vec());
    let element = Element { key_end, ..Element::new(bytes.to_vec(), Data::Value(bytes.to_vec())) };
    if let Some((key, value)) = row(map, &element) {
        let written = elements(&key, &value);
        assert_eq!(row(map, &written[0]), Some((key, value)));
    }
}

/// Any bytes, as numbers and so on; zeroes at their end.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        })
    }

    fn ip(&mut self, family: Family) -> IpAddr {
        match family {
            Family::V4 => IpAddr::from(self.bytes::<4>()),
            Family::V6 => IpAddr::from(self.bytes::<16>()),
        }
    }

    fn port(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes())
    }

    fn number(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes())
    }

    fn net(&mut self, family: Family) -> IpNet {
        let width = if family == Family::V4 { 33 } else { 129 };
        let (ip, length) = (self.ip(family), self.byte() % width);
        IpNet::new(ip, length).unwrap_or_else(|_| IpNet::from(ip)).trunc()
    }

    fn protocol(&mut self) -> Protocol {
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(self.byte() % 3)]
    }

    fn row(&mut self) -> (Key, Value) {
        let what = self.byte();
        let family = if what & 0x80 == 0 { Family::V4 } else { Family::V6 };
        let address = |cursor: &mut Self| Frontend::Address {
            ip: cursor.ip(family),
            protocol: cursor.protocol(),
            port: cursor.port(),
        };
        let frontend = match what & 0x40 {
            0 => address(self),
            _ => Frontend::NodePort { family, protocol: self.protocol(), port: self.port() },
        };
        let chain = |cursor: &mut Self| Value::Chain(Arc::from(format!("c-{:x}", cursor.number())));
        let endpoint = |cursor: &mut Self| Value::Endpoint(SocketAddr::new(cursor.ip(family), cursor.port()));
        match what & 15 {
            0 => (Key::Of(frontend, Part::Verdict), chain(self)),
            1 => (Key::Of(frontend, Part::Remember), chain(self)),
            2 => (Key::Of(address(self), Part::Ranged), chain(self)),
            3 => (Key::Of(address(self), Part::SourceRange(self.net(family))), Value::Present),
            4 => (Key::Hairpin(self.ip(family)), Value::Present),
            5 => (Key::ClusterIp(self.ip(family)), Value::Present),
            6 => (Key::NodePortAddress(self.ip(family)), Value::Present),
            7 => {
                let identity = u64::from_be_bytes(self.bytes());
                let turn = Turn { family, protocol: self.protocol(), identity };
                (Key::Turn(turn, self.number()), endpoint(self))
            }
            _ => (Key::Of(frontend, Part::Endpoint(self.number())), endpoint(self)),
        }
    }
}
