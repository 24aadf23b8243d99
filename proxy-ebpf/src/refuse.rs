//! Says no: a TCP reset, or ICMP port unreachable for the rest. The refused packet itself becomes the answer.

use core::mem::size_of;
use core::ptr::null_mut;

use aya_ebpf::bindings::{BPF_F_INGRESS, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC};
use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail};
use kubeferry_ebpf_common::packet::headers::{Ipv4, Ipv6};
use kubeferry_ebpf_common::packet::reset::{TTL, reset};
use kubeferry_ebpf_common::packet::{Buffer, RST, Unreadable};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Device, ICMP, ICMPV6, TCP};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::skb::Skb;
use crate::tc::Action;
use crate::work::Work;

/// Bytes of the refused packet that an ICMP error quotes, at most: what the checksum helper takes at once.
const MAX_QUOTE: u32 = 512;
/// Bytes of an ICMP error before what it quotes.
const ICMP_HEADER: u32 = 8;

/// What goes before a quoted IPv4 packet.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct Error4 {
    ip: Ipv4,
    icmp: IcmpHeader,
}

/// What goes before a quoted IPv6 packet.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct Error6 {
    ip: Ipv6,
    icmp: IcmpHeader,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct IcmpHeader {
    kind: u8,
    code: u8,
    sum: u16,
    rest: u32,
}

/// The part of IPv6's pseudo-header after the addresses.
#[repr(C)]
#[derive(Clone, Copy)]
struct Pseudo {
    length: u32,
    next: u32,
}

/// Room to make an answer in.
#[repr(C)]
pub struct Refusal {
    addresses: [u16; 6],
    link: [u16; 3],
    pub header: [u16; 7],
    v4: Error4,
    v6: Error6,
    quote: [u32; MAX_QUOTE as usize / 4],
}

/// Turns the packet into a refusal and sends it back where it came from. `own`: the node itself sent it.
#[inline(always)]
pub fn refuse(skb: &Skb, work: &mut Work, own: bool) -> Action {
    let made = match work.packet.key.protocol {
        // A reset is not answered.
        TCP if work.packet.flags & RST != 0 => return Action::Drop(Counter::Refused),
        TCP => reset(skb, &work.packet, &mut work.headers),
        // Neither are errors.
        _ if work.packet.is_icmp_error(skb) => return Action::Drop(Counter::Refused),
        _ if work.packet.v4 => unreachable4(skb, work),
        _ => unreachable6(skb, work),
    };
    if made.is_err() {
        return Action::Drop(Counter::Rewrite);
    }
    if swap_ethernet(skb, work).is_err() {
        return Action::Drop(Counter::Rewrite);
    }
    let flags = if own { BPF_F_INGRESS.into() } else { 0 };
    // SAFETY: no pointers.
    Action::Redirect(unsafe { bpf_redirect(skb.device(), flags) } as i32)
}

/// Back to the sender on the link.
#[inline(always)]
pub fn swap_ethernet(skb: &Skb, work: &mut Work) -> Result<(), Unreadable> {
    if work.packet.l3 == 0 {
        return Ok(());
    }
    let words = &mut work.refusal.addresses;
    skb.load(0, words)?;
    for at in 0..3 {
        words.swap(at, at + 3);
    }
    skb.store(0, words)
}

/// To a device of this node, as one with an Ethernet header.
#[inline(always)]
pub fn address_to(skb: &Skb, work: &mut Work, device: &Device) -> Result<(), Unreadable> {
    work.refusal.link = device.link;
    skb.store(0, &work.refusal.link)
}

