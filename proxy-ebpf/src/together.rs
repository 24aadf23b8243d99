//! The entries of a connection belong together: what becomes of one where another is missing, or where a side has closed.

use aya_ebpf::bindings::BPF_NOEXIST;
use kubeferry_ebpf_common::packet::Packet;
use kubeferry_ebpf_common::{Config, Flow, FlowKey};

use crate::connection::{DECIDED, find, is_by, lower, sender};
use crate::lookup::config;
use crate::maps::FLOWS;
use crate::work::Work;

/// Whether all other entries of a connection are there, whose forward-in entry is `flow`. A full table throws them out one by one, the least
/// recently used first, and while one side alone sends that is the other side's; to be looked for once in a unit of the clock is to be used.
/// Those for answers are made anew where that can be: otherwise a client that goes on sending would hear nothing for as long as it does.
#[inline(never)]
pub fn is_whole(work: &mut Work, flow: &Flow, now: u32) -> bool {
    let key = &work.packet.key;
    // While entries are carried over from other maps, the others may be on their way.
    if flow.passes(key) || config().is_none_or(|config| config.flags & Config::MOVING != 0) {
        return true;
    }
    let is_own = flow.flags & Flow::OWN != 0;
    key.write_backward(flow, &mut work.key);
    match find(&work.key) {
        Some(there) if (there.address, there.port) != (key.destination, key.destination_port) => return false,
        Some(_) => {}
        // By which interface it left is known no more.
        None if is_own => return false,
        None => {
            let other = &mut work.other;
            *other = *flow;
            other.address = key.destination;
            other.port = key.destination_port;
            other.flags = flow.flags & Flow::ALIAS;
            other.seen = now;
            other.device = if flow.flags & Flow::ALIAS != 0 { key.source_port.into() } else { 0 };
            other.backend = flow.backend_row();
            let _ = FLOWS.insert(&work.key, &*other, BPF_NOEXIST.into());
        }
    }
    if flow.flags & Flow::LOOPS != 0 {
        key.write_looped(flow, &mut work.key);
        return find(&work.key).is_some();
    }
    if flow.flags & (Flow::OWN | Flow::MASQUERADED) == 0 {
        return true;
    }
    key.write_forward(flow, &mut work.key);
    let out = match find(&work.key) {
        Some(out) => out,
        None if is_own => return false,
        // It is not used where the endpoint is on the node itself.
        None => {
            let other = &mut work.other;
            *other = *flow;
            other.address = key.source;
            other.port = flow.client_port(key.source_port);
            other.flags = Flow::FORWARD | DECIDED | Flow::PENDING;
            other.device = 0;
            other.seen = now;
            return FLOWS.insert(&work.key, &*other, BPF_NOEXIST.into()).is_ok();
        }
    };
    if out.flags & Flow::PENDING != 0 {
        return true;
    }
    let client = (out.flags & Flow::OWN, key.source, flow.client_port(key.source_port));
    work.key.write_answer(out, &mut work.other_key);
    match find(&work.other_key) {
        Some(there) => (there.address, there.port) == (client.1, client.2),
        None if is_own => false,
        None => {
            let other = &mut work.other;
            *other = *out;
            (other.flags, other.address, other.port) = client;
            other.seen = now;
            FLOWS.insert(&work.other_key, &*other, BPF_NOEXIST.into()).is_ok()
        }
    }
}

/// An entry whose side has closed is none for a packet with which a side begins: the kernel's own translation gives ports
/// without knowing of ours, where another proxy uses it beside us. The entry is forgotten. Ours are made anew by the packet that
/// opens their connection; where the client's side has not closed, its SYN went on to the same endpoint, and this is the answer. `other` is room
/// for a key.
#[inline(always)]
pub fn lives(
    packet: &Packet,
    came_by: u32,
    key: &FlowKey,
    flow: &'static mut Flow,
    other: &mut FlowKey,
) -> Option<&'static mut Flow> {
    let is_closed = flow.flags & (Flow::FIN | Flow::RST) != 0;
    if is_closed && packet.begins_tcp() && is_by(flow, sender(came_by)) {
        // Of what was reset, the SYN would have made the entries anew.
        if flow.flags & (Flow::FORWARD | Flow::RST) != 0 || !is_open(key, flow, other) {
            let _ = FLOWS.remove(key);
            return None;
        }
        lower(flow, Flow::FIN);
    }
    Some(flow)
}

/// Whether the client's side of a connection has not closed, whose entry for answers this is; `other` is room for a key.
#[inline(never)]
fn is_open(key: &FlowKey, flow: &Flow, other: &mut FlowKey) -> bool {
    let endpoint = (key.source, key.source_port);
    let first = if key.hook == FlowKey::OUT {
        key.write_first(flow, other);
        find(other)
    } else {
        *other = *key;
        other.destination = flow.address;
        other.destination_port = flow.port;
        other.hook = FlowKey::OUT;
        let Some(backward) = find(other) else { return false };
        let (address, port) = (backward.address, backward.port);
        let client_port = backward.client_port(flow.port);
        other.source = flow.address;
        other.source_port = client_port;
        other.destination = address;
        other.destination_port = port;
        other.hook = FlowKey::IN;
        find(other)
    };
    first.is_some_and(|first| {
        first.flags & (Flow::FORWARD | Flow::FIN | Flow::RST) == Flow::FORWARD
            && (first.address, first.port) == endpoint
    })
}
