//! Random flows: to the frontends of a cluster and beside them.

use std::net::IpAddr;

use anyhow::Result;
use kubeferry::state::convert::sloppy::parse_ip;
use serde_json::Value;

use super::cluster::Cluster;
use super::rng::Rng;
use crate::flows::{Expect, Node, PODS, Row, UPLINK};

/// Where packets come from: local pods, a remote one, the world, the node, a load balancer's address.
const SOURCES: [[&str; 8]; 2] = [
    ["10.244.1.7", "10.244.1.2", "10.244.1.4", "10.244.2.1", "203.0.113.9", "192.0.2.1", "192.0.2.2", "198.51.100.1"],
    [
        "fd00:10:244:1::7",
        "fd00:10:244:1::2",
        "fd00:10:244:1::4",
        "fd00:10:244:2::1",
        "2001:db8:113::9",
        "2001:db8:2::1",
        "2001:db8:2::2",
        "2001:db8:51::1",
    ],
];
/// Addresses of local pods begin so.
const LOCAL: [&str; 2] = ["10.244.1.", "fd00:10:244:1:"];
/// Where node ports may answer.
const NODE: [&str; 4] = ["192.0.2.1", "192.0.2.2", "2001:db8:2::1", "2001:db8:2::2"];
/// Beside every Service: in the ranges of ClusterIPs, and outside.
const NOBODYS: [&str; 3] = ["10.96.0.99", "fd00:10:96::99", "198.51.100.9"];

/// Protocol, address, port.
type Destination = (String, IpAddr, u16);

/// Makes up so many flows; what becomes of them is still open.
pub(super) fn flows(rng: &mut Rng, count: usize, cluster: &Cluster, before: &Cluster, node: &Node) -> Result<Vec<Row>> {
    let mut destinations: Vec<_> = cluster.services().flat_map(frontends).collect();
    // What has gone must be gone.
    destinations.extend(before.services().flat_map(frontends).filter(|_| rng.chance(25)));
    for (protocol, ip, port) in destinations.clone() {
        if rng.chance(10) {
            destinations.push((protocol, ip, port + 7));
            destinations.push(((*rng.pick(&["tcp", "udp", "sctp"])).to_owned(), ip, port));
        }
    }
    for ip in NOBODYS {
        destinations.push(("tcp".to_owned(), ip.parse()?, 80));
    }
    let mut rows = Vec::new();
    for number in 1..=count {
        let (protocol, ip, port) = rng.pick(&destinations).clone();
        let from: IpAddr = rng.pick(&SOURCES[usize::from(ip.is_ipv6())]).parse()?;
        let local_pod = LOCAL.iter().any(|prefix| from.to_string().starts_with(prefix));
        let iif = (!node.holds(from)).then(|| if local_pod { PODS } else { UPLINK }.to_owned());
        rows.push(Row {
            place: format!("flow {number}"),
            from,
            from_port: None,
            iif,
            protocol: protocol.parse().map_err(anyhow::Error::msg)?,
            to: (ip, port).into(),
            expect: Expect::None,
        });
    }
    Ok(rows)
}

/// The addresses and ports at which a Service wants to be reached, of those that packets can be sent to.
fn frontends(service: &Value) -> Vec<Destination> {
    let spec = &service["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let ip = |value: &Value| {
        let ip = value.as_str().and_then(parse_ip)?;
        (!ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified()).then_some(ip)
    };
    let ingress = list(&service["status"]["loadBalancer"]["ingress"]);
    let balancers = ingress.iter().filter_map(|entry| ip(&entry["ip"]));
    let clustered = [list(&spec["clusterIPs"]), list(&spec["externalIPs"])].concat();
    let addresses: Vec<_> = clustered.iter().filter_map(ip).chain(balancers).collect();
    let mut frontends = Vec::new();
    for port in list(&spec["ports"]) {
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
        let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
        if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
            continue;
        }
        if let Some(port) = number(&port["port"]) {
            frontends.extend(addresses.iter().map(|ip| (protocol.clone(), *ip, port)));
        }
        if let Some(port) = number(&port["nodePort"]) {
            frontends.extend(NODE.iter().filter_map(|ip| Some((protocol.clone(), ip.parse().ok()?, port))));
        }
    }
    frontends
}
