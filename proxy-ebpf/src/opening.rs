//! New connections: their entries of `flows`, and what they are masqueraded as.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use kubeferry_ebpf_common::config::PRIVILEGED;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Config, Flow, FlowKey, Slot, TCP, UDP};

use crate::connection::{DECIDED, find, is_kept, lower, sender};
use crate::counting::begin;
use crate::known::Sockets;
use crate::lookup::config;
use crate::maps::{DEVICES, FLOWS};
use crate::work::Work;

/// Ports that are tried to masquerade with.
const MASQUERADE_TRIES: usize = 24;
/// Ports that are tried as an alias.
const ALIAS_TRIES: usize = 24;

/// Whether the packet in `work` opens a connection of one of `sockets` that nobody translates (of UDP: belongs to one), and whose answers
/// would be taken for those of another, whose entry for answers is at `hook`. If so, `work.slot` is where it goes. A packet that has been
/// translated, and comes by once more (from a bridge), looks the same, but no socket has its ends.
#[inline(always)]
pub fn is_mistakable(work: &mut Work, hook: u8, now: u32, sockets: Sockets) -> bool {
    let key = &work.packet.key;
    let may_be = match key.protocol {
        TCP => work.packet.opens_tcp(),
        UDP => true,
        _ => false,
    };
    if !may_be || !sockets.are_known() {
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
    let masqueraded = if masquerade { Flow::MASQUERADED } else { 0 };
    let key = &work.packet.key;
    let (flow, other) = (&mut work.flow, &mut work.other);
    flow.address = work.slot.address;
    flow.port = work.slot.port;
    flow.flags = Flow::FORWARD | Flow::SEEN | own | masqueraded;
    flow.seen = now;
    flow.device = device;
    flow.backend = work.slot.backend;
    flow.sender = sender(work.came_by);
    if flow.sender != Flow::ANYBODY {
        flow.flags |= if work.packet.begins_tcp() { Flow::KNOWN } else { DECIDED };
    }
    flow.reserved = 0;
    *other = *flow;
    key.write_backward(flow, &mut work.key);
    other.address = key.destination;
    other.port = key.destination_port;
    other.flags = own;
    // What the node sends to the endpoint itself looks like what it sends on there from a service: where the endpoint sees
    // another port anyway, these two differ from the beginning.
    // An endpoint at the service's own address is whom the client's socket is connected to anyway. What goes to no endpoint of a service
    // has no row of `backends`, and is here because another connection has these ends.
    let is_itself =
        work.slot.backend != 0 && work.slot.address == key.destination && work.slot.port == key.destination_port;
    let mut taken =
        (masquerade && device != 0 && work.slot.flags & Slot::HOST == 0) || (!is_itself && sockets.has(&work.key));
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
            flow.device = draw(config, key.source_port).into();
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
        other.flags = Flow::FORWARD | DECIDED | own | if masquerade { Flow::PENDING } else { Flow::KEEPS };
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

/// Draws a port to masquerade `port` with, both in network byte order. Privileged ones stay so: servers look at that (exports(5)).
#[inline(always)]
fn draw(config: &Config, port: u16) -> u16 {
    let (first, ports) = match u16::from_be(port) {
        1..1024 => (PRIVILEGED.start, PRIVILEGED.end - PRIVILEGED.start),
        _ => (config.masquerade_first, config.masquerade_ports),
    };
    // SAFETY: no arguments.
    let drawn = u64::from(unsafe { bpf_get_prandom_u32() } as u32);
    first.wrapping_add(((drawn * u64::from(ports)) >> 32) as u16).to_be()
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
        work.flow.port = draw(config, key.source_port);
        key.write_answer(&work.flow, &mut work.other_key);
        if !sockets.has(&work.other_key) && FLOWS.insert(&work.other_key, &work.other, BPF_NOEXIST.into()).is_ok() {
            flow.address = work.flow.address;
            flow.port = work.flow.port;
            lower(flow, Flow::PENDING);
            return Ok(());
        }
    }
    Err(Counter::NoMasqueradePort)
}
