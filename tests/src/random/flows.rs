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

/// Where a Service wants to be reached.
#[derive(Default)]
struct Frontends {
    cluster: Vec<Destination>,
    external: Vec<Destination>,
    node_ports: Vec<Destination>,
}

/// Source ports that rows name begin here; each row of a history has one of its own, as a second connection from the same would
/// be the first one.
const FIRST_PORT: usize = 1_100;

/// Makes up so many flows of the state of this number; what becomes of them is still open.
pub(super) fn flows(
    rng: &mut Rng,
    (state, count): (usize, usize),
    cluster: &Cluster,
    before: &Cluster,
    node: &Node,
) -> Result<Vec<Row>> {
    let now = Frontends::of(cluster);
    // What has gone must be gone.
    let old = Frontends::of(before);
    let mut nobodys = Vec::new();
    for ip in NOBODYS {
        nobodys.push(("tcp".to_owned(), ip.parse()?, 80));
    }
    let mut rows = Vec::new();
    for number in 1..=count {
        let (mut protocol, ip, mut port) = loop {
            let of = if rng.chance(6) { &old } else { &now };
            let choices = match rng.below(100) {
                0..50 => &of.cluster,
                50..78 => &of.external,
                78..98 => &of.node_ports,
                _ => &nobodys,
            };
            if !choices.is_empty() {
                break rng.pick(choices).clone();
            }
        };
        match rng.below(100) {
            0..4 => port += 7,
            4..8 => (*rng.pick(&["tcp", "udp", "sctp"])).clone_into(&mut protocol),
            _ => {}
        }
        let from: IpAddr = rng.pick(&SOURCES[usize::from(ip.is_ipv6())]).parse()?;
        let local_pod = LOCAL.iter().any(|prefix| from.to_string().starts_with(prefix));
        let iif = (!node.holds(from)).then(|| if local_pod { PODS } else { UPLINK }.to_owned());
        rows.push(Row {
            place: format!("flow {number}"),
            from,
            // Where it does not decide, it is left out: see `Live::expect`.
            from_port: rng.chance(15).then(|| u16::try_from(FIRST_PORT + state * count + number)).transpose()?,
            iif,
            protocol: protocol.parse().map_err(anyhow::Error::msg)?,
            to: (ip, port).into(),
            expect: Expect::None,
        });
    }
    Ok(rows)
}

impl Frontends {
    /// Of all Services, those that packets can be sent to.
    fn of(cluster: &Cluster) -> Self {
        let mut frontends = Self::default();
        cluster.services().for_each(|service| frontends.add(service));
        frontends
    }

    fn add(&mut self, service: &Value) {
        let spec = &service["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let ip = |value: &Value| {
            let ip = value.as_str().and_then(parse_ip)?;
            (!ip.is_loopback() && !ip.is_multicast() && !ip.is_unspecified()).then_some(ip)
        };
        let ingress = list(&service["status"]["loadBalancer"]["ingress"]);
        let balancers = ingress.iter().filter_map(|entry| ip(&entry["ip"]));
        let cluster: Vec<_> = list(&spec["clusterIPs"]).iter().filter_map(ip).collect();
        let external: Vec<_> = list(&spec["externalIPs"]).iter().filter_map(ip).chain(balancers).collect();
        for port in list(&spec["ports"]) {
            let protocol = port["protocol"].as_str().unwrap_or("TCP").to_lowercase();
            let number =
                |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
            if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
                continue;
            }
            if let Some(port) = number(&port["port"]) {
                self.cluster.extend(cluster.iter().map(|ip| (protocol.clone(), *ip, port)));
                self.external.extend(external.iter().map(|ip| (protocol.clone(), *ip, port)));
            }
            if let Some(port) = number(&port["nodePort"]) {
                self.node_ports.extend(NODE.iter().filter_map(|ip| Some((protocol.clone(), ip.parse().ok()?, port))));
            }
        }
    }
}