/// Cuts the packet to what is quoted, makes room before it, and reads the quote. How many bytes that is.
#[inline(always)]
fn make_room(skb: &Skb, work: &mut Work, header: u32) -> Result<u32, Unreadable> {
    let l3 = work.packet.l3;
    let all = skb.length().wrapping_sub(l3);
    let quoted = if all > MAX_QUOTE { MAX_QUOTE } else { all };
    if quoted < 28 {
        return Err(Unreadable);
    }
    // A verifier (Linux 6.1) knows what a comparison says of the register that was compared, and not of its copies: so this is between 1 and
    // 512 by what it is made of.
    // SAFETY: a number of ours.
    let opaque = unsafe { (&raw const quoted).read_volatile() };
    let quoted = (opaque.wrapping_sub(1) & (MAX_QUOTE - 1)) + 1;
    // The checksum is reckoned in words: no more than three bytes after the quote count.
    work.refusal.quote[(quoted as usize - 1) / 4] = 0;
    skb.load_first(l3, &mut work.refusal.quote, quoted)?;
    // SAFETY: helpers without pointers of ours.
    unsafe {
        if bpf_skb_change_tail(skb.raw.cast(), l3 + quoted, 0) != 0 {
            return Err(Unreadable);
        }
        match bpf_skb_adjust_room(skb.raw.cast(), header as i32, BPF_ADJ_ROOM_MAC, 0) {
            0 => Ok(quoted),
            _ => Err(Unreadable),
        }
    }
}

/// A quote's length in whole words.
#[inline(always)]
fn whole(quoted: u32) -> u32 {
    (quoted + 3) & 0x3fc
}

/// The Internet checksum of a sum of words.
#[inline(always)]
fn fold(sum: i64) -> u16 {
    let sum = sum as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Adds the bytes at `from` to a sum.
#[inline(always)]
fn add<T>(from: &T, bytes: u32, sum: i64) -> i64 {
    let from: *const T = from;
    // SAFETY: reads `bytes`, which callers keep within `T`.
    unsafe { bpf_csum_diff(null_mut(), 0, from.cast_mut().cast(), bytes, sum as u32) }
}

/// ICMP port unreachable (RFC 792).
#[inline(always)]
fn unreachable4(skb: &Skb, work: &mut Work) -> Result<(), Unreadable> {
    let length = size_of::<Error4>() as u32;
    let quoted = make_room(skb, work, length)?;
    let error = &mut work.refusal.v4;
    error.ip = Ipv4 {
        version_length: 0x45,
        service: 0,
        total_length: ((length + quoted) as u16).to_be(),
        id: 0,
        fragment: 0,
        ttl: TTL,
        protocol: ICMP,
        sum: 0,
        source: work.packet.key.destination.words[3],
        destination: work.packet.key.source.words[3],
    };
    error.ip.sum = fold(add(&error.ip, 20, 0));
    error.icmp = IcmpHeader { kind: 3, code: 3, sum: 0, rest: 0 };
    error.icmp.sum = fold(add(&work.refusal.quote, whole(quoted), add(&error.icmp, ICMP_HEADER, 0)));
    skb.store(work.packet.l3, error)
}

/// ICMPv6 port unreachable (RFC 4443).
#[inline(always)]
fn unreachable6(skb: &Skb, work: &mut Work) -> Result<(), Unreadable> {
    let quoted = make_room(skb, work, size_of::<Error6>() as u32)?;
    let error = &mut work.refusal.v6;
    let length = ICMP_HEADER + quoted;
    error.ip = Ipv6 {
        version_class_label: (6_u32 << 28).to_be(),
        payload_length: (length as u16).to_be(),
        next: ICMPV6,
        hop_limit: TTL,
        source: work.packet.key.destination.words,
        destination: work.packet.key.source.words,
    };
    error.icmp = IcmpHeader { kind: 1, code: 4, sum: 0, rest: 0 };
    let pseudo = Pseudo { length: length.to_be(), next: u32::from(ICMPV6).to_be() };
    let mut sum = add(&pseudo, 8, 0);
    sum = add(&error.ip.source, 16, sum);
    sum = add(&error.ip.destination, 16, sum);
    sum = add(&error.icmp, ICMP_HEADER, sum);
    error.icmp.sum = fold(add(&work.refusal.quote, whole(quoted), sum));
    skb.store(work.packet.l3, error)
}
