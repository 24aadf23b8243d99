//! One rule, said twice: as nft's text (for `plan`, and for replacing the whole table) and as the kernel's expressions
//! (for adding a chain by netlink, as the rows that need it; nft 1.0.6 cannot add a rule that uses a map
//! declared with `typeof` earlier). A test holds the two together: the kernel must list them alike.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::state::objects::{Family, Protocol};

use super::expression::{Compare, Expression, Register};

/// A field of the IP header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// The source address.
    Source,
    /// The destination address.
    Destination,
}

/// A rule of a chain.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rule {
    text: Vec<String>,
    expressions: Vec<Expression>,
}

impl Rule {
    /// A rule that matches everything and does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The rule in nft's words.
    pub fn text(&self) -> String {
        self.text.join(" ")
    }

    /// The rule as the kernel takes it.
    pub fn expressions(&self) -> &[Expression] {
        &self.expressions
    }

    pub(super) fn add(mut self, text: impl Into<String>, expressions: impl IntoIterator<Item = Expression>) -> Self {
        self.text.push(text.into());
        self.expressions.extend(expressions);
        self
    }

    /// Goes to another chain.
    pub fn goto(self, chain: &str) -> Self {
        self.add(format!("goto {chain}"), [Expression::Goto(chain.to_owned())])
    }

    /// Sets a bit of the packet's mark and leaves the others.
    pub fn set_mark(self, mark: u32) -> Self {
        let register = Register::FIRST;
        let expressions =
            [Expression::LoadMark(register), Expression::Or { register, bits: mark }, Expression::StoreMark(register)];
        self.add(format!("meta mark set meta mark | {mark:#010x}"), expressions)
    }

    /// Matches packets whose address lies inside (`is`) or outside a range.
    pub fn address_in(self, field: Field, net: IpNet, is: bool) -> Self {
        let family = Family::of(net.addr());
        let (ip, name) = (if family == Family::V4 { "ip" } else { "ip6" }, field_name(field));
        let text = format!("{ip} {name} {}{net}", if is { "" } else { "!= " });
        let register = Register::FIRST;
        let mut expressions = Vec::from(family_is(family));
        let (bytes, prefix) = (octets(net.network()), usize::from(net.prefix_len()));
        let compare = if is { Compare::Equal } else { Compare::NotEqual };
        // As nft writes it: a prefix of whole bytes is a shorter load, another is masked.
        if prefix > 0 && prefix % 8 == 0 {
            expressions.push(Expression::AddressBytes { field, family, length: prefix / 8, to: register });
            expressions.push(Expression::Compare { register, compare, value: bytes[..prefix / 8].to_vec() });
        } else {
            expressions.push(Expression::address(field, family, register));
            expressions.push(Expression::Mask { register, mask: octets(net.netmask()) });
            expressions.push(Expression::Compare { register, compare, value: bytes });
        }
        self.add(text, expressions)
    }

    /// Matches packets that came in by an interface (or one whose name begins so), or by another (`!is`).
    pub fn interface(self, name: &str, prefix: bool, is: bool) -> Self {
        let text = format!("iifname {}\"{name}{}\"", if is { "" } else { "!= " }, if prefix { "*" } else { "" });
        let mut value = name.as_bytes().to_vec();
        if !prefix {
            value.resize(16, 0);
        }
        let compare = if is { Compare::Equal } else { Compare::NotEqual };
        let register = Register::FIRST;
        self.add(text, [Expression::InputInterface(register), Expression::Compare { register, compare, value }])
    }

    /// Matches packets whose source address the node holds.
    pub fn source_is_local(self, _family: Family) -> Self {
        const RTN_LOCAL: u32 = 2;
        let register = Register::FIRST;
        let local = Expression::Compare { register, compare: Compare::Equal, value: RTN_LOCAL.to_ne_bytes().to_vec() };
        self.add("fib saddr type local", [Expression::SourceType(register), local])
    }

    /// Matches packets of one protocol whose source was remembered for the endpoint with this number.
    pub fn known_client(self, family: Family, protocol: Protocol, number: u32) -> Self {
        let (ip, set) = if family == Family::V4 { ("ip", "affinity4") } else { ("ip6", "affinity6") };
        let text = format!("meta l4proto {protocol} {ip} saddr . numgen inc mod 1 offset {number} @{set}");
        let first = Register::FIRST;
        let mut expressions = vec![
            Expression::L4Proto(first),
            Expression::Compare { register: first, compare: Compare::Equal, value: vec![protocol.number()] },
        ];
        expressions.extend(family_is(family));
        expressions.push(Expression::address(Field::Source, family, first));
        expressions.push(Expression::Constant { value: number, to: first.after_address(family) });
        expressions.push(Expression::Lookup { set: set.to_owned(), from: first, to: None });
        self.add(text, expressions)
    }

    /// Rewrites the destination to this endpoint.
    pub fn dnat(self, endpoint: SocketAddr) -> Self {
        let family = Family::of(endpoint.ip());
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        // As nft does, the port in the next register of 16 bytes, also after an IPv4 address.
        let (first, second) = (Register::FIRST, Register::FIRST.after_address(Family::V6));
        let expressions = [
            Expression::Immediate { value: octets(endpoint.ip()), to: first },
            Expression::Immediate { value: endpoint.port().to_be_bytes().to_vec(), to: second },
            Expression::Nat { family, address: first, port: second },
        ];
        self.add(format!("dnat {ip} to {endpoint}"), expressions)
    }

    /// Remembers the client of a connection that goes to this endpoint, or renews its time.
    pub fn remember(self, family: Family, endpoint: SocketAddr, number: u32, timeout: Duration) -> Self {
        let (ip, set) = if family == Family::V4 { ("ip", "affinity4") } else { ("ip6", "affinity6") };
        let text = format!(
            "{ip} daddr {} th dport {} update @{set} {{ ct original {ip} saddr . numgen inc mod 1 offset {number} timeout {}s }}",
            endpoint.ip(),
            endpoint.port(),
            timeout.as_secs()
        );
        let first = Register::FIRST;
        let equal = |value| Expression::Compare { register: first, compare: Compare::Equal, value };
        let mut expressions = Vec::from(family_is(family));
        expressions.extend([
            Expression::address(Field::Destination, family, first),
            equal(octets(endpoint.ip())),
            Expression::DestinationPort(first),
            equal(endpoint.port().to_be_bytes().to_vec()),
            Expression::OriginalSource { family, to: first },
            Expression::Constant { value: number, to: first.after_address(family) },
            Expression::Update { set: set.to_owned(), key: first, timeout },
        ]);
        self.add(text, expressions)
    }
}

fn field_name(field: Field) -> &'static str {
    match field {
        Field::Source => "saddr",
        Field::Destination => "daddr",
    }
}

/// In a table of family inet, nft puts this before every look at an IP header.
pub(crate) fn family_is(family: Family) -> [Expression; 2] {
    const NFPROTO_IPV4: u8 = 2;
    const NFPROTO_IPV6: u8 = 10;
    let value = vec![if family == Family::V4 { NFPROTO_IPV4 } else { NFPROTO_IPV6 }];
    [
        Expression::NfProto(Register::FIRST),
        Expression::Compare { register: Register::FIRST, compare: Compare::Equal, value },
    ]
}

/// The bytes of an address in network order.
pub(crate) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
