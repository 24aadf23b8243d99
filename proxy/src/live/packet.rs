//! The ends of a packet, read from the beginnings of its headers.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::state::objects::Protocol;

/// Source and destination of a packet of a protocol that Services have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ends {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Source address and port.
    pub from: SocketAddr,
    /// Destination address and port.
    pub to: SocketAddr,
}

impl Ends {
    /// Whether the source is known: it is not where a socket was followed that had yet to get one.
    pub fn has_source(&self) -> bool {
        !self.from.ip().is_unspecified()
    }

    /// Reads the ends from the network header (IPv4: 20 bytes, IPv6: 40) and the transport header (its first 4 bytes); `None` for
    /// other protocols, IPv6 with extension headers among them, and for headers cut shorter.
    pub fn read(network: &[u8], transport: &[u8]) -> Option<Self> {
        let (number, from, to) = match network.first()? >> 4 {
            4 => {
                let [from, to] = [12, 16].map(|at| array::<4>(network, at).map(|ip| IpAddr::V4(Ipv4Addr::from(ip))));
                (*network.get(9)?, from?, to?)
            }
            6 => {
                let [from, to] = [8, 24].map(|at| array::<16>(network, at).map(|ip| IpAddr::V6(Ipv6Addr::from(ip))));
                (*network.get(6)?, from?, to?)
            }
            _ => return None,
        };
        let protocol = match number {
            6 => Protocol::Tcp,
            17 => Protocol::Udp,
            132 => Protocol::Sctp,
            _ => return None,
        };
        let [from_port, to_port] = [0, 2].map(|at| array::<2>(transport, at).map(u16::from_be_bytes));
        Some(Self { protocol, from: SocketAddr::new(from, from_port?), to: SocketAddr::new(to, to_port?) })
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.has_source() {
            true => write!(f, "{} {} → {}", self.protocol, self.from, self.to),
            false => write!(f, "{} a socket here → {}", self.protocol, self.to),
        }
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(protocol: u8) -> Vec<u8> {
        let mut header = vec![0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        header.extend([10, 244, 1, 7, 10, 96, 0, 50]);
        header
    }

    #[test]
    fn both_families_are_read() {
        let ports = [0x9c, 0x40, 0, 80];
        assert_eq!(Ends::read(&v4(6), &ports).unwrap().to_string(), "tcp 10.244.1.7:40000 → 10.96.0.50:80");
        let mut header = vec![0x60, 0, 0, 0, 0, 20, 17, 64];
        header.extend("fd00::7".parse::<Ipv6Addr>().unwrap().octets());
        header.extend("fd00::50".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(Ends::read(&header, &ports).unwrap().to_string(), "udp [fd00::7]:40000 → [fd00::50]:80");
    }

    #[test]
    fn what_is_cut_or_of_another_protocol_has_no_ends() {
        let header = v4(6);
        for length in 0..header.len() {
            assert_eq!(Ends::read(&header[..length], &[0; 4]), None, "{length}");
        }
        assert_eq!(Ends::read(&header, &[0; 3]), None);
        assert_eq!(Ends::read(&v4(1), &[0; 4]), None);
    }
}
