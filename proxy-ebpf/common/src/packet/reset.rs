//! Makes the TCP reset that refuses a packet out of the packet itself.

use super::headers::Headers;
use super::{ACK, Buffer, Packet, RST, Unreadable};

/// Hops that the answer may take.
pub const TTL: u8 = 64;

/// Makes a reset of a TCP packet (RFC 9293, 3.10.7.1). Addresses and ports change places, which no checksum notices;
/// options and data stay, which a receiver of a reset does not look at.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn reset<B: Buffer>(skb: &B, packet: &Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    let (l3, l4) = (packet.l3, packet.l4);
    let header = &mut headers.tcp;
    skb.load(l4, header)?;
    let sum_at = l4 + 16;
    let (sequence, acknowledged, flags) = match header.flags & ACK {
        0 => (0, u32::from_be(header.sequence).wrapping_add(1).to_be(), RST | ACK),
        _ => (header.acknowledged, 0, RST),
    };
    skb.replace_sum(sum_at, header.sequence.into(), sequence.into(), 4)?;
    skb.replace_sum(sum_at, header.acknowledged.into(), acknowledged.into(), 4)?;
    let (old, new) = ([header.offset, header.flags], [header.offset, flags]);
    skb.replace_sum(sum_at, u16::from_ne_bytes(old).into(), u16::from_ne_bytes(new).into(), 2)?;
    (header.sequence, header.acknowledged, header.flags) = (sequence, acknowledged, flags);
    (header.source, header.destination) = (header.destination, header.source);
    skb.store(l4, header)?;
    if packet.v4 {
        let header = &mut headers.v4;
        skb.load(l3, header)?;
        let words = [u16::from_ne_bytes([header.ttl, header.protocol]), u16::from_ne_bytes([TTL, header.protocol])];
        (header.source, header.destination) = (header.destination, header.source);
        header.ttl = TTL;
        skb.store(l3, header)?;
        skb.replace_header_sum16(l3 + 10, words[0], words[1])
    } else {
        let header = &mut headers.v6;
        skb.load(l3, header)?;
        core::mem::swap(&mut header.source, &mut header.destination);
        header.hop_limit = TTL;
        skb.store(l3, header)
    }
}
