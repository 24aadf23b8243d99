//! Which packets are followed.

use std::net::{IpAddr, SocketAddr};

use super::packet::Ends;
use crate::state::objects::Protocol;

/// A packet is followed if every part that is there matches.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Where it comes from.
    pub from: Option<IpAddr>,
    /// The source port.
    pub from_port: Option<u16>,
    /// Where it goes; any of these, and anywhere if there are none.
    pub to: Vec<Destination>,
    /// Whoever follows is not followed: where the model is asked, by TCP.
    pub except: Vec<SocketAddr>,
}

/// A place that packets go to, as they come to the node: before an endpoint is chosen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Destination {
    /// The protocol; any, if there is none.
    pub protocol: Option<Protocol>,
    /// The address; any, if there is none: a node port.
    pub ip: Option<IpAddr>,
    /// The port; any, if there is none, and then of any protocol.
    pub port: Option<u16>,
}

impl Destination {
    /// All ports of an address.
    pub fn address(ip: IpAddr) -> Self {
        Self { protocol: None, ip: Some(ip), port: None }
    }

    /// Its protocols.
    pub fn protocols(&self) -> Vec<Protocol> {
        self.protocol.map_or_else(|| Protocol::ALL.to_vec(), |protocol| vec![protocol])
    }

    fn takes(&self, protocol: Protocol, to: SocketAddr) -> bool {
        self.protocol.is_none_or(|wanted| wanted == protocol)
            && self.ip.is_none_or(|ip| ip == to.ip())
            && self.port.is_none_or(|port| port == to.port())
    }
}

impl Filter {
    /// Whether a packet, as it came to the node, is to be followed.
    pub fn takes(&self, ends: &Ends) -> bool {
        self.from.is_none_or(|ip| ip == ends.from.ip())
            && self.from_port.is_none_or(|port| port == ends.from.port())
            && !(ends.protocol == Protocol::Tcp && self.except.contains(&ends.to))
            && (self.to.is_empty() || self.to.iter().any(|to| to.takes(ends.protocol, ends.to)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_to_match() {
        let ends = Ends {
            protocol: Protocol::Tcp,
            from: "10.244.1.7:40000".parse().unwrap(),
            to: "10.96.0.50:80".parse().unwrap(),
        };
        let to = Destination { protocol: Some(Protocol::Tcp), ip: Some(ends.to.ip()), port: Some(80) };
        let filter = Filter { from: Some(ends.from.ip()), from_port: Some(40000), to: vec![to], except: Vec::new() };
        assert!(filter.takes(&ends) && Filter::default().takes(&ends));
        for wider in [
            Destination { ip: None, ..to },
            Destination { ip: None, protocol: None, ..to },
            Destination::address(ends.to.ip()),
        ] {
            assert!(Filter { to: vec![wider], ..Filter::default() }.takes(&ends), "{wider:?}");
        }
        for other in [
            Filter { from: Some("10.244.1.8".parse().unwrap()), ..filter.clone() },
            Filter { from_port: Some(1), ..filter.clone() },
            Filter { except: vec![ends.to], ..Filter::default() },
            Filter { to: vec![Destination { port: Some(81), ..to }], ..filter.clone() },
            Filter { to: vec![Destination { protocol: Some(Protocol::Udp), ..to }], ..filter.clone() },
            Filter { to: vec![Destination { ip: Some("10.96.0.51".parse().unwrap()), ..to }], ..filter },
        ] {
            assert!(!other.takes(&ends), "{other:?}");
        }
    }
}
