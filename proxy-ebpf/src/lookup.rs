//! From a packet's destination to a frontend, and from there to an endpoint.

use core::ffi::c_void;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use kubeferry_ebpf_common::policy::{Choice, Source, choose};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{
    Address, AffinityKey, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Member, RangeKey, config::address_is,
};

use crate::connection::find;
use crate::known::Sockets;
use crate::maps::{ADDRESSES, AFFINITY, CONFIG, DEVICES, FRONTENDS, MEMBERS, SOURCE_RANGES};
use crate::route::way_back;
use crate::scheduler::pick;
use crate::tc::LOOPBACK;
use crate::work::Work;

/// What becomes of a new connection.
#[derive(Clone, Copy)]
pub enum Answer {
    /// Nobody's address: it goes on.
    NotOurs,
    /// It goes to the endpoint in `work.slot`; the source is rewritten if `masquerade`.
    Endpoint {
        masquerade: bool,
    },
    Refuse(Counter),
    Drop(Counter),
}

/// Where a new connection comes from, beside its source address.
#[derive(Clone, Copy)]
pub enum Origin {
    /// It came in by this interface.
    Device(u32),
    /// The node itself opened it.
    Node,
}

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// What an address is to the node: bits of `address_is`.
#[inline(always)]
pub fn address(ip: &Address) -> u32 {
    // SAFETY: read at once.
    match unsafe { ADDRESSES.get(ip) } {
        Some(flags) => *flags,
        None if ip.is_loopback() => address_is::HELD,
        None => 0,
    }
}

/// How often a row that is written again meanwhile is read.
const READS: usize = 8;

/// Why there is no row.
#[derive(Clone, Copy)]
pub enum Missing {
    /// There is no such frontend: what the address is to the node, bits of `address_is`.
    Nobody(u32),
    /// It is written again and again.
    Changing,
}

/// Copies the row of a frontend. The kernel may give a row that is replaced or deleted to another frontend at once, while we
/// read it; so it counts only if, looked up again, it still says what was copied. `None`: there is none.
#[inline(always)]
fn copy(at: &FrontendKey, row: &mut Frontend) -> Option<Result<(), Missing>> {
    for _ in 0..READS {
        // SAFETY: copied at once, and looked at again below.
        let found: *const Frontend = unsafe { FRONTENDS.get(at) }?;
        // SAFETY: the row stays memory of the map until the program ends. Volatile: neither left out nor done later.
        *row = unsafe { found.read_volatile() };
        // SAFETY: compared at once.
        let again = unsafe { FRONTENDS.get(at) }?;
        if *again == *row {
            return Some(Ok(()));
        }
    }
    Some(Err(Missing::Changing))
}

/// Copies the row of the frontend at an address, whose key is `at`, or at a node port.
#[inline(always)]
pub fn frontend(at: &mut FrontendKey, config: &Config, row: &mut Frontend) -> Result<(), Missing> {
    at.kind = FrontendKey::ADDRESS;
    if let Some(result) = copy(at, row) {
        return result;
    }
    let is = address(&at.address);
    let v4 = at.address.is_v4();
    let all = if v4 { Config::ALL_NODE_PORTS4 } else { Config::ALL_NODE_PORTS6 };
    let answers = is & address_is::NODE_PORTS != 0 || (is & address_is::HELD != 0 && config.flags & all != 0);
    if answers && !at.address.is_loopback() {
        at.address = Address::ZERO;
        at.kind = if v4 { FrontendKey::NODE_PORT4 } else { FrontendKey::NODE_PORT6 };
        if let Some(result) = copy(at, row) {
            return result;
        }
    }
    Err(Missing::Nobody(is))
}

/// What becomes of packets to an address that has no such frontend.
#[inline(always)]
pub fn without_frontend(destination: &Address, is: u32, config: &Config) -> Answer {
    if is & address_is::CLUSTER_IP != 0 {
        return Answer::Refuse(Counter::UndefinedPort);
    }
    if is & address_is::HELD == 0 {
        for (at, range) in config.service_cidrs.iter().enumerate() {
            if at as u32 >= config.service_cidr_count {
                break;
            }
            if range.contains(destination) {
                return Answer::Drop(Counter::Unallocated);
            }
        }
    }
    Answer::NotOurs
}

