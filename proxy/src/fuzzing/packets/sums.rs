//! Checksums of a frame, reckoned from the whole packet, where the programs mend them by what has changed.

use kubeferry_ebpf_common::packet::Packet;
use kubeferry_ebpf_common::{ICMP, ICMPV6, SCTP, TCP, UDP, crc32c};

use super::frame::Frame;

/// The Internet sum of these parts, folded: 0xffff where a checksum among them is right.
fn folded(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|word| match word {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let mut sum = words.sum::<u64>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where the transport checksum is, and its bytes.
pub(super) fn transport_sum(packet: &Packet) -> Option<(usize, usize)> {
    let l4 = packet.l4 as usize;
    match packet.key.protocol {
        _ if packet.later || packet.first => None,
        TCP => Some((l4 + 16, 2)),
        UDP => Some((l4 + 6, 2)),
        SCTP => Some((l4 + 8, 4)),
        ICMP if packet.v4 => Some((l4 + 2, 2)),
        ICMPV6 if !packet.v4 => Some((l4 + 2, 2)),
        _ => None,
    }
}

/// The packet's transport header and data, if the frame has all of it.
fn transport(bytes: &[u8], packet: &Packet) -> Option<std::ops::Range<usize>> {
    let range = packet.l4 as usize..packet.l4 as usize + usize::from(packet.length);
    let (at, length) = transport_sum(packet)?;
    (range.end <= bytes.len() && at + length <= range.end && range.end == bytes.len()).then_some(range)
}

/// What the transport checksum has to be; `None` where the packet is not whole, or has none.
fn right_sum(bytes: &[u8], packet: &Packet) -> Option<Vec<u8>> {
    let range = transport(bytes, packet)?;
    let (at, length) = transport_sum(packet)?;
    let mut data = bytes[range].to_vec();
    let own = at - packet.l4 as usize;
    data[own..own + length].fill(0);
    if packet.key.protocol == SCTP {
        return Some(crc32c::of(&data).to_le_bytes().to_vec());
    }
    let l3 = packet.l3 as usize;
    let addresses = if packet.v4 { &bytes[l3 + 12..l3 + 20] } else { &bytes[l3 + 8..l3 + 40] };
    let rest = [u32::from(packet.length).to_be_bytes(), u32::from(packet.key.protocol).to_be_bytes()].concat();
    let sum = match packet.key.protocol {
        ICMP => !folded(&[&data]),
        _ => !folded(&[addresses, &rest, &data]),
    };
    let sum = if packet.key.protocol == UDP && sum == 0 { 0xffff } else { sum };
    Some(sum.to_be_bytes().to_vec())
}

/// Gives the packet the checksums that it should have; whether it is one whole packet, so that it has all of them.
pub(super) fn seal(frame: &Frame, packet: &Packet, no_sum: bool) -> bool {
    seal_header(frame, packet);
    let sum = right_sum(&frame.bytes.borrow(), packet);
    let Some((sum, (at, length))) = sum.zip(transport_sum(packet)) else { return false };
    let none = no_sum && packet.key.protocol == UDP;
    frame.put(at, if none { &[0, 0] } else { &sum[..length] });
    true
}

pub(super) fn seal_header(frame: &Frame, packet: &Packet) {
    if packet.v4 {
        let at = packet.l3 as usize;
        let length = usize::from(frame.bytes.borrow()[at] & 15) * 4;
        if let Some(mut header) = frame.get(at, length) {
            header[10..12].fill(0);
            frame.put(at + 10, &(!folded(&[&header])).to_be_bytes());
        }
    }
}

/// Whether a checksum is another's, or says the same: 0 and 0xffff are one number.
pub(super) fn same_sum(one: &[u8], other: &[u8]) -> bool {
    one == other || (one.len() == 2 && [one, other].iter().all(|sum| matches!(sum, [0, 0] | [0xff, 0xff])))
}

pub(super) fn assert_sums(frame: &Frame, packet: &Packet, none: bool) {
    let bytes = frame.bytes.borrow();
    if packet.v4 {
        let l3 = packet.l3 as usize;
        if let Some(header) = bytes.get(l3..l3 + (bytes[l3] & 15) as usize * 4) {
            assert_eq!(folded(&[header]), 0xffff, "the header's checksum");
        }
    }
    let Some((right, (at, length))) = right_sum(&bytes, packet).zip(transport_sum(packet)) else { return };
    let found = &bytes[at..at + length];
    match none {
        true => assert_eq!(found, [0, 0], "none stays none"),
        false => assert!(same_sum(found, &right), "{found:02x?}, not {right:02x?}: {packet:?}"),
    }
}

/// Whether two frames differ in these places at most.
pub(super) fn assert_only(before: &Frame, after: &Frame, places: &[std::ops::Range<usize>]) {
    let (before, after) = (before.bytes.borrow(), after.bytes.borrow());
    assert_eq!(before.len(), after.len());
    for (at, (old, new)) in before.iter().zip(after.iter()).enumerate() {
        assert!(old == new || places.iter().any(|place| place.contains(&at)), "byte {at} was {old}, is {new}");
    }
}
