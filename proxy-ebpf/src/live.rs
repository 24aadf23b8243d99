//! Telling of packets that somebody follows (`kubeferry trace --live`): of the first of each connection, where it is decided
//! about, and where it leaves. While nobody follows it is a look at a row for each first packet of TCP and each packet of the others.
//!
//! What tells is a function of its own, with a stack of its own.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use kubeferry_ebpf_common::flow::{limits, since};
use kubeferry_ebpf_common::live::{LiveEvent, LiveFilter, LiveFollowed, live_destination};
use kubeferry_ebpf_common::packet::Packet;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Address, Flow, FlowKey, FrontendKey, Slot, TCP};

use crate::atomic;
use crate::connection::now;
use crate::maps::{LIVE_DESTINATIONS, LIVE_EVENTS, LIVE_FILTER, LIVE_FOLLOWED, LIVE_SPENT};
use crate::work::Work;

/// Where something happens to a packet.
#[derive(Clone, Copy)]
pub struct Place {
    /// `LiveEvent::AT_…`.
    pub hook: u8,
    /// The index of the interface; 0: none.
    pub device: u32,
}

/// What happens to it there, in one number: kind, hook, and 16 bits of detail.
#[inline(always)]
fn what(kind: u8, hook: u8, detail: u32) -> u32 {
    u32::from(kind) | u32::from(hook) << 8 | detail << 16
}

/// Whether somebody follows packets.
#[inline(always)]
fn is_on() -> bool {
    LIVE_FILTER.get(0).is_some_and(|filter| filter.until != 0)
}

/// Whether somebody may follow this packet: the first of a connection, as far as can be seen.
#[inline(always)]
fn may_be_followed(packet: &Packet) -> bool {
    !packet.is_within_tcp() && is_on()
}

/// An endpoint was chosen for the packet in hand, whose connection was opened.
#[inline(always)]
pub fn chosen(work: &mut Work, masquerade: bool, place: Place) {
    if may_be_followed(&work.packet) {
        let masquerade = if masquerade { LiveEvent::MASQUERADE } else { 0 };
        let here = if work.slot.flags & Slot::HOST != 0 { LiveEvent::HERE } else { 0 };
        write_chosen(work, what(LiveEvent::CHOSEN, place.hook, masquerade | here), place.device);
    }
}

/// The packet in hand is nobody's.
#[inline(always)]
pub fn not_ours(work: &mut Work, place: Place) {
    if may_be_followed(&work.packet) {
        write_not_ours(work, what(LiveEvent::NOT_OURS, place.hook, 0), place.device);
    }
}

/// The packet in hand was refused or dropped.
#[inline(always)]
pub fn stopped(kind: u8, why: Counter, place: Place) {
    if is_on()
        && let Some(work) = Work::get()
        && !work.packet.is_within_tcp()
    {
        write_stopped(&work.packet.key, what(kind, place.hook, why as u32), place.device);
    }
}

/// The packet in hand leaves; `flow` is its entry there, if it has one.
#[inline(always)]
pub fn leaves(packet: &Packet, flow: Option<&Flow>, place: Place) {
    if may_be_followed(packet) {
        let (address, port) = match flow {
            Some(flow) if flow.flags & Flow::KEEPS == 0 => (&flow.address, flow.port),
            _ => (&packet.key.source, packet.key.source_port),
        };
        write_left(&packet.key, address, port, place.hook, place.device);
    }
}

/// A socket of `protocol` connects or sends to `address` and goes to `slot`. Its source is not known yet.
#[inline(always)]
pub fn translated(protocol: u8, address: &Address, port: u16, slot: &Slot) {
    if is_on() {
        write_translated(protocol, address, port, slot);
    }
}

#[inline(never)]
fn write_chosen(work: &mut Work, what: u32, device: u32) {
    let Some(number) = admit(&work.packet.key, what) else { return };
    let (key, next) = (&work.packet.key, &mut work.other_key);
    if work.slot.flags & Slot::HOST == 0 {
        key.write_forward(&work.flow, next);
        follow(next, number);
    } else if (what >> 8) as u8 == LiveEvent::AT_EGRESS {
        // It comes in by the same interface.
        let loops = work.flow.flags & Flow::LOOPS != 0;
        next.source = if loops { key.destination } else { key.source };
        next.destination = work.slot.address;
        next.source_port = work.flow.client_port(key.source_port);
        next.destination_port = work.slot.port;
        next.protocol = key.protocol;
        next.hook = FlowKey::IN;
        next.reserved = 0;
        follow(next, number);
    }
    if key.protocol != TCP {
        next.source = work.slot.address;
        next.destination = key.source;
        next.source_port = work.slot.port;
        next.destination_port = work.flow.client_port(key.source_port);
        follow_answer(next, key.protocol, number);
    }
    tell(&work.packet.key, &work.slot.address, work.slot.port, number, what, device);
}

#[inline(never)]
fn write_not_ours(work: &mut Work, what: u32, device: u32) {
    let (key, other) = (&work.packet.key, &mut work.other_key);
    if !work.packet.has_ports() || key.destination_port == 0 || was_told(key) {
        return;
    }
    let Some(number) = admit(key, what) else { return };
    follow(key, number);
    if key.protocol != TCP {
        other.source = key.destination;
        other.destination = key.source;
        other.source_port = key.destination_port;
        other.destination_port = key.source_port;
        follow_answer(other, key.protocol, number);
    }
    *other = *key;
    other.hook = FlowKey::OUT;
    follow(other, number);
    tell(key, &key.destination, key.destination_port, number, what, device);
}

