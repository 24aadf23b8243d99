//! The rules that have the kernel tell of packets: a table beside ours, which the kernel removes when the process that made it ends,
//! however it ends (`NFT_TABLE_F_OWNER`, Linux 5.12).
//!
//! ```text
//! chain prerouting, output   priority -150: behind connection tracking, before any destination is rewritten
//!   where the model is asked             goto passed
//!   ct state new, ct status without confirmed: the first packet, not the next ones of a flow that nobody has answered yet
//!   what the filter says                 goto follow
//! chain passed               empty
//! chain follow               limit; meta nftrace set 1
//! chain input, postrouting   priority 300: behind every rewriting; empty, for the packet as it is then
//! ```

use std::net::IpAddr;

use crate::backend::nftables::expression::{Compare, Expression, Register};
use crate::backend::nftables::netlink::Op;
use crate::backend::nftables::rule::{Field, family_is, octets};
use crate::live::filter::Filter;
use crate::state::objects::{Family, Protocol};

/// Where the packet is as it came: before any destination is rewritten.
pub const BEFORE: [(&str, u32); 2] = [("prerouting", 0), ("output", 3)];
/// Where the packet is as it goes on: to a process of this node, or out of it.
pub const AFTER: [(&str, u32); 2] = [("input", 1), ("postrouting", 4)];
const FOLLOW: &str = "follow";
const PASSED: &str = "passed";
const BEFORE_DESTINATIONS: i32 = -150;
const AFTER_SOURCES: i32 = 300;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const NEW: u32 = 8;
/// `IPS_CONFIRMED`: a packet of the connection has passed all hooks.
const CONFIRMED: u32 = 8;

/// The name of the table of a process.
pub fn table(process: u32) -> String {
    format!("kubeferry-trace-{process}")
}

/// The rules of the chain that decides which packets are followed: one for each place that is not, then one for each destination.
pub fn matches(filter: &Filter) -> Vec<Vec<Expression>> {
    let everybody = Filter::default();
    let passed = filter.except.iter().map(|at| rule(&everybody, Protocol::Tcp, Some(at.ip()), Some(at.port()), PASSED));
    let followed = filter
        .to
        .iter()
        .flat_map(|to| to.protocols().into_iter().map(|protocol| rule(filter, protocol, to.ip, to.port, FOLLOW)));
    let anywhere = Protocol::ALL.into_iter().filter(|_| filter.to.is_empty());
    let anywhere = anywhere.map(|protocol| rule(filter, protocol, None, None, FOLLOW));
    passed.chain(followed).chain(anywhere).collect()
}

fn rule(filter: &Filter, protocol: Protocol, to: Option<IpAddr>, port: Option<u16>, chain: &str) -> Vec<Expression> {
    let register = Register::FIRST;
    let equal = |value| Expression::Compare { register, compare: Compare::Equal, value };
    let mut rule = vec![
        Expression::ConnectionState(register),
        Expression::Mask { register, mask: NEW.to_ne_bytes().to_vec() },
        Expression::Compare { register, compare: Compare::NotEqual, value: vec![0; 4] },
        Expression::ConnectionStatus(register),
        Expression::Mask { register, mask: CONFIRMED.to_ne_bytes().to_vec() },
        Expression::Compare { register, compare: Compare::Equal, value: vec![0; 4] },
    ];
    if let Some(family) = filter.from.or(to).map(Family::of) {
        rule.extend(family_is(family));
    }
    let mut address = |field, ip: Option<IpAddr>| {
        if let Some(ip) = ip {
            rule.extend([Expression::address(field, Family::of(ip), register), equal(octets(ip))]);
        }
    };
    address(Field::Source, filter.from);
    address(Field::Destination, to);
    rule.extend([Expression::L4Proto(register), equal(vec![protocol.number()])]);
    if let Some(port) = filter.from_port {
        rule.extend([Expression::SourcePort(register), equal(port.to_be_bytes().to_vec())]);
    }
    if let Some(port) = port {
        rule.extend([Expression::DestinationPort(register), equal(port.to_be_bytes().to_vec())]);
    }
    rule.push(Expression::Goto(chain.to_owned()));
    rule
}

/// What has the kernel tell of a packet: at most so many in a second, and as many at once.
pub fn follow(per_second: u32) -> Vec<Expression> {
    vec![
        Expression::Limit { per_second, burst: per_second },
        Expression::Immediate { value: vec![1], to: Register::FIRST },
        Expression::StoreTrace(Register::FIRST),
    ]
}

/// The whole table.
pub fn ops<'a>(matches: &'a [Vec<Expression>], follow: &'a [Expression]) -> Vec<Op<'a>> {
    let mut ops = vec![Op::AddOwnTable, Op::AddChain { chain: PASSED }, Op::AddChain { chain: FOLLOW }];
    ops.push(Op::AddRule { chain: FOLLOW, expressions: follow });
    for (chain, hook) in AFTER {
        ops.push(Op::AddFilterChain { chain, hook, priority: AFTER_SOURCES });
    }
    for (chain, hook) in BEFORE {
        ops.push(Op::AddFilterChain { chain, hook, priority: BEFORE_DESTINATIONS });
        ops.extend(matches.iter().map(|expressions| Op::AddRule { chain, expressions }));
    }
    ops
}
