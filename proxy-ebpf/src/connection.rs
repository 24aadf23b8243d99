//! Connections: the entries of `flows`, kept and forgotten. They are made in `opening.rs`.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use kubeferry_ebpf_common::flow::{JUST_NOW, TICK, limits, since, timeout};
use kubeferry_ebpf_common::packet::{FIN, Packet, RST};
use kubeferry_ebpf_common::{Device, Flow, FlowKey, TCP};

use crate::atomic::{fetch_and, set};
use crate::counting::{close, count_packet, end_flow};
use crate::maps::{DEVICES, FLOWS};
use crate::together::{is_whole, lives};
use crate::work::Work;

/// Now, in the clock of flows.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK) as u32
}

/// The entry of a packet.
#[inline(always)]
pub fn find(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: the row stays readable and writable until the program ends (RCU), though it may be another key's by then (LRU). It is
    // shared: another CPU may have it, with packets of this direction or, for its flags and its mark of being counted, of the other.
    // What more than one may write is written by one store of a word, or by an atomic operation through a raw pointer (`raise`,
    // `lower`, `end_flow`), and no decision needs two fields of one moment. Nothing is kept of the reference beyond the program's end.
    FLOWS.get_ptr_mut(key).map(|flow| unsafe { &mut *flow })
}

/// Who a packet came from that came in by this interface: see [`Flow::sender`].
#[inline(never)]
pub fn sender(came_by: u32) -> u32 {
    if came_by == 0 {
        return Flow::NODE;
    }
    // SAFETY: read at once.
    match unsafe { DEVICES.get(came_by) } {
        Some(device) if device.peer != 0 => device.peer.into(),
        Some(device) if device.flags & Device::BRIDGE != 0 => Flow::BRIDGED,
        Some(_) => 0,
        None => Flow::ANYBODY,
    }
}

/// Whether the packets of this side, whose entry is `flow`, have come from `sender` so far, for all that is known.
#[inline(always)]
pub fn is_by(flow: &Flow, sender: u32) -> bool {
    flow.sender == sender || sender == Flow::ANYBODY || flow.sender == Flow::ANYBODY
}

/// Sets bits of an entry that is in `flows`: another CPU may set others of it in the same moment.
#[inline(always)]
fn raise(flow: &mut Flow, flags: u16) {
    // SAFETY: the port, the flags and the time are one word, the third of the entry; the time is written as a whole.
    unsafe { set((&raw mut flow.port).cast(), u64::from(flags) << 16) };
}

/// Clears bits of an entry that is in `flows`, likewise.
#[inline(always)]
pub fn lower(flow: &mut Flow, flags: u16) {
    // SAFETY: as above.
    unsafe { fetch_and((&raw mut flow.port).cast(), !(u64::from(flags) << 16)) };
}

/// Who sends is known, and stays so.
pub const DECIDED: u16 = Flow::KNOWN | Flow::SETTLED;

/// Notes that the packet in `work`, whose entry this is, went by.
#[inline(always)]
pub fn touch(work: &mut Work, flow: &mut Flow, now: u32) {
    if flow.flags & Flow::SEEN == 0 {
        raise(flow, Flow::SEEN);
    } else if flow.seen != now && flow.flags & Flow::LASTS == 0 {
        // Once, the clock may have ticked within a question and its answer.
        let lasts = flow.flags & Flow::AGAIN != 0 || since(now, flow.seen) > JUST_NOW;
        raise(flow, if lasts { Flow::LASTS } else { Flow::AGAIN });
    }
    if flow.seen != now {
        flow.seen = now;
    }
    if is_told(&work.packet.key, flow) {
        count_packet(work, flow);
    }
    if flow.flags & DECIDED != DECIDED || work.packet.ends() {
        work.other_key = work.packet.key;
        heed(work, flow);
    }
}

/// Each packet passes one entry of which this is so: forward-in or backward-out.
#[inline(always)]
fn is_told(key: &FlowKey, flow: &Flow) -> bool {
    (flow.flags & Flow::FORWARD != 0) == (key.hook == FlowKey::IN)
}