#[inline(never)]
fn write_stopped(key: &FlowKey, what: u32, device: u32) {
    let number = match taken(key) {
        0 => match admit(key, what) {
            Some(number) => number,
            None => return,
        },
        number => number,
    };
    tell(key, &key.destination, key.destination_port, number, what, device);
}

#[inline(never)]
fn write_left(key: &FlowKey, address: &Address, port: u16, hook: u8, device: u32) {
    let number = taken(key);
    if number != 0 {
        tell(key, address, port, number, what(LiveEvent::LEFT, hook, 0), device);
    }
}

#[inline(never)]
fn write_translated(protocol: u8, address: &Address, port: u16, slot: &Slot) {
    let key = FlowKey::from_anybody(protocol, *address, port);
    let what = what(LiveEvent::CHOSEN, LiveEvent::AT_SOCKET, 0);
    if let Some(number) = admit(&key, what) {
        tell(&key, &slot.address, slot.port, number, what, 0);
    }
}

/// Expects a packet of `key` from here on.
#[inline(always)]
fn follow(key: &FlowKey, number: u32) {
    let value = LiveFollowed { number, seen: now() };
    // An LRU map takes every row; not remembered, less is told.
    let _ = LIVE_FOLLOWED.insert(key, &value, 0);
}

/// Expects an answer, which is no connection of its own where nothing in a packet says which of them is. The ends are in `key`.
#[inline(always)]
fn follow_answer(key: &mut FlowKey, protocol: u8, number: u32) {
    key.protocol = protocol;
    key.hook = FlowKey::IN;
    key.reserved = 0;
    follow(key, number);
}

/// The number of a packet that was told of and is expected to leave, or 0; it is expected no longer.
#[inline(always)]
fn taken(key: &FlowKey) -> u32 {
    if key.hook != FlowKey::OUT {
        return 0;
    }
    // SAFETY: read at once.
    let Some(followed) = (unsafe { LIVE_FOLLOWED.get(key) }) else { return 0 };
    let number = followed.number;
    let _ = LIVE_FOLLOWED.remove(key);
    number
}

/// Whether a packet like this, which is nobody's, was told of while it has not been silent since.
#[inline(always)]
fn was_told(key: &FlowKey) -> bool {
    let Some(followed) = LIVE_FOLLOWED.get_ptr_mut(key) else { return false };
    let now = now();
    // SAFETY: a row of the map, which stays memory of it until the program ends; either write is as good.
    unsafe {
        let idle = since(now, (*followed).seen);
        (*followed).seen = now;
        idle <= limits::ONE_WAY
    }
}

/// Whether a packet is one that is followed, and not too many are: then its number, which is not 0.
#[inline(always)]
fn admit(key: &FlowKey, what: u32) -> Option<u32> {
    let filter = LIVE_FILTER.get_ptr_mut(0)?;
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: a row of the map, of which the time is changed by others, atomically; so is what was spent. Two CPUs that begin
    // a second at once let a few more pass.
    unsafe {
        let until = (&raw const (*filter).until).read_volatile();
        if now > until {
            // Whoever has followed is gone.
            atomic::replace(&raw mut (*filter).until, until, 0);
            return None;
        }
        if !takes(&*filter, key, what) {
            return None;
        }
        let spent = LIVE_SPENT.get_ptr_mut(0)?;
        if (*spent).second != now >> 30 {
            (*spent).second = now >> 30;
            (*spent).told = 0;
        }
        let most = u64::from((*filter).most);
        // Under a flood nothing is written.
        if (&raw const (*spent).told).read_volatile() >= most || atomic::fetch_add(&raw mut (*spent).told, 1) >= most {
            return None;
        }
        Some(bpf_get_prandom_u32() as u32 | 1)
    }
}

#[inline(always)]
fn takes(filter: &LiveFilter, key: &FlowKey, what: u32) -> bool {
    let anywhere = filter.flags & LiveFilter::ANYWHERE != 0;
    let from = match (what >> 8) as u8 {
        // Whose it is is not known: all that go where they should, if that is said.
        LiveEvent::AT_SOCKET if !anywhere => true,
        _ => filter.takes_source(key),
    };
    if !from {
        return false;
    }
    let mut at = FrontendKey { address: key.destination, port: key.destination_port, protocol: key.protocol, kind: 0 };
    // SAFETY: read at once.
    match unsafe { LIVE_DESTINATIONS.get(&at) } {
        Some(&live_destination::PASSED) => return false,
        Some(_) => return true,
        None if anywhere => return true,
        None => {}
    }
    at.address = Address::ZERO;
    // SAFETY: only whether it is there.
    if unsafe { LIVE_DESTINATIONS.get(&at) }.is_some() {
        return true;
    }
    at.address = key.destination;
    at.port = live_destination::ANY_PORT;
    at.protocol = live_destination::ANY_PROTOCOL;
    // SAFETY: only whether it is there.
    unsafe { LIVE_DESTINATIONS.get(&at) }.is_some()
}

/// Puts an event into the ring buffer.
#[inline(always)]
fn tell(key: &FlowKey, address: &Address, port: u16, number: u32, what: u32, device: u32) {
    let Some(mut event) = LIVE_EVENTS.reserve(0) else {
        // The one who follows is too slow, or has ended.
        if let Some(spent) = LIVE_SPENT.get_ptr_mut(0) {
            // SAFETY: a row of the map; everybody changes it so.
            unsafe { atomic::add(&raw mut (*spent).lost, 1) };
        }
        return;
    };
    event.write(LiveEvent {
        key: *key,
        address: *address,
        port,
        kind: what as u8,
        place: (what >> 8) as u8,
        device,
        detail: what >> 16,
        number,
    });
    event.submit(0);
}