/// Decides about a new connection, whose packet and key are in `work`. An endpoint is left in `work.slot`.
#[inline(always)]
pub fn answer(context: *mut c_void, work: &mut Work, origin: Origin) -> Answer {
    let Some(config) = config() else { return Answer::NotOurs };
    work.frontend.address = work.packet.key.destination;
    work.frontend.port = work.packet.key.destination_port;
    work.frontend.protocol = work.packet.key.protocol;
    match frontend(&mut work.frontend, config, &mut work.row) {
        Ok(()) if matches!(origin, Origin::Device(_)) && is_looped(work) => Answer::NotOurs,
        // It is for somebody who began from this address and port of the node: see `others.rs`.
        Ok(()) if work.packet.opens_nothing() && address(&work.packet.key.destination) & address_is::HELD != 0 => {
            Answer::NotOurs
        }
        Ok(()) if is_served_by_node(context, work) => Answer::NotOurs,
        Ok(()) if config.flags & Config::ESTABLISHED_ELSEWHERE != 0 && work.packet.is_within_tcp() => Answer::NotOurs,
        Ok(()) if matches!(origin, Origin::Device(_)) && is_forged(context, work) => Answer::Drop(Counter::Forged),
        Ok(()) => endpoint(work, origin, config),
        Err(Missing::Nobody(is)) if is & address_is::CLUSTER_IP != 0 && is_within_node(context, work, is) => {
            Answer::NotOurs
        }
        Err(Missing::Nobody(is)) => without_frontend(&work.packet.key.destination, is, config),
        Err(Missing::Changing) => Answer::Drop(Counter::Moving),
    }
}

/// Whether a frontend is a ClusterIP that an interface of the node has as well: something of the node may serve in the endpoints' place, such as a
/// cache of names.
#[inline(always)]
pub fn may_be_of_node(row: &Frontend, at: &FrontendKey) -> bool {
    row.flags & Frontend::EXTERNAL == 0
        && at.kind == FrontendKey::ADDRESS
        && address(&at.address) & address_is::HELD != 0
}

/// Whether the packet goes there, and a socket of the node is bound to just that address.
#[inline(never)]
fn is_served_by_node(context: *mut c_void, work: &Work) -> bool {
    may_be_of_node(&work.row, &work.frontend) && Sockets::here(context).serves(&work.packet.key)
}

/// Whether the packet is from the node to a socket of its own, at an address that `is` that: an answer of who is served so, and has asked from
/// the same address.
#[inline(never)]
fn is_within_node(context: *mut c_void, work: &Work, is: u32) -> bool {
    let key = &work.packet.key;
    is & address(&key.source) & address_is::HELD != 0 && Sockets::here(context).expects(key)
}

/// Whether who sends the packet, which would open a connection, has not the address that it comes from. What is open between its ends without us
/// would be taken for that connection: a pod could end it with one packet. An address is another pod's if it is the next hop itself by that
/// pod's device. Of a bridge's pods nothing tells them apart, and there are CNIs whose programs reach pods past all routes.
#[inline(never)]
fn is_forged(context: *mut c_void, work: &mut Work) -> bool {
    let source = &work.packet.key.source;
    if work.came_by == LOOPBACK {
        return false;
    }
    // As the kernel drops it, but for IPv6.
    if address(source) & address_is::HELD != 0 {
        return true;
    }
    // SAFETY: read at once.
    let Some(device) = (unsafe { DEVICES.get(work.came_by) }) else { return false };
    if device.flags & Device::ROUTED == 0 || source.is_link_local() {
        return false;
    }
    let Some(way) = way_back(context, work) else { return false };
    // SAFETY: as above.
    unsafe { DEVICES.get(way) }.is_some_and(|there| there.flags & Device::ROUTED != 0 && there.peer != device.peer)
}

/// Whether the packet has been translated: one of the node's own to an endpoint in its host network comes in once more (see
/// [`Flow::LOOPS`]), and the endpoint's address and port may be a Service's, too.
#[inline(always)]
fn is_looped(work: &mut Work) -> bool {
    work.packet.key.write_reverse(FlowKey::IN, &mut work.other_key);
    find(&work.other_key).is_some_and(|flow| flow.flags & (Flow::OWN | Flow::FORWARD) == Flow::OWN)
}

