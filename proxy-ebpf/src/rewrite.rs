//! Writes another address and port into a packet and mends the checksums, which may still be the hardware's to finish: the
//! kernel's helpers know.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::bpf_csum_diff;
use kubeferry_ebpf_common::{Address, Flow, ICMPV6, SCTP, TCP, UDP, crc32c};

use crate::packet::{Buffer, Packet, Unreadable};

/// Which end of the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Writes `address` and `port` as one end of the packet. `packet.key` keeps what was read.
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
    sum ^= crc32c::difference(change, packet.length.wrapping_sub(4));
    skb.store(at, &sum)
}

/// Where the transport checksum is, and the flags to mend it with.
#[inline(always)]
fn sum_at(packet: &Packet) -> Option<(u32, u32)> {
    match packet.key.protocol {
        _ if packet.later => None,
        TCP => Some((packet.l4 + 16, 0)),
        UDP => Some((packet.l4 + 6, BPF_F_MARK_MANGLED_0 as u32)),
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
    let flags = flags | BPF_F_PSEUDO_HDR as u32;
    match v4 {
        true => skb.replace_sum(at, old.words[3].into(), new.words[3].into(), flags | 4),
        false => replace_words(skb, at, old, new, flags),
    }
}

/// Mends a transport checksum at `at` for an IPv6 address that changes; `flags` as of `bpf_l4_csum_replace`.
#[inline(always)]
pub fn replace_words<B: Buffer>(skb: &B, at: u32, old: &Address, new: &Address, flags: u32) -> Result<(), Unreadable> {
    let (from, to) = (old.words.as_ptr().cast_mut(), new.words.as_ptr().cast_mut());
    // SAFETY: both are 16 bytes, and only read.
    let difference = unsafe { bpf_csum_diff(from, 16, to, 16, 0) };
    skb.replace_sum(at, 0, difference as u64, flags)
}

/// Writes an address into the IP header at `l3`, with the header's own checksum.
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
