//! Packets as they come out: first packets, resets and ICMP errors, known by their cookie.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Protocol;
use super::craft::UDP_MARK;

/// What a captured packet is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The first packet of a connection, with the addresses that it arrived with.
    First {
        /// Its transport.
        protocol: Protocol,
        /// Source address and port at arrival.
        from: SocketAddr,
        /// Destination address and port at arrival.
        to: SocketAddr,
        /// Whose it is.
        cookie: u32,
    },
    /// A TCP reset that answers a SYN.
    Reset {
        /// Who says it.
        from: SocketAddr,
        /// Whose SYN it answers.
        cookie: u32,
    },
    /// An ICMP or ICMPv6 "destination unreachable" that answers a first packet.
    Unreachable {
        /// Where the answered packet was for.
        about: SocketAddr,
        /// The error is "port unreachable", not one of its neighbours (no route, prohibited).
        port: bool,
        /// Whose packet it answers.
        cookie: u32,
    },
}

impl Seen {
    /// The cookie of the first packet that this is, or answers.
    pub fn cookie(self) -> u32 {
        match self {
            Self::First { cookie, .. } | Self::Reset { cookie, .. } | Self::Unreachable { cookie, .. } => cookie,
        }
    }
}

const ICMP: u8 = 1;
const ICMP6: u8 = 58;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;

/// Reads an IP packet; `None` for what no probe causes.
pub fn packet(bytes: &[u8]) -> Option<Seen> {
    let (protocol, from, to, segment) = ip(bytes)?;
    segment_of(protocol, from, to, segment)
}

/// Reads what follows an IP header, as raw IPv6 sockets deliver it.
pub fn segment_of(protocol: u8, from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<Seen> {
    match (protocol, *segment.first()?) {
        (ICMP, 3) => unreachable(segment, 3),
        (ICMP6, 1) => unreachable(segment, 4),
        (ICMP | ICMP6, _) => None,
        _ => transport(protocol, from, to, segment),
    }
}

/// Protocol, source, destination and the rest of an IP packet.
fn ip(bytes: &[u8]) -> Option<(u8, IpAddr, IpAddr, &[u8])> {
    match bytes.first()? >> 4 {
        4 => {
            let header = usize::from(bytes[0] & 0x0f) * 4;
            let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?).into());
            Some((*bytes.get(9)?, address(12)?, address(16)?, bytes.get(header..)?))
        }
        6 => {
            let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?).into());
            Some((*bytes.get(6)?, address(8)?, address(24)?, bytes.get(40..)?))
        }
        _ => None,
    }
}

/// An ICMP error with the packet inside it. `port_code` is the family's code for "port unreachable".
fn unreachable(segment: &[u8], port_code: u8) -> Option<Seen> {
    let (protocol, from, to, inner) = ip(segment.get(8..)?)?;
    match transport(protocol, from, to, inner)? {
        Seen::First { to, cookie, .. } => Some(Seen::Unreachable { about: to, port: segment[1] == port_code, cookie }),
        _ => None,
    }
}

fn transport(protocol: u8, from: IpAddr, to: IpAddr, segment: &[u8]) -> Option<Seen> {
    let word = |at: usize| Some(u32::from_be_bytes(segment.get(at..at + 4)?.try_into().ok()?));
    let ports = word(0)?.to_be_bytes();
    let from = SocketAddr::new(from, u16::from_be_bytes([ports[0], ports[1]]));
    let to = SocketAddr::new(to, u16::from_be_bytes([ports[2], ports[3]]));
    let first = |protocol, cookie| Some(Seen::First { protocol, from, to, cookie });
    match protocol {
        // An ICMP error may hold only the first eight bytes of a segment: no flags, and it was a SYN.
        6 => match segment.get(13).map_or(TCP_SYN, |flags| flags & (TCP_SYN | TCP_RST | TCP_ACK)) {
            TCP_SYN => first(Protocol::Tcp, word(4)?),
            flags if flags == TCP_RST | TCP_ACK => Some(Seen::Reset { from, cookie: word(8)?.wrapping_sub(1) }),
            _ => None,
        },
        17 => (segment.get(8..16)? == UDP_MARK).then(|| first(Protocol::Udp, word(16)?))?,
        132 => (*segment.get(12)? == 1).then(|| first(Protocol::Sctp, word(16)?))?,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::craft::first_packet;
    use super::*;

    #[test]
    fn first_packets_are_known_again() {
        for (from, to) in [("10.0.0.1:1000", "10.0.0.2:80"), ("[2001:db8::1]:1000", "[2001:db8::2]:80")] {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
                let bytes = first_packet(protocol, from, to, 0xfeed_0001);
                assert_eq!(packet(&bytes), Some(Seen::First { protocol, from, to, cookie: 0xfeed_0001 }));
            }
        }
    }

    #[test]
    fn a_port_unreachable_is_told_from_its_neighbours() {
        let to = "10.0.0.2:80".parse().unwrap();
        let inner = first_packet(Protocol::Udp, "10.0.0.1:1000".parse().unwrap(), to, 5);
        for (code, port) in [(3, true), (1, false), (13, false)] {
            let mut error = vec![3, code, 0, 0, 0, 0, 0, 0];
            error.extend(&inner);
            let seen = segment_of(ICMP, to.ip(), to.ip(), &error);
            assert_eq!(seen, Some(Seen::Unreachable { about: to, port, cookie: 5 }));
        }
    }

    #[test]
    fn noise_is_nothing() {
        assert_eq!(packet(&[]), None);
        assert_eq!(packet(&[0x45; 12]), None);
        assert_eq!(packet(&[0x60; 41]), None);
    }
}
