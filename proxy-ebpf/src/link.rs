//! The Ethernet header of packets that come by a device without and go on by one with: the kernel drops what has none where one belongs.

use aya_ebpf::helpers::generated::bpf_skb_change_head;
use kubeferry_ebpf_common::packet::{Buffer, Unreadable};

use crate::refuse::Refusal;
use crate::skb::Skb;

/// Bytes of such a header.
const BYTES: u32 = 14;

/// Puts one before a packet that begins with its IP header, addressed to `to`. Nothing may be read or written by its offset afterwards.
#[inline(always)]
pub fn put(skb: &Skb, room: &mut Refusal, to: [u16; 3], v4: bool) -> Result<(), Unreadable> {
    // SAFETY: a helper without pointers of ours.
    if unsafe { bpf_skb_change_head(skb.raw.cast(), BYTES, 0) } != 0 {
        return Err(Unreadable);
    }
    let kind = if v4 { 0x0800_u16 } else { 0x86dd };
    room.header = [to[0], to[1], to[2], 0, 0, 0, kind.to_be()];
    skb.store(0, &room.header)
}
