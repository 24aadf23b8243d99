//! Reads a packet.

use super::headers::Headers;
use super::{Buffer, Packet, Unreadable};
use crate::{Address, SCTP, TCP, UDP};

/// EtherTypes in network byte order, as `__sk_buff::protocol` has them.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Headers before the transport header of IPv6 that are looked through, at most.
const MAX_EXTENSIONS: usize = 6;

/// Reads a packet whose IP header begins at `l3`. False if it is neither IPv4 nor IPv6, or not for this device.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn read<B: Buffer>(
    skb: &B,
    l3: u32,
    hook: u8,
    packet: &mut Packet,
    headers: &mut Headers,
) -> Result<bool, Unreadable> {
    packet.key.hook = hook;
    packet.key.reserved = 0;
    match skb.ether_type() {
        IPV4 => read_v4(skb, l3, packet, headers)?,
        IPV6 => read_v6(skb, l3, packet, headers)?,
        _ => return Ok(false),
    }
    read_ports(skb, packet, headers)?;
    (packet.bytes, packet.segments) = skb.size(packet);
    Ok(true)
}

/// Reads an IPv4 header.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn read_v4<B: Buffer>(skb: &B, l3: u32, packet: &mut Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    let header = &mut headers.v4;
    skb.load(l3, header)?;
    // The kernel drops what is shorter than its own header, but only after us; read, it would have ports inside of that.
    if header.version_length >> 4 != 4 || header.version_length & 15 < 5 {
        return Err(Unreadable);
    }
    let fragment = u16::from_be(header.fragment);
    packet.key.source = Address::v4(header.source);
    packet.key.destination = Address::v4(header.destination);
    packet.key.protocol = header.protocol;
    packet.l3 = l3;
    packet.l4 = l3 + u32::from(header.version_length & 15) * 4;
    packet.v4 = true;
    packet.later = fragment & 0x1fff != 0;
    packet.first = fragment & 0x3fff == 0x2000;
    packet.id = header.id.into();
    packet.length = u16::from_be(header.total_length).wrapping_sub((packet.l4 - l3) as u16);
    Ok(())
}

/// Reads an IPv6 header and the extensions after it.
///
/// # Errors
/// The packet ends before.
#[inline(always)]
pub fn read_v6<B: Buffer>(skb: &B, l3: u32, packet: &mut Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    let header = &mut headers.v6;
    skb.load(l3, header)?;
    if u32::from_be(header.version_class_label) >> 28 != 6 {
        return Err(Unreadable);
    }
    packet.key.source = Address::v6(header.source);
    packet.key.destination = Address::v6(header.destination);
    // On the wire nobody may have such an address: it would be taken for one of IPv4.
    if packet.key.source.is_v4() || packet.key.destination.is_v4() {
        return Err(Unreadable);
    }
    packet.l3 = l3;
    packet.v4 = false;
    packet.later = false;
    packet.first = false;
    packet.id = 0;
    let mut protocol = header.next;
    let length = u16::from_be(header.payload_length).wrapping_add(40);
    let mut l4 = l3 + 40;
    for _ in 0..MAX_EXTENSIONS {
        let extension = &mut headers.extension;
        match protocol {
            // Hop-by-hop options, routing, destination options: next header, length in 8 bytes without the first.
            0 | 43 | 60 => {
                skb.load(l4, extension)?;
                l4 += (u32::from(extension.length) + 1) * 8;
            }
            // Authentication: length in 4 bytes without the first two.
            51 => {
                skb.load(l4, extension)?;
                l4 += (u32::from(extension.length) + 2) * 4;
            }
            // Fragment: next header, reserved, offset in units of 8 bytes with "more" as the last bit, identification.
            44 => {
                skb.load(l4, extension)?;
                let fragment = u16::from_be(extension.fragment);
                packet.later = fragment & 0xfff8 != 0;
                packet.first = fragment & 0xfff9 == 1;
                packet.id = extension.id;
                l4 += 8;
            }
            _ => break,
        }
        protocol = extension.next;
    }
    packet.key.protocol = protocol;
    packet.l4 = l4;
    packet.length = length.wrapping_sub((l4 - l3) as u16);
    Ok(())
}

#[inline(always)]
fn read_ports<B: Buffer>(skb: &B, packet: &mut Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    packet.key.source_port = 0;
    packet.key.destination_port = 0;
    packet.tcp_flags = 0;
    if packet.later {
        return Ok(());
    }
    let header = &mut headers.tcp;
    match packet.key.protocol {
        TCP => {
            skb.load(packet.l4, header)?;
            packet.tcp_flags = header.flags;
        }
        UDP | SCTP => skb.load_first(packet.l4, header, 4)?,
        _ => return Ok(()),
    }
    packet.key.source_port = header.source;
    packet.key.destination_port = header.destination;
    Ok(())
}
