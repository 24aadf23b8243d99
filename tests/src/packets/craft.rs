//! First packets of connections, byte by byte: a TCP SYN, a UDP datagram, an SCTP INIT. Each carries a number (the cookie)
//! that no address translation touches, so that it is known again wherever it comes out, and in the answers to it.

use std::net::{IpAddr, SocketAddr};

use super::Protocol;

/// What stands before the cookie in a UDP datagram.
pub(super) const UDP_MARK: &[u8; 8] = b"kubefery";

/// The first packet of a connection as an IP packet (no Ethernet header), with right checksums.
///
/// The cookie is the sequence number of a SYN, the initiate tag of an INIT, and the payload of a datagram.
pub fn first_packet(protocol: Protocol, from: SocketAddr, to: SocketAddr, cookie: u32) -> Vec<u8> {
    let segment = match protocol {
        Protocol::Tcp => tcp_syn(from, to, cookie),
        Protocol::Udp => udp(from, to, cookie),
        Protocol::Sctp => sctp_init(from.port(), to.port(), cookie),
    };
    ip_packet(protocol, from.ip(), to.ip(), &segment)
}

/// A TCP packet without data as an IP packet, with right checksums: these bits of its header, this sequence number.
pub fn tcp_packet(from: SocketAddr, to: SocketAddr, bits: u8, sequence: u32) -> Vec<u8> {
    ip_packet(Protocol::Tcp, from.ip(), to.ip(), &tcp(from, to, bits, sequence, &[]))
}

/// An IP packet of these after a router: one hop less to live.
///
/// # Panics
/// It is no whole IP packet.
pub fn forwarded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
        return packet;
    }
    packet[8] -= 1;
    packet[10..12].fill(0);
    let checksum = fold(sum(&packet[..20], 0));
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// The two fragments of an IPv4 packet without options: with the first 8 bytes after its header, and with the rest.
pub fn fragments(packet: &[u8]) -> [Vec<u8>; 2] {
    const MORE: u16 = 0x2000;
    let (header, segment) = packet.split_at(20);
    [(&segment[..8], MORE), (&segment[8..], 1)].map(|(part, place)| {
        let mut fragment = header.to_vec();
        let length = u16::try_from(20 + part.len()).expect("a first packet is short");
        fragment[2..4].copy_from_slice(&length.to_be_bytes());
        fragment[6..8].copy_from_slice(&place.to_be_bytes());
        fragment[10..12].fill(0);
        let checksum = fold(sum(&fragment, 0));
        fragment[10..12].copy_from_slice(&checksum.to_be_bytes());
        fragment.extend(part);
        fragment
    })
}

fn tcp_syn(from: SocketAddr, to: SocketAddr, cookie: u32) -> Vec<u8> {
    tcp(from, to, 0x02, cookie, &[2, 4, 0x05, 0xb4]) // SYN, maximum segment size 1460
}

fn tcp(from: SocketAddr, to: SocketAddr, bits: u8, sequence: u32, options: &[u8]) -> Vec<u8> {
    let length = u8::try_from(20 + options.len()).expect("a header is short");
    let mut segment = Vec::with_capacity(length.into());
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    segment.extend([0; 4]); // acknowledgement
    segment.extend([(length / 4) << 4, bits]);
    segment.extend([0xff, 0xff, 0, 0, 0, 0]); // window, checksum, urgent
    segment.extend(options);
    let checksum = transport_checksum(Protocol::Tcp, from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

fn udp(from: SocketAddr, to: SocketAddr, cookie: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(20);
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(20u16.to_be_bytes());
    segment.extend([0, 0]);
    segment.extend(UDP_MARK);
    segment.extend(cookie.to_be_bytes());
    let checksum = match transport_checksum(Protocol::Udp, from.ip(), to.ip(), &segment) {
        0 => 0xffff, // RFC 768: zero on the wire means "no checksum"
        sum => sum,
    };
    segment[6..8].copy_from_slice(&checksum.to_be_bytes());
    segment
}

fn sctp_init(from: u16, to: u16, cookie: u32) -> Vec<u8> {
    let mut segment = Vec::with_capacity(32);
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend([0; 8]); // verification tag 0, as an INIT has; checksum
    segment.extend([1, 0, 0, 20]); // chunk INIT, 20 bytes
    segment.extend(cookie.to_be_bytes());
    segment.extend(65_536u32.to_be_bytes()); // receiver window
    segment.extend([0, 1, 0, 1]); // one stream each way
    segment.extend(1u32.to_be_bytes()); // first TSN
    let checksum = crc32c(&segment);
    segment[8..12].copy_from_slice(&checksum.to_le_bytes());
    segment
}

fn ip_packet(protocol: Protocol, from: IpAddr, to: IpAddr, segment: &[u8]) -> Vec<u8> {
    let length = u16::try_from(segment.len()).expect("a first packet is short");
    let mut packet = Vec::with_capacity(40 + segment.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend((length + 20).to_be_bytes());
            packet.extend([0, 1, 0x40, 0]); // identification 1, don't fragment
            packet.extend([64, protocol.number(), 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let checksum = fold(sum(&packet, 0));
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([protocol.number(), 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => panic!("{from} and {to} are not of one family"),
    }
    packet.extend(segment);
    packet
}

/// The Internet checksum of TCP and UDP, with the pseudo-header of the family.
fn transport_checksum(protocol: Protocol, from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u32::try_from(segment.len()).expect("a first packet is short");
    let pseudo = sum(&octets(to), sum(&octets(from), u32::from(protocol.number()) + length));
    fold(sum(segment, pseudo))
}

fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes
        .chunks(2)
        .fold(start, |total, pair| total + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !u16::try_from(total).expect("folded to 16 bits")
}

/// CRC-32C (Castagnoli), which SCTP uses (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_known_values() {
        // The check value that the CRC catalogue gives for CRC-32C.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 1071, section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
        assert_eq!(fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7], 0)), !0xddf2);
    }

    #[test]
    fn a_right_packet_sums_to_zero() {
        let (from, to) = ("10.0.0.1:1000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let packet = first_packet(Protocol::Tcp, from, to, 7);
        assert_eq!(fold(sum(&packet[..20], 0)), 0);
        assert_eq!(transport_checksum(Protocol::Tcp, from.ip(), to.ip(), &packet[20..]), 0);
    }
}
