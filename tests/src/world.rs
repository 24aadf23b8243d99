//! The surroundings of one case: the node in a namespace of its own, and one far end for everything that it talks to.
//!
//! Each interface of the node is a cable to the same second namespace, where no address is configured: frames are sent and
//! captured there by the [`Prober`]. The uplink has the default route, each pod a route of its own, and neighbours are
//! fixed, so that the node never has to ask who has an address.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;

use crate::flows::{Case, UPLINK};
use crate::netns::{End, Netns, link, mac_text};
use crate::packets::{Cable, Prober};

/// The far ends' addresses as the node's routes know them; never on the wire.
const GATEWAY: (&str, &str) = ("169.254.1.1", "fe80::1");

/// The node under test and its surroundings.
#[derive(Debug)]
pub struct World {
    /// The node.
    pub node: Netns,
    /// The far ends of its cables.
    pub far: Netns,
    /// The cables, the uplink first.
    pub cables: Vec<Cable>,
    /// Addresses that are reached by another interface than the uplink.
    pub routes: BTreeMap<IpAddr, String>,
}

impl World {
    /// Builds the namespaces, cables, addresses and routes that the rows of a case need, all steps together.
    ///
    /// # Errors
    /// `ip` is missing or refuses, or the right to make namespaces is missing.
    pub fn build(case: &Case) -> Result<Self> {
        let mut world = Self::bare(&case.interfaces())?;
        world.routes = case.routes()?.into_iter().collect();
        let mut lines = Vec::new();
        for (interface, addresses) in &case.node.addresses {
            // Host prefixes: no address is taken for a neighbour because it looks near.
            lines.extend(addresses.iter().map(|ip| match ip.is_ipv4() {
                true => format!("addr add {ip}/32 dev {interface}"),
                false => format!("addr add {ip}/128 dev {interface} nodad"),
            }));
        }
        for (ip, interface) in &world.routes {
            lines.push(match ip.is_ipv4() {
                true => format!("route add {ip}/32 via {} dev {interface} onlink", GATEWAY.0),
                false => format!("route add {ip}/128 via {} dev {interface} onlink", GATEWAY.1),
            });
        }
        if !lines.is_empty() {
            world.node.ip(&lines)?;
        }
        Ok(world)
    }

    /// The node with cables of these names (the uplink among them) and nothing on them but routes to the far ends.
    ///
    /// # Errors
    /// As for [`World::build`].
    pub fn bare(interfaces: &[String]) -> Result<Self> {
        let (node, far) = (Netns::new("node")?, Netns::new("far")?);
        // The far ends have no stack: nothing but the node ever speaks.
        far.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
        let number = |at: usize| u8::try_from(at).map(|number| number + 1);
        let mut cables = Vec::new();
        for (at, interface) in interfaces.iter().enumerate() {
            let (node_mac, far_mac) = ([2, 0, 0, 0, 1, number(at)?], [2, 0, 0, 0, 2, number(at)?]);
            cables.push(Cable { interface: interface.clone(), node_mac, far_mac });
        }
        for key in ["all", "default"] {
            node.sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
            node.sysctl(&format!("net/ipv4/conf/{key}/send_redirects"), "0")?;
            node.sysctl(&format!("net/ipv4/conf/{key}/accept_local"), "1")?;
            node.sysctl(&format!("net/ipv6/conf/{key}/accept_ra"), "0")?;
        }
        node.sysctl("net/ipv4/ip_forward", "1")?;
        node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        // An answer that the node holds back for its rate would look like a drop.
        node.sysctl("net/ipv4/icmp_ratelimit", "0")?;
        node.sysctl("net/ipv6/icmp/ratelimit", "0")?;
        let mut lines = Vec::new();
        for cable in &cables {
            let interface = cable.interface.as_str();
            let near = End { namespace: &node, interface, mac: cable.node_mac };
            link(near, End { namespace: &far, interface, mac: cable.far_mac })?;
            for gateway in [GATEWAY.0, GATEWAY.1] {
                let mac = mac_text(cable.far_mac);
                lines.push(format!("neigh add {gateway} lladdr {mac} dev {interface} nud permanent"));
            }
        }
        lines.push(format!("route add default via {} dev {UPLINK} onlink", GATEWAY.0));
        lines.push(format!("route add ::/0 via {} dev {UPLINK} onlink", GATEWAY.1));
        node.ip(&lines)?;
        Ok(Self { node, far, cables, routes: BTreeMap::new() })
    }

    /// Opens the sockets that send and capture.
    ///
    /// # Errors
    /// The right to open raw sockets (CAP_NET_RAW) is missing.
    pub fn prober(&self) -> Result<Prober> {
        Prober::new(&self.node, &self.far, &self.cables)
    }
}
