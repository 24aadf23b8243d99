//! Connections: the entries of `flows`, made and kept.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use kubeferry_ebpf_common::flow::{TICK, limits, timeout};
use kubeferry_ebpf_common::packet::{FIN, Packet, RST};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Config, Flow, FlowKey, Slot, TCP};

use crate::counting::{begin, close, count_packet, end_flow};
use crate::known::Sockets;
use crate::lookup::config;
use crate::maps::{DEVICES, FLOWS};
use crate::work::Work;

/// Ports that are tried to masquerade with.
const MASQUERADE_TRIES: usize = 24;
/// Ports that are tried as an alias.
const ALIAS_TRIES: usize = 4;

/// Now, in the clock of flows.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK) as u32
}

/// The entry of a packet.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: entries are written by packets of this direction only, each field as a whole.
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Notes that the packet in `work`, whose entry this is, went by.
#[inline(always)]
pub fn touch(work: &mut Work, flow: &mut Flow, now: u32) {
    let packet = &work.packet;
    let before = flow.flags;
    let mut flags = before | Flow::SEEN;
    if packet.key.protocol == TCP {
        if packet.tcp_flags & FIN != 0 {
            flags |= Flow::FIN;
        }
        if packet.tcp_flags & RST != 0 {
            flags |= Flow::RST;
        }
    }
    if flags != before {
        flow.flags = flags;
    }
    if flow.seen != now {
        flow.seen = now;
    }
    // Each packet passes one of these two entries.
    if (flags & Flow::FORWARD != 0) == (packet.key.hook == FlowKey::IN) {
        count_packet(work, flow);
        if (flags ^ before) & (Flow::FIN | Flow::RST) != 0 {
            close(work, flow);
        }
    }
}

/// Whether a connection is over: its forward-in entry is `flow`, and now a packet of it comes again.
#[inline(always)]
fn is_over(packet: &Packet, flow: &Flow, backward: &mut FlowKey, now: u32) -> bool {
    let idle = now.wrapping_sub(flow.seen);
    let may_be = if packet.key.protocol == TCP { packet.opens_tcp() } else { idle > limits::ONE_WAY };
    if !may_be {
        return false;
    }
    packet.key.write_backward(flow, backward);
    let (flags, seen) = match find(backward) {
        Some(answers) => (answers.flags, answers.seen),
        None => (0, flow.seen),
    };
    let limit = timeout(packet.key.protocol, flow.flags, flags);
    // A connection that a side has closed is over for whoever opens it again: nobody does who has not forgotten it, and the
    // other side may be gone, which would then be asked for as long as somebody asks.
    let closed = packet.key.protocol == TCP && (flow.flags | flags) & Flow::FIN != 0;
    closed || limit == limits::CLOSED || (idle > limit && now.wrapping_sub(seen) > limit)
}

/// The entry of the packet in `work`, unless its connection is over; then it is forgotten.
#[inline(always)]
pub fn current(work: &mut Work, now: u32) -> Option<&'static mut Flow> {
    let flow = find(&work.packet.key)?;
    if flow.flags & Flow::FORWARD != 0 {
        if is_over(&work.packet, flow, &mut work.key, now) {
            forget(work, flow);
            return None;
        }
        return Some(flow);
    }
    lives(&work.packet, flow)
}

/// The entry of the packet in `work` on its way out, unless its connection is over: see [`lives`].
#[inline(always)]
pub fn leaving(packet: &Packet) -> Option<&'static mut Flow> {
    lives(packet, find(&packet.key)?)
}

