//! Lines about decisions, for people who look for a fault. The level is a constant of the programs as they are loaded: what
//! is above it the verifier takes out, so that with `off` nothing of this file is left in them.
//!
//! Each line is a function of its own, with a stack of its own. Userspace makes names of the numbers of protocols and
//! reasons: see `backend/ebpf/log.rs` in `proxy`.

use aya_log_ebpf::macro_support::{Level, level_enabled};
use aya_log_ebpf::{debug, log, trace};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Address, FlowKey, Slot, SocketKey};

use crate::work::Work;

/// A new connection gets an endpoint.
#[inline(always)]
pub fn connected(key: &FlowKey, slot: &Slot, masquerade: bool) {
    if level_enabled(Level::Debug) {
        write_connected(key, slot, masquerade.into());
    }
}

/// A packet is refused.
#[inline(always)]
pub fn refused(work: &Work, why: Counter) {
    if level_enabled(Level::Info) {
        write_stopped(&work.packet.key, Level::Info, why as u32);
    }
}

/// The packet that this CPU has in hand is dropped: because the Service asks for it, or because we cannot do better.
#[inline(always)]
pub fn dropped(why: Counter) {
    let level = match why {
        Counter::NoLocalEndpoint | Counter::SourceRange | Counter::Unallocated => Level::Info,
        _ => Level::Warn,
    };
    if level_enabled(level)
        && let Some(work) = Work::get()
    {
        write_stopped(&work.packet.key, level, why as u32);
    }
}

/// A socket is translated: `shown` is the socket with the Service's address.
#[inline(always)]
pub fn translated(shown: impl FnOnce() -> SocketKey, slot: &Slot) {
    if level_enabled(Level::Debug) {
        write_translated(&shown(), slot);
    }
}

/// What a socket connects or sends to is left as it is.
#[inline(always)]
pub fn left(shown: impl FnOnce() -> SocketKey) {
    if level_enabled(Level::Trace) {
        write_left(&shown());
    }
}

#[inline(never)]
fn write_connected(key: &FlowKey, slot: &Slot, masquerade: u8) {
    debug!(
        (),
        target: "packet",
        "{} [{:i}]:{} to [{:i}]:{}: endpoint [{:i}]:{} masquerade {}",
        key.protocol,
        bytes(&key.source),
        u16::from_be(key.source_port),
        bytes(&key.destination),
        u16::from_be(key.destination_port),
        bytes(&slot.address),
        u16::from_be(slot.port),
        masquerade
    );
}

#[inline(never)]
fn write_stopped(key: &FlowKey, level: Level, why: u32) {
    log!(
        (),
        target: "packet",
        level,
        "{} [{:i}]:{} to [{:i}]:{}: stopped {}",
        key.protocol,
        bytes(&key.source),
        u16::from_be(key.source_port),
        bytes(&key.destination),
        u16::from_be(key.destination_port),
        why
    );
}

#[inline(never)]
fn write_translated(shown: &SocketKey, slot: &Slot) {
    debug!(
        (),
        target: "socket",
        "{} socket {:x} to [{:i}]:{}: endpoint [{:i}]:{}",
        shown.protocol as u8,
        shown.cookie,
        bytes(&shown.address),
        u16::from_be(shown.port),
        bytes(&slot.address),
        u16::from_be(slot.port)
    );
}

#[inline(never)]
fn write_left(shown: &SocketKey) {
    trace!(
        (),
        target: "socket",
        "{} socket {:x} to [{:i}]:{}: left as it is",
        shown.protocol as u8,
        shown.cookie,
        bytes(&shown.address),
        u16::from_be(shown.port)
    );
}

/// An address as the macros take it.
#[inline(always)]
fn bytes(address: &Address) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (at, word) in address.words.iter().enumerate() {
        bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}