#[inline(always)]
fn endpoint(work: &mut Work, origin: Origin, config: &Config) -> Answer {
    let frontend = &work.row;
    if frontend.flags & Frontend::RANGED != 0 {
        let source = RangeKey::new(frontend.service, work.packet.key.source);
        work.range = Key::new(RangeKey::SERVICE_BITS + 128, source);
        if SOURCE_RANGES.get(&work.range).is_none() {
            return Answer::Drop(Counter::SourceRange);
        }
    }
    if frontend.flags & Frontend::REFUSE != 0 {
        return Answer::Refuse(Counter::Refused);
    }
    if config.flags & Config::MOVING != 0 {
        return Answer::Drop(Counter::Moving);
    }
    let choice = choose(frontend, config.flags, source(&work.packet.key.source, origin, config));
    if choice.count == 0 {
        return Answer::Drop(Counter::NoLocalEndpoint);
    }
    let chosen = match frontend.affinity {
        0 => draw(work, &choice),
        timeout => remembered(work, timeout, &choice),
    };
    match chosen {
        true => Answer::Endpoint { masquerade: choice.masquerade || work.slot.address == work.packet.key.source },
        false => Answer::Drop(Counter::NoLocalEndpoint),
    }
}

/// Draws a slot for the packet.
#[inline(always)]
fn draw(work: &mut Work, choice: &Choice) -> bool {
    let key = &work.packet.key;
    pick(&work.row, choice, &key.source, key.source_port, &key.destination, &mut work.slot)
}

/// What the source is to this node.
#[inline(always)]
pub fn source(ip: &Address, origin: Origin, config: &Config) -> Source {
    let v4 = ip.is_v4();
    let detector = config.flags & if v4 { Config::DETECTOR4 } else { Config::DETECTOR6 } != 0;
    let is_node = matches!(origin, Origin::Node) || address(ip) & address_is::HELD != 0;
    let is_pod = if config.flags & Config::BY_DEVICE != 0 {
        match origin {
            // SAFETY: read at once.
            Origin::Device(index) if !is_node => match unsafe { DEVICES.get(index) } {
                Some(device) => device.flags & Device::POD != 0,
                None => false,
            },
            _ => false,
        }
    } else {
        detector && config.pods[if v4 { 0 } else { 1 }].contains(ip)
    };
    Source { is_pod, is_node, detector }
}

/// ClientIP affinity: the endpoint that the client had, while it counts; otherwise one is drawn. Either is remembered.
#[inline(always)]
fn remembered(work: &mut Work, timeout: u32, choice: &Choice) -> bool {
    let service = work.row.service;
    work.client = AffinityKey { service, client: work.packet.key.source };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let list = if choice.local { Member::LOCAL } else { Member::CLUSTER };
    let mut known = false;
    // SAFETY: read at once.
    if let Some(affinity) = unsafe { AFFINITY.get(&work.client) }
        // Signed: another CPU may have noted a later time than our `now`.
        && now.wrapping_sub(affinity.seen) as i64 <= i64::from(timeout) * 1_000_000_000
    {
        work.member.service = service;
        work.member.address = affinity.address;
        work.member.port = affinity.port;
        work.member.reserved = [0; 3];
        // SAFETY: read at once.
        if let Some(member) = unsafe { MEMBERS.get(&work.member) }
            && member.lists & list != 0
            && member.since <= affinity.seen
        {
            work.slot.address = work.member.address;
            work.slot.port = work.member.port;
            work.slot.flags = member.flags;
            work.slot.backend = member.backend;
            known = true;
        }
    }
    if !known && !draw(work, choice) {
        return false;
    }
    work.affinity.address = work.slot.address;
    work.affinity.port = work.slot.port;
    work.affinity.reserved = [0; 3];
    work.affinity.seen = now;
    // An LRU map takes every row; not remembered, the client is drawn again.
    let _ = AFFINITY.insert(&work.client, &work.affinity, 0);
    true
}
