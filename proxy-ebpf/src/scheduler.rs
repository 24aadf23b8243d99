//! Draws one of a list's slots for a new connection.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_loop};
use kubeferry_ebpf_common::frontend::draw;
use kubeferry_ebpf_common::jhash::{SEED, jhash, port_word};
use kubeferry_ebpf_common::policy::Choice;
use kubeferry_ebpf_common::{Address, Backend, Frontend, Slot};

use crate::atomic::fetch_add;
use crate::maps::{BACKENDS, SLOTS};

/// Draws a slot of the list that was chosen. `port` is the source's. False: there is none.
#[inline(always)]
pub fn pick(
    frontend: &Frontend,
    choice: &Choice,
    source: &Address,
    port: u16,
    destination: &Address,
    slot: &mut Slot,
) -> bool {
    let at = match frontend.draw {
        draw::TURN => next(choice),
        draw::SOURCE => scale(hash(source), choice.count),
        draw::SOURCE_AND_PORT => scale(hash_with_port(source, port), choice.count),
        draw::DESTINATION => scale(hash(destination), choice.count),
        draw::LEAST | draw::SHORTEST | draw::NEVER_QUEUE => least(frontend.draw, choice),
        _ => random(choice.count),
    };
    match SLOTS.get(choice.first.wrapping_add(at)) {
        Some(drawn) => {
            *slot = *drawn;
            // An empty slot has no address: nothing points to it.
            !slot.address.is_zero()
        }
        None => false,
    }
}

/// Each with the same probability, but for 2^-32 of their number.
#[inline(always)]
fn random(count: u32) -> u32 {
    // SAFETY: no arguments.
    scale(unsafe { bpf_get_prandom_u32() } as u32, count)
}

/// A hash or a random number as one of so many: the kernel's `reciprocal_scale`.
#[inline(always)]
fn scale(value: u32, count: u32) -> u32 {
    ((u64::from(value) * u64::from(count)) >> 32) as u32
}

#[inline(always)]
fn hash(ip: &Address) -> u32 {
    let words = ip.words;
    match ip.is_v4() {
        true => jhash([words[3]], SEED),
        false => jhash(words, SEED),
    }
}

#[inline(always)]
fn hash_with_port(ip: &Address, port: u16) -> u32 {
    let words = ip.words;
    match ip.is_v4() {
        true => jhash([words[3], port_word(u16::from_be(port))], SEED),
        false => jhash([words[0], words[1], words[2], words[3], port_word(u16::from_be(port))], SEED),
    }
}

/// What counts the turn of a list.
#[inline(always)]
fn turn(choice: &Choice) -> Option<*mut u64> {
    let row: *mut Backend = BACKENDS.get_ptr_mut(choice.turn)?;
    // SAFETY: a field of what is there.
    Some(unsafe { &raw mut (*row).opened })
}

/// The next in turn, whichever CPU asks.
#[inline(always)]
fn next(choice: &Choice) -> u32 {
    match turn(choice) {
        // SAFETY: see the type of the row.
        Some(turn) if choice.count > 0 => (unsafe { fetch_add(turn, 1) } % u64::from(choice.count)) as u32,
        _ => random(choice.count),
    }
}

/// The slot that was drawn is not used: it is the next one again, for whoever draws.
#[inline(always)]
pub fn put_back(frontend: &Frontend, choice: &Choice) {
    if matches!(frontend.draw, draw::TURN | draw::LEAST | draw::SHORTEST | draw::NEVER_QUEUE)
        && let Some(turn) = turn(choice)
    {
        // SAFETY: see the type of the row.
        unsafe { fetch_add(turn, u64::MAX) };
    }
}

/// The search for the endpoint with the least load.
#[repr(C)]
struct Search {
    choice: Choice,
    draw: u32,
    /// Where it begins.
    start: u32,
    /// The best so far; its weight is 0 before there is one.
    best: u32,
    load: u64,
    weight: u64,
}

/// One step of the search; anything but 0 ends it.
///
/// # Safety
/// `search` is a [`Search`] that nobody else has.
unsafe extern "C" fn look(step: u64, search: *mut c_void) -> i64 {
    // SAFETY: bpf_loop hands on what it was given.
    let search = unsafe { &mut *search.cast::<Search>() };
    let mut at = search.start.wrapping_add(step as u32);
    if at >= search.choice.count {
        at = at.wrapping_sub(search.choice.count);
    }
    let Some(slot) = SLOTS.get(search.choice.first.wrapping_add(at)) else { return 0 };
    let Some(backend) = BACKENDS.get_ptr(slot.backend) else { return 0 };
    // SAFETY: the field is read at once.
    let active = unsafe { (&raw const (*backend).active).read_volatile() };
    // What ended before it was counted, as in maps that have just taken an earlier run's place, is nobody's load.
    let active = if active > i64::MAX as u64 { 0 } else { active };
    let load = if search.draw == draw::LEAST { active } else { active + 1 };
    let weight = u64::from(slot.weight.max(1));
    // Less than the best: load / weight < search.load / search.weight.
    if search.weight == 0 || load * search.weight < search.load * weight {
        search.best = at;
        search.load = load;
        search.weight = weight;
    }
    if search.draw == draw::NEVER_QUEUE && active == 0 {
        search.best = at;
        return 1;
    }
    0
}

/// The endpoint with the least load; of equals the next in turn.
#[inline(always)]
fn least(draw: u32, choice: &Choice) -> u32 {
    let Some(turn) = turn(choice) else { return random(choice.count) };
    if choice.count == 0 {
        return 0;
    }
    // SAFETY: read at once.
    let start = (unsafe { turn.read_volatile() } % u64::from(choice.count)) as u32;
    let mut search = Search { choice: *choice, draw, start, best: start, load: 0, weight: 0 };
    let steps = if choice.count < draw::LOOKED_AT { choice.count } else { draw::LOOKED_AT };
    // SAFETY: the function takes what it is given, which lives on.
    unsafe { bpf_loop(steps, look as *const () as *mut c_void, (&raw mut search).cast(), 0) };
    // SAFETY: written at once; of two at a time either will do.
    unsafe { turn.write_volatile(u64::from(search.best) + 1) };
    search.best
}
