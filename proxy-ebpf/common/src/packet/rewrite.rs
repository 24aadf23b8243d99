//! Writes another address and port into a packet and mends the checksums, which may still be the hardware's to finish: the
//! kernel's helpers know.

use super::sum::{self, MANGLED_0, PSEUDO_HEADER};
use super::{Buffer, Packet, Unreadable};
use crate::{Address, Flow, ICMPV6, SCTP, TCP, UDP, crc32c};

/// Which end of the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Its source.
    Source,
    /// Its destination.
    Destination,
}

/// Writes `address` and `port` as one end of the packet. `packet.key` keeps what was read.
///
/// # Errors
/// The packet ends before, or is an SCTP fragment whose port would change.
#[inline(always)]
pub fn rewrite<B: Buffer>(skb: &B, packet: &Packet, end: End, address: &Address, port: u16) -> Result<(), Unreadable> {
    let (old_address, old_port) = match end {
        End::Source => (&packet.key.source, packet.key.source_port),
        End::Destination => (&packet.key.destination, packet.key.destination_port),
    };
    if let Some((at, flags)) = sum_at(packet) {
        replace_address_sum(skb, packet.v4, at, flags, old_address, address)?;
        if packet.has_ports() && old_port != port {
            skb.replace_sum(at, old_port.into(), port.into(), flags | 2)?;
        }
    }
    if packet.key.protocol == SCTP && !packet.later && old_port != port {
        replace_sctp_sum(skb, packet, end, old_port ^ port)?;
    }
    write_address(skb, packet.v4, packet.l3, end, old_address, address)?;
    if !packet.later && packet.has_ports() && old_port != port {
        skb.store(packet.l4 + if end == End::Source { 0 } else { 2 }, &port)?;
    }
    Ok(())
}

/// Writes the client's other port as one end of the packet, where `flow` has one.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn rewrite_alias<B: Buffer>(skb: &B, packet: &Packet, end: End, flow: &Flow) -> Result<(), Unreadable> {
    if flow.flags & Flow::ALIAS == 0 {
        return Ok(());
    }
    let address = if end == End::Source { &packet.key.source } else { &packet.key.destination };
    rewrite(skb, packet, end, address, flow.device as u16)
}

/// SCTP's checksum covers its ports and all that follows, but no address. Of a fragment the rest is not known.
#[inline(always)]
fn replace_sctp_sum<B: Buffer>(skb: &B, packet: &Packet, end: End, change: u16) -> Result<(), Unreadable> {
    if packet.first {
        return Err(Unreadable);
    }
    let change = u32::from(change) << if end == End::Source { 0 } else { 16 };
    let at = packet.l4 + 8;
    let mut sum = 0_u32;
    skb.load(at, &mut sum)?;
    // The hardware is to make it, or the kernel in its place, of all that it finds there (CHECKSUM_PARTIAL). Of packets that have one, one in
    // 2^32 looks the same, and is sent again.
    if sum == 0 {
        return Ok(());
    }
    sum ^= crc32c::difference(change, packet.length.wrapping_sub(4));
    skb.store(at, &sum)
}

/// Where the transport checksum is, and the flags to mend it with.
#[inline(always)]
fn sum_at(packet: &Packet) -> Option<(u32, u32)> {
    match packet.key.protocol {
        _ if packet.later => None,
        TCP => Some((packet.l4 + 16, 0)),
        UDP => Some((packet.l4 + 6, MANGLED_0)),
        ICMPV6 if !packet.v4 => Some((packet.l4 + 2, 0)),
        _ => None,
    }
}

#[inline(always)]
fn replace_address_sum<B: Buffer>(
    skb: &B,
    v4: bool,
    at: u32,
    flags: u32,
    old: &Address,
    new: &Address,
) -> Result<(), Unreadable> {
    let flags = flags | PSEUDO_HEADER;
    match v4 {
        true => skb.replace_sum(at, old.words[3].into(), new.words[3].into(), flags | 4),
        false => replace_words(skb, at, old, new, flags),
    }
}

/// Mends a transport checksum at `at` for an IPv6 address that changes; `flags` as of `bpf_l4_csum_replace`.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn replace_words<B: Buffer>(skb: &B, at: u32, old: &Address, new: &Address, flags: u32) -> Result<(), Unreadable> {
    skb.replace_sum(at, 0, sum::difference(&old.words, &new.words).into(), flags)
}

/// Writes an address into the IP header at `l3`, with the header's own checksum.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn write_address<B: Buffer>(
    skb: &B,
    v4: bool,
    l3: u32,
    end: End,
    old: &Address,
    new: &Address,
) -> Result<(), Unreadable> {
    if v4 {
        skb.replace_header_sum(l3 + 10, old.words[3], new.words[3])?;
        skb.store(l3 + if end == End::Source { 12 } else { 16 }, &new.words[3])
    } else {
        skb.store(l3 + if end == End::Source { 8 } else { 24 }, &new.words)
    }
}

/// One hop less to live.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn hop<B: Buffer>(skb: &B, v4: bool, l3: u32) -> Result<(), Unreadable> {
    if v4 {
        let at = l3 + 8;
        let mut words = [0_u8; 2];
        skb.load(at, &mut words)?;
        let old = u16::from_ne_bytes(words);
        words[0] = words[0].wrapping_sub(1);
        skb.store(at, &words)?;
        skb.replace_header_sum16(l3 + 10, old, u16::from_ne_bytes(words))
    } else {
        let at = l3 + 7;
        let mut limit = [0_u8];
        skb.load(at, &mut limit)?;
        limit[0] = limit[0].wrapping_sub(1);
        skb.store(at, &limit)
    }
}
