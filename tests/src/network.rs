//! What is around a node: pods of its own, and beyond a router a pod of another node and a client of the world.

use std::net::IpAddr;

use anyhow::Result;

use crate::hosts::{Host, Hosts};

/// The node's addresses.
pub const NODE_IPS: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];

/// The node and everybody around it, in IPv4 and IPv6. The strict check of the reverse path is on.
#[derive(Debug)]
pub struct Network {
    /// The node, the pods `web1`, `web2` (10.244.1.1 and .2, fd00:10:244:1::1 and ::2) and `client` (.7), and `router`.
    pub hosts: Hosts,
    /// A pod of another node (10.244.2.1, fd00:10:244:2::1), beyond the router.
    pub remote: Host,
    /// A client (203.0.113.9, 2001:db8:113::9), beyond the router.
    pub outside: Host,
}

impl Network {
    /// Builds it. Nobody serves yet.
    ///
    /// # Errors
    /// As [`Hosts::build`].
    pub fn build() -> Result<Self> {
        let pair = |v4: &str, v6: &str| Ok::<[IpAddr; 2], std::net::AddrParseError>([v4.parse()?, v6.parse()?]);
        let hosts = [
            ("web1", pair("10.244.1.1", "fd00:10:244:1::1")?),
            ("web2", pair("10.244.1.2", "fd00:10:244:1::2")?),
            ("client", pair("10.244.1.7", "fd00:10:244:1::7")?),
            ("router", pair("198.51.100.1", "2001:db8:51::1")?),
        ];
        let hosts: Vec<_> = hosts.iter().map(|(name, addresses)| (*name, addresses.as_slice())).collect();
        let hosts = Hosts::build(&pair(NODE_IPS[0], NODE_IPS[1])?, &hosts)?;
        hosts.node.sysctl("net/ipv4/conf/all/rp_filter", "1")?;
        // For connections of the node to its own node ports, which nothing but the socket hook does better.
        hosts.node.sysctl("net/ipv4/conf/lo/accept_local", "1")?;
        // As a way out has one, where devices of pods have none; nothing is sent from it.
        hosts.node.ip(&["addr add 198.18.0.1/32 dev router scope link"])?;
        let router = &hosts.host("router").namespace;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let remote = Host::join(router, "remote", 100, &pair("10.244.2.1", "fd00:10:244:2::1")?)?;
        let outside = Host::join(router, "outside", 101, &pair("203.0.113.9", "2001:db8:113::9")?)?;
        Ok(Self { hosts, remote, outside })
    }
}
