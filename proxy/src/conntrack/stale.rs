//! Which UDP entries are stale. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

/// What the cleanup needs to know of one UDP port of a Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpService {
    /// Cluster IPs, captured load balancer addresses and external IPs, each with the Service's port.
    pub addresses: BTreeSet<SocketAddr>,
    /// Node ports.
    pub node_ports: BTreeSet<u16>,
    /// Serving endpoints (ready, or terminating and still serving) wherever they run, with their port: policies and
    /// topology do not matter here.
    pub serving: BTreeSet<SocketAddr>,
}

/// Source and destination of the packets of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Where they come from.
    pub source: SocketAddr,
    /// Where they go.
    pub destination: SocketAddr,
}

/// A flow that the kernel keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The first packet as it came in, before any translation.
    pub original: Tuple,
    /// The answer as it comes in: its source is the endpoint chosen.
    pub reply: Tuple,
    /// Whether any packet has come back (`IPS_SEEN_REPLY`).
    pub(super) answered: bool,
    /// How the kernel tells the entry from all others (`ctnetlink` attributes as it gave them).
    pub(super) identity: Vec<u8>,
}

impl Entry {
    /// A flow that is not the kernel's own, for [`stale`] alone.
    pub fn new(original: Tuple, reply: Tuple) -> Self {
        Self { original, reply, answered: false, identity: Vec::new() }
    }
}

/// The entries to delete: sent to a Service's address or node port (at any address), and answered by none of its serving
/// endpoints. A Service without serving endpoints in the entry's family is left alone. Where several Services have an
/// address, any of them may hold the endpoint.
pub fn stale<'a>(
    services: &'a [UdpService],
    entries: impl IntoIterator<Item = &'a Entry>,
) -> impl Iterator<Item = &'a Entry> {
    let mut by_address: BTreeMap<SocketAddr, Vec<&UdpService>> = BTreeMap::new();
    let mut by_node_port: BTreeMap<(bool, u16), Vec<&UdpService>> = BTreeMap::new();
    for service in services {
        for ipv6 in [false, true] {
            if !service.serving.iter().any(|endpoint| endpoint.is_ipv6() == ipv6) {
                continue;
            }
            for address in service.addresses.iter().filter(|address| address.is_ipv6() == ipv6) {
                by_address.entry(*address).or_default().push(service);
            }
            for port in &service.node_ports {
                by_node_port.entry((ipv6, *port)).or_default().push(service);
            }
        }
    }
    entries.into_iter().filter(move |entry| {
        let destination = entry.original.destination;
        let services =
            by_address.get(&destination).or_else(|| by_node_port.get(&(destination.is_ipv6(), destination.port())));
        services.is_some_and(|services| !services.iter().any(|service| service.serving.contains(&entry.reply.source)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> BTreeSet<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn service(service: &[&str], node_ports: &[u16], serving: &[&str]) -> UdpService {
        UdpService {
            addresses: addresses(service),
            node_ports: node_ports.iter().copied().collect(),
            serving: addresses(serving),
        }
    }

    fn entry(destination: &str, endpoint: &str) -> Entry {
        let destination: SocketAddr = destination.parse().unwrap();
        let client = if destination.is_ipv6() { "[fd00::9]:5000" } else { "192.0.2.9:5000" }.parse().unwrap();
        Entry {
            original: Tuple { source: client, destination },
            reply: Tuple { source: endpoint.parse().unwrap(), destination: client },
            answered: true,
            identity: Vec::new(),
        }
    }

    fn is_stale(services: &[UdpService], destination: &str, endpoint: &str) -> bool {
        stale(services, &[entry(destination, endpoint)]).count() == 1
    }

    #[test]
    fn a_flow_to_an_endpoint_that_is_gone_is_stale() {
        let dns = [service(&["10.96.0.10:53", "203.0.113.7:53"], &[30053], &["10.244.1.5:5353", "10.244.2.5:5353"])];
        assert!(is_stale(&dns, "10.96.0.10:53", "10.244.3.5:5353"));
        assert!(is_stale(&dns, "203.0.113.7:53", "10.244.3.5:5353"));
        assert!(is_stale(&dns, "172.18.0.2:30053", "10.244.3.5:5353"));
        assert!(is_stale(&dns, "10.96.0.10:53", "10.244.1.5:53"), "the same pod on another port");
        for destination in ["10.96.0.10:53", "203.0.113.7:53", "172.18.0.2:30053"] {
            assert!(!is_stale(&dns, destination, "10.244.2.5:5353"));
        }
    }

    #[test]
    fn a_flow_from_before_the_service_had_endpoints_is_stale() {
        let dns = [service(&["10.96.0.10:53"], &[30053], &["10.244.1.5:5353"])];
        assert!(is_stale(&dns, "10.96.0.10:53", "10.96.0.10:53"));
        assert!(is_stale(&dns, "172.18.0.2:30053", "172.18.0.2:30053"));
    }

    #[test]
    fn what_is_no_services_is_left_alone() {
        let dns = [service(&["10.96.0.10:53"], &[], &["10.244.1.5:5353"])];
        assert!(!is_stale(&dns, "10.96.0.10:54", "10.244.3.5:5353"), "another port");
        assert!(!is_stale(&dns, "10.96.0.11:53", "10.244.3.5:5353"), "another address");
        assert!(!is_stale(&dns, "10.244.3.5:5353", "10.244.3.5:5353"), "straight to a pod");
        assert!(!is_stale(&[], "10.96.0.10:53", "10.244.3.5:5353"));
    }

    #[test]
    fn a_service_without_serving_endpoints_is_left_alone() {
        assert!(!is_stale(&[service(&["10.96.0.10:53"], &[30053], &[])], "10.96.0.10:53", "10.244.1.5:5353"));
        let only6 = [service(&["10.96.0.10:53", "[fd00::10]:53"], &[30053], &["[fd00:1::5]:5353"])];
        assert!(!is_stale(&only6, "10.96.0.10:53", "10.244.1.5:5353"), "none of this family");
        assert!(!is_stale(&only6, "172.18.0.2:30053", "10.244.1.5:5353"), "none of this family");
        assert!(is_stale(&only6, "[fd00::10]:53", "[fd00:1::6]:5353"));
        assert!(is_stale(&only6, "[fd00::2]:30053", "[fd00:1::6]:5353"));
        assert!(!is_stale(&only6, "[fd00::10]:53", "[fd00:1::5]:5353"));
    }

    #[test]
    fn an_address_goes_before_a_node_port() {
        let services = [
            service(&["10.96.0.10:30053"], &[], &["10.244.1.5:5353"]),
            service(&["10.96.0.11:53"], &[30053], &["10.244.2.5:5353"]),
        ];
        assert!(!is_stale(&services, "10.96.0.10:30053", "10.244.1.5:5353"));
        assert!(is_stale(&services, "10.96.0.10:30053", "10.244.2.5:5353"));
    }
}