/// Notes what the packet in `work` says of the end of a side of a connection; `flow` is an entry of that side, `work.other_key` its
/// key. It says nothing if somebody else sent it than those before: a pod may write into a packet what it likes, but not where it
/// comes from. The packet goes on, for whoever it is for to judge.
#[inline(never)]
fn heed(work: &mut Work, flow: &mut Flow) {
    let sender = sender(work.came_by);
    let before = flow.flags;
    let mut flags = before;
    // Where it leaves, who sent it may not be known any more.
    let again = before & (Flow::FORWARD | Flow::SETTLED) == Flow::FORWARD && work.packet.key.hook == FlowKey::IN;
    if (before & Flow::KNOWN == 0 || again) && sender != Flow::ANYBODY {
        flow.sender = sender;
        flags |= Flow::KNOWN;
    }
    if !work.packet.begins_tcp() && sender != Flow::ANYBODY {
        flags |= Flow::SETTLED;
    }
    if is_by(flow, sender) && work.packet.ends() {
        if work.packet.flags & FIN != 0 {
            flags |= Flow::FIN;
        }
        if work.packet.flags & RST != 0 {
            flags |= Flow::RST;
        }
    }
    if flags != before {
        raise(flow, flags);
    }
    if (flags ^ before) & (Flow::FIN | Flow::RST) != 0 && is_told(&work.other_key, flow) {
        close(work, flow);
    }
}

/// The packet in `work` has come in, and is to leave with the key in `work.other_key`, where there may be an entry for it. If it begins or
/// ends a side of a connection that is noted there now: who sent it may not be known any more when it leaves, as where it is
/// routed by way of a bridge.
#[inline(never)]
pub fn vouch(work: &mut Work) {
    if let Some(flow) = find(&work.other_key)
        && let Some(flow) = lives(&work.packet, work.came_by, &work.other_key, flow, &mut work.key)
    {
        heed(work, flow);
    }
}

/// Whether a connection is over: its forward-in entry is `flow`, and now a packet of it comes again, by `came_by`.
#[inline(always)]
fn is_over(packet: &Packet, came_by: u32, flow: &Flow, backward: &mut FlowKey, now: u32) -> bool {
    let idle = since(now, flow.seen);
    let may_be = match packet.key.protocol {
        TCP => packet.opens_tcp(),
        _ => idle > limits::ONE_WAY || packet.opens_sctp(),
    };
    if !may_be {
        return false;
    }
    if flow.flags & Flow::SEEN == 0 && packet.key.protocol == TCP {
        // Nobody has sent by it: it was noted for what left, see `others.rs`.
        return true;
    }
    packet.key.write_backward(flow, backward);
    let (flags, seen) = match find(backward) {
        Some(answers) => (answers.flags, answers.seen),
        None => (0, flow.seen),
    };
    let limit = timeout(packet.key.protocol, flow.flags, flags);
    // A connection that a side has closed is over for whoever opens it again: nobody does who has not forgotten it, and the
    // other side may be gone, which would then be asked for as long as somebody asks.
    // Nor is there anybody at the other end who has been sent something for longer than a connection may take to open, and has not answered:
    // whoever lives answers a SYN of a connection that it has. What asks again would go there for as long as it asks.
    let gone = (flow.flags | flags) & Flow::FIN != 0 || since(flow.seen, seen) > limits::OPENING;
    let closed = packet.key.protocol == TCP && gone && is_by(flow, sender(came_by));
    closed || limit == limits::CLOSED || (idle > limit && since(now, seen) > limit)
}

/// The entry of the packet in `work`, unless its connection is over; then it is forgotten.
#[inline(always)]
pub fn current(work: &mut Work, now: u32) -> Option<&'static mut Flow> {
    let flow = find(&work.packet.key)?;
    if flow.flags & Flow::FORWARD != 0 {
        if is_over(&work.packet, work.came_by, flow, &mut work.key, now) {
            forget(work, flow);
            return None;
        }
        if flow.seen != now && !is_whole(work, flow, now) {
            // What is left of it is swept: some of it may be another's by now.
            end_flow(flow);
            let _ = FLOWS.remove(&work.packet.key);
            return None;
        }
        return Some(flow);
    }
    lives(&work.packet, work.came_by, &work.packet.key, flow, &mut work.key)
}

/// The entry of the packet in `work` on its way out, unless its connection is over: see [`lives`].
#[inline(always)]
pub fn leaving(work: &mut Work) -> Option<&'static mut Flow> {
    let flow = find(&work.packet.key)?;
    lives(&work.packet, work.came_by, &work.packet.key, flow, &mut work.key)
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
pub fn is_kept(protocol: u8, flow: &Flow, now: u32) -> bool {
    let limit = timeout(protocol, flow.flags, flow.flags);
    limit != limits::CLOSED && since(now, flow.seen) <= limit
}
