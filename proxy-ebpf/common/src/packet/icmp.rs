//! ICMP errors about translated packets: "fragmentation needed" above all, without which large packets vanish. An error
//! quotes the packet that it is about; it belongs to the flow in the other direction, and goes the way that flow goes.

use super::headers::Headers;
use super::read::{read_v4, read_v6};
use super::rewrite::{End, replace_words, write_address};
use super::sum::PSEUDO_HEADER;
use super::{Buffer, Packet, Unreadable};
use crate::{Flow, FlowKey, ICMPV6};

/// Bytes of an ICMP error before what it quotes.
const HEADER: u32 = 8;

/// Reads the packet that the error `packet` quotes into `quoted`, and its key turned round, at `hook`, into `key`.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn read_quote<B: Buffer>(
    skb: &B,
    packet: &Packet,
    hook: u8,
    quoted: &mut Packet,
    headers: &mut Headers,
    key: &mut FlowKey,
) -> Result<(), Unreadable> {
    let at = packet.l4 + HEADER;
    match packet.v4 {
        true => read_v4(skb, at, quoted, headers)?,
        false => read_v6(skb, at, quoted, headers)?,
    }
    quoted.key.reserved = 0;
    quoted.key.source_port = 0;
    quoted.key.destination_port = 0;
    if !quoted.later && quoted.has_ports() {
        // No more of the transport header needs to be there.
        let header = &mut headers.tcp;
        skb.load_first(quoted.l4, header, 4)?;
        quoted.key.source_port = header.source;
        quoted.key.destination_port = header.destination;
    }
    quoted.key.write_reverse(hook, key);
    Ok(())
}

/// Where the flow's packets get another destination, the error gets it too, and the quoted packet as its source; where
/// they get another source, the error gets it too, and the quoted packet as its destination. An error of a router on the way
/// is no exception, as with the kernel's own NAT: its sender's address may mean nothing where the error goes.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn rewrite<B: Buffer>(skb: &B, packet: &Packet, quoted: &Packet, hook: u8, flow: &Flow) -> Result<(), Unreadable> {
    let (v4, l3, sum_at) = (packet.v4, packet.l3, packet.l4 + 2);
    let (inner, outer) =
        if hook == FlowKey::IN { (End::Source, End::Destination) } else { (End::Destination, End::Source) };
    let (old, port, port_at) = match inner {
        End::Source => (&quoted.key.source, quoted.key.source_port, quoted.l4),
        End::Destination => (&quoted.key.destination, quoted.key.destination_port, quoted.l4 + 2),
    };
    let ended = match outer {
        End::Source => &packet.key.source,
        End::Destination => &packet.key.destination,
    };
    // The sum of an IPv4 header with its own checksum stays the same; IPv6 has none.
    write_address(skb, v4, quoted.l3, inner, old, &flow.address)?;
    if !v4 {
        replace_words(skb, sum_at, old, &flow.address, 0)?;
    }
    if quoted.has_ports() && !quoted.later && port != flow.port {
        skb.replace_sum(sum_at, port.into(), flow.port.into(), 2)?;
        skb.store(port_at, &flow.port)?;
    }
    if quoted.has_ports() && !quoted.later && flow.flags & Flow::ALIAS != 0 {
        let (client, client_at) = match inner {
            End::Source => (quoted.key.destination_port, quoted.l4 + 2),
            End::Destination => (quoted.key.source_port, quoted.l4),
        };
        let alias = flow.device as u16;
        skb.replace_sum(sum_at, client.into(), alias.into(), 2)?;
        skb.store(client_at, &alias)?;
    }
    if packet.key.protocol == ICMPV6 {
        replace_words(skb, sum_at, ended, &flow.address, PSEUDO_HEADER)?;
    }
    write_address(skb, v4, l3, outer, ended, &flow.address)
}
