//! Reads a packet.

use super::headers::Headers;
use super::{Buffer, Packet, RST, SYN, Unreadable};
use crate::{Address, SCTP, TCP, UDP};

/// EtherTypes in network byte order, as `__sk_buff::protocol` has them.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Bytes of SCTP's header; chunks come then, each beginning with its type (RFC 9260).
const SCTP_HEADER: u32 = 12;
const INIT: u8 = 1;
const ABORT: u8 = 6;
const SHUTDOWN_COMPLETE: u8 = 14;

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
    packet.fragment = header.protocol;
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
    packet.fragment = 0;
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
                packet.fragment = extension.next;
                l4 += 8;
                if packet.later {
                    // What follows is the middle of something.
                    protocol = extension.next;
                    break;
                }
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
    packet.flags = 0;
    if packet.later {
        return Ok(());
    }
    let header = &mut headers.tcp;
    match packet.key.protocol {
        TCP => {
            skb.load(packet.l4, header)?;
            packet.flags = header.flags;
        }
        UDP => skb.load_first(packet.l4, header, 4)?,
        SCTP => {
            skb.load_first(packet.l4, header, 4)?;
            let mut chunk = [0_u8];
            // The first fragment may end before.
            if skb.load(packet.l4 + SCTP_HEADER, &mut chunk).is_ok() {
                packet.flags = match chunk[0] {
                    INIT => SYN,
                    ABORT | SHUTDOWN_COMPLETE => RST,
                    _ => 0,
                };
            }
        }
        _ => return Ok(()),
    }
    packet.key.source_port = header.source;
    packet.key.destination_port = header.destination;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::*;
    use crate::packet::FragmentKey;
    use crate::plain::Plain;
    use crate::{FlowKey, ICMPV6};

    /// Bytes from an IPv6 header on. Nothing is written.
    struct Bytes(Vec<u8>);

    impl Buffer for Bytes {
        fn load_first<T: Plain>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable> {
            let (at, bytes) = (at as usize, bytes as usize);
            let found = self.0.get(at..at + bytes).ok_or(Unreadable)?;
            value.as_mut_bytes()[..bytes].copy_from_slice(found);
            Ok(())
        }

        fn store<T: Plain>(&self, _: u32, _: &T) -> Result<(), Unreadable> {
            Err(Unreadable)
        }

        fn replace_header_sum(&self, _: u32, _: u32, _: u32) -> Result<(), Unreadable> {
            Err(Unreadable)
        }

        fn replace_header_sum16(&self, _: u32, _: u16, _: u16) -> Result<(), Unreadable> {
            Err(Unreadable)
        }

        fn replace_sum(&self, _: u32, _: u64, _: u64, _: u32) -> Result<(), Unreadable> {
            Err(Unreadable)
        }

        fn ether_type(&self) -> u32 {
            IPV6
        }

        fn size(&self, _: &Packet) -> (u32, u32) {
            (self.0.len() as u32, 1)
        }
    }

    /// An IPv6 packet with this after its header; `next` says what that is.
    fn v6(next: u8, rest: &[u8]) -> Packet {
        let length = rest.len() as u16;
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend([[0xfd; 16], [0xfe; 16]].concat());
        bytes.extend(rest);
        let key = FlowKey {
            source: Address::ZERO,
            destination: Address::ZERO,
            source_port: 7,
            destination_port: 7,
            protocol: 7,
            hook: 7,
            reserved: 7,
        };
        let (v4, later, first) = (true, true, true);
        let mut packet = Packet {
            l3: 7,
            l4: 7,
            key,
            v4,
            later,
            first,
            flags: 7,
            length: 7,
            id: 7,
            fragment: 7,
            bytes: 7,
            segments: 7,
        };
        assert_eq!(read(&Bytes(bytes), 0, FlowKey::IN, &mut packet, &mut Headers::default()), Ok(true));
        packet
    }

    /// A fragment header: what follows, where it belongs in units of 8 bytes, whether more come.
    fn part(next: u8, place: u16, more: bool) -> [u8; 8] {
        let [high, low] = (place << 3 | u16::from(more)).to_be_bytes();
        [next, 0, high, low, 0, 0, 0, 9]
    }

    fn common(packet: &Packet) -> FragmentKey {
        let mut key =
            FragmentKey { source: Address::ZERO, destination: Address::ZERO, id: 0, protocol: 0, hook: 0, reserved: 7 };
        packet.write_fragment_key(&mut key);
        key
    }

    #[test]
    fn data_of_a_later_fragment_is_not_read_as_headers() {
        const OPTIONS: u8 = 60;
        const FRAGMENT: u8 = 44;
        let options = [UDP, 0, 1, 4, 0, 0, 0, 0];
        let first = v6(FRAGMENT, &[&part(OPTIONS, 0, true)[..], &options, &[0, 80, 0, 81, 0, 16, 0, 0]].concat());
        assert!(first.first && !first.later);
        assert_eq!((first.key.protocol, first.l4, first.key.destination_port), (UDP, 56, 81_u16.to_be()));
        // Each looks like some header.
        for data in [[ICMPV6, 0, 0, 0, 0, 0, 0, 0], part(TCP, 0, false), part(TCP, 5, true), [OPTIONS; 8]] {
            for next in [OPTIONS, FRAGMENT] {
                let later = v6(FRAGMENT, &[&part(next, 2, false)[..], &data, &data].concat());
                assert!(later.later && !later.first);
                assert_eq!((later.key.protocol, later.l4, later.length, later.id), (next, 48, 16, 9_u32.to_be()));
                assert_eq!(common(&later) == common(&first), next == OPTIONS, "{data:?}");
            }
        }
    }

    #[test]
    fn the_first_chunk_of_sctp_says_whether_an_association_begins_or_ends() {
        let flags = |chunk: &[u8]| {
            let packet = v6(SCTP, &[&[0, 80, 0, 81, 1, 1, 1, 1, 2, 2, 2, 2][..], chunk].concat());
            assert_eq!(packet.key.destination_port, 81_u16.to_be());
            (packet.flags, packet.ends(), packet.opens_sctp())
        };
        assert_eq!(flags(&[INIT, 0, 0, 20]), (SYN, false, true));
        assert_eq!(flags(&[ABORT, 1, 0, 4]), (RST, true, false));
        assert_eq!(flags(&[SHUTDOWN_COMPLETE, 0, 0, 4]), (RST, true, false));
        // DATA, INIT ACK, SACK, SHUTDOWN, SHUTDOWN ACK; none.
        for chunk in [&[0][..], &[2], &[3], &[7], &[8], &[]] {
            assert_eq!(flags(chunk), (0, false, false), "{chunk:?}");
        }
    }
}