/// An entry whose side has closed is none for a packet with which a side begins: the kernel's own translation gives ports
/// without knowing of ours, where another proxy uses it beside us. The entry is forgotten. Ours are made anew by the packet that
/// opens their connection.
#[inline(always)]
fn lives(packet: &Packet, flow: &'static mut Flow) -> Option<&'static mut Flow> {
    if flow.flags & (Flow::FIN | Flow::RST) != 0 && packet.begins_tcp() {
        let _ = FLOWS.remove(&packet.key);
        return None;
    }
    Some(flow)
}

/// Forgets the connection of a packet, by its forward-in entry.
#[inline(always)]
fn forget(work: &mut Work, flow: &mut Flow) {
    let key = &work.packet.key;
    if flow.flags & Flow::LOOPS != 0 {
        key.write_looped(flow, &mut work.key);
        let _ = FLOWS.remove(&work.key);
    }
    key.write_forward(flow, &mut work.key);
    end_flow(flow);
    if let Some(out) = find(&work.key) {
        work.key.write_answer(out, &mut work.other_key);
        let _ = FLOWS.remove(&work.other_key);
        let _ = FLOWS.remove(&work.key);
    }
    key.write_backward(flow, &mut work.key);
    let _ = FLOWS.remove(&work.key);
    let _ = FLOWS.remove(key);
}

/// Whether an entry of a connection that is not looked at as a whole is to be kept.
#[inline(always)]
fn is_kept(protocol: u8, flow: &Flow, now: u32) -> bool {
    let limit = timeout(protocol, flow.flags, flow.flags);
    limit != limits::CLOSED && now.wrapping_sub(flow.seen) <= limit
}

/// Whether the packet in `work` opens a connection of one of `sockets` that nobody translates, and whose answers would be taken
/// for those of another, whose entry for answers is at `hook`. If so, `work.slot` is where it goes. A packet that has been
/// translated, and comes by once more (from a bridge), looks the same, but no socket has its ends.
#[inline(always)]
pub fn is_mistakable(work: &mut Work, hook: u8, now: u32, sockets: Sockets) -> bool {
    let key = &work.packet.key;
    if key.protocol != TCP || !work.packet.opens_tcp() {
        return false;
    }
    key.write_reverse(hook, &mut work.other_key);
    let is_kept = |flow: &mut Flow| flow.flags & Flow::FORWARD == 0 && is_kept(key.protocol, flow, now);
    let is_other = find(&work.other_key).is_some_and(is_kept) && sockets.has(&work.other_key);
    if is_other {
        work.slot.address = key.destination;
        work.slot.port = key.destination_port;
        work.slot.flags = 0;
        work.slot.backend = 0;
    }
    is_other
}

/// Makes the entries of a new connection to `work.slot`; its first packet is in `work.packet`. `device` is where packets to
/// the service's address leave by, for connections of the node itself; otherwise 0. The forward-in entry is left in
/// `work.flow`. Where the same two ends talk already, by way of another service or, as one of the client's `sockets` says,
/// by none, it gets an alias: the caller looks at [`Flow::ALIAS`]. The packet itself is left for the caller to count. False:
/// another CPU has opened the connection meanwhile, with another packet of it, and `work.slot` is what that has chosen.
#[inline(always)]
pub fn open(work: &mut Work, masquerade: bool, device: u32, now: u32, sockets: Sockets) -> Result<bool, Counter> {
    let own = if device != 0 { Flow::OWN } else { 0 };
    let key = &work.packet.key;
    let (flow, other) = (&mut work.flow, &mut work.other);
    flow.address = work.slot.address;
    flow.port = work.slot.port;
    flow.flags = Flow::FORWARD | Flow::SEEN | own;
    flow.seen = now;
    flow.device = device;
    flow.backend = work.slot.backend;
    *other = *flow;
    key.write_backward(flow, &mut work.key);
    other.address = key.destination;
    other.port = key.destination_port;
    other.flags = own;
    // What the node sends to the endpoint itself looks like what it sends on there from a service: where the endpoint sees
    // another port anyway, these two differ from the beginning.
    let mut taken = (masquerade && device != 0 && work.slot.flags & Slot::HOST == 0) || sockets.has(&work.key);
    if !taken && FLOWS.insert(&work.key, &*other, BPF_NOEXIST.into()).is_err() {
        taken = match find(&work.key) {
            Some(old) if old.address != other.address || old.port != other.port => is_kept(key.protocol, old, now),
            _ => false,
        };
        if !taken {
            FLOWS.insert(&work.key, &*other, BPF_ANY.into()).map_err(|_| Counter::FlowTable)?;
        }
    }
    if taken {
        let config = config().ok_or(Counter::FlowTable)?;
        flow.flags |= Flow::ALIAS;
        other.flags |= Flow::ALIAS;
        other.device = key.source_port.into();
        let mut found = false;
        for _ in 0..ALIAS_TRIES {
            flow.device = draw(config).into();
            key.write_backward(flow, &mut work.key);
            // The node itself may be masqueraded with the same port for somebody else.
            work.other_key = work.key;
            work.other_key.hook = FlowKey::IN;
            if !sockets.has(&work.key)
                && find(&work.other_key).is_none()
                && FLOWS.insert(&work.key, &*other, BPF_NOEXIST.into()).is_ok()
            {
                found = true;
                break;
            }
        }
        if !found {
            return Err(Counter::FlowTable);
        }
        other.device = device;
    }
    other.flags = own;
    if device != 0 && work.slot.flags & Slot::HOST != 0 {
        flow.flags |= Flow::LOOPS;
        key.write_looped(flow, &mut work.other_key);
        other.address = key.source;
        other.port = flow.client_port(key.source_port);
        FLOWS.insert(&work.other_key, &*other, BPF_ANY.into()).map_err(|_| Counter::FlowTable)?;
    } else if masquerade || device != 0 {
        key.write_forward(flow, &mut work.key);
        other.address = key.source;
        other.port = flow.client_port(key.source_port);
        other.flags = Flow::FORWARD | own | if masquerade { Flow::PENDING } else { Flow::KEEPS };
        FLOWS.insert(&work.key, &*other, BPF_ANY.into()).map_err(|_| Counter::FlowTable)?;
        if !masquerade {
            work.key.write_answer(other, &mut work.other_key);
            other.flags = own | Flow::KEEPS;
            FLOWS.insert(&work.other_key, &*other, BPF_ANY.into()).map_err(|_| Counter::FlowTable)?;
        }
    }
    if flow.backend != 0 {
        flow.backend |= Flow::COUNTED;
    }
    if FLOWS.insert(key, &*flow, BPF_NOEXIST.into()).is_err() {
        let Some(there) = find(key) else { return Err(Counter::FlowTable) };
        if there.flags & Flow::FORWARD == 0 {
            return Err(Counter::FlowTable);
        }
        // What was made here for another endpoint belongs to no connection, and is swept.
        *flow = *there;
        work.slot.address = there.address;
        work.slot.port = there.port;
        return Ok(false);
    }
    begin(flow.backend_row());
    Ok(true)
}

/// Draws a port to masquerade with, in network byte order.
#[inline(always)]
fn draw(config: &Config) -> u16 {
    // SAFETY: no arguments.
    let drawn = u64::from(unsafe { bpf_get_prandom_u32() } as u32);
    let at = (drawn * u64::from(config.masquerade_ports)) >> 32;
    config.masquerade_first.wrapping_add(at as u16).to_be()
}

/// Decides what a connection is masqueraded as. Its packet is in `work.packet`, with the key of its forward-out entry
/// `flow`; it leaves by `device`. `sockets` are the node's.
#[inline(always)]
pub fn masquerade(work: &mut Work, flow: &mut Flow, device: u32, now: u32, sockets: Sockets) -> Result<(), Counter> {
    let config = config().ok_or(Counter::NoMasqueradePort)?;
    let key = &work.packet.key;
    work.flow = *flow;
    // SAFETY: read at once.
    match unsafe { DEVICES.get(device) } {
        Some(device) if work.packet.v4 => work.flow.address = device.masquerade4,
        Some(device) => work.flow.address = device.masquerade6,
        None => return Err(Counter::NoMasqueradePort),
    }
    if work.flow.address.is_zero() {
        return Err(Counter::NoMasqueradePort);
    }
    work.other = *flow;
    work.other.address = key.source;
    work.other.port = key.source_port;
    work.other.flags = flow.flags & Flow::OWN;
    work.other.seen = now;
    for _ in 0..MASQUERADE_TRIES {
        work.flow.port = draw(config);
        key.write_answer(&work.flow, &mut work.other_key);
        if !sockets.has(&work.other_key) && FLOWS.insert(&work.other_key, &work.other, BPF_NOEXIST.into()).is_ok() {
            flow.address = work.flow.address;
            flow.port = work.flow.port;
            flow.flags &= !Flow::PENDING;
            return Ok(());
        }
    }
    Err(Counter::NoMasqueradePort)
}
