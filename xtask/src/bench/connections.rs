//! New TCP connections per second from a pod, through the node, to pods elsewhere: through a ClusterIP, beside the same
//! namespaces with connection tracking alone and with nothing at all.
//!
//! ```text
//! client 10.244.1.2 ── node-1 10.244.1.1 · 172.18.0.2 ── server 172.18.0.3, every address of 10.128.0.0/10
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::generate::{Cluster, ENDPOINT_CIDR, PORT, Size, TARGET_PORT};
use super::load::{Server, connections_per_second};
use super::namespace;
use super::proxy::Proxy;
use super::report::median;
use crate::netns::Namespace;
use crate::step;

/// So many addresses are connected to in turn, services or endpoints, in every variant.
const TARGETS: usize = 10;
/// A rule that asks for the connection's state is what switches tracking on.
const TRACKING_ALONE: &str = "table inet tracking {\n  chain forward {\n    type filter hook forward priority filter\n    \
    ct state established,related accept\n  }\n}\n";

/// What the node between client and server does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Variant {
    Nothing,
    Tracking,
    Small,
    Large,
}

/// Connections per second, one entry a round; ratios are taken within a round, and their median counts.
#[derive(Clone, Default, Serialize, Debug)]
pub struct Connections {
    pub nothing: Vec<f64>,
    pub tracking: Vec<f64>,
    pub small_services: usize,
    pub small: Vec<f64>,
    pub large_services: usize,
    pub large: Vec<f64>,
}

impl Connections {
    /// The median over rounds of one variant beside another.
    pub fn ratio(one: &[f64], other: &[f64]) -> f64 {
        median(&one.iter().zip(other).map(|(one, other)| one / other).collect::<Vec<_>>())
    }
}

/// How long, how often, and with how many services besides ten.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    pub time: Duration,
    pub large: Size,
}

/// Measures all variants in turn, round by round.
pub fn measure(binary: &Path, home: &Path, plan: Plan) -> anyhow::Result<Connections> {
    let (client, node, server) = (namespace("client")?, namespace("node")?, namespace("server")?);
    join(&client, &node, &server)?;
    let _server = Server::start(&server)?;
    let small = Cluster::create(home, Size { services: TARGETS, endpoints: 10 })?;
    let large = Cluster::create(home, plan.large)?;
    let proxy = Proxy { binary, node: &node, home };
    let endpoints: Vec<_> = (1..=TARGETS as u8).map(|last| Ipv4Addr::new(10, 128, 0, last)).collect();

    let mut result =
        Connections { small_services: TARGETS, large_services: plan.large.services, ..Connections::default() };
    // The first round warms up and does not count. Every other round goes backwards, so that a machine that slows down or
    // speeds up favours none.
    for round in 0..=plan.rounds {
        let mut order = [Variant::Nothing, Variant::Tracking, Variant::Small, Variant::Large];
        if round % 2 == 1 {
            order.reverse();
        }
        let mut line = String::new();
        for variant in order {
            proxy.clear()?;
            // What one variant leaves in the table would clash with the tuples of the next.
            step::output(node.command("conntrack").arg("-F"))?;
            let targets = match variant {
                Variant::Nothing => at(&endpoints, TARGET_PORT),
                Variant::Tracking => {
                    step::feed(node.command("nft").args(["-f", "-"]), TRACKING_ALONE)?;
                    at(&endpoints, TARGET_PORT)
                }
                Variant::Small => {
                    proxy.once(&small)?;
                    at(&small.cluster_ips(TARGETS), PORT)
                }
                Variant::Large => {
                    proxy.once(&large)?;
                    at(&large.cluster_ips(TARGETS), PORT)
                }
            };
            let rate = connections_per_second(&client, &targets, plan.time)?;
            line += &format!("  {} {rate:.0}", format!("{variant:?}").to_lowercase());
            if round > 0 {
                result.of(variant).push(rate);
            }
        }
        step::note(format!("round {round} of {}, connections per second:{line}", plan.rounds));
    }
    proxy.clear()?;
    Ok(result)
}

impl Connections {
    fn of(&mut self, variant: Variant) -> &mut Vec<f64> {
        match variant {
            Variant::Nothing => &mut self.nothing,
            Variant::Tracking => &mut self.tracking,
            Variant::Small => &mut self.small,
            Variant::Large => &mut self.large,
        }
    }
}

fn at(addresses: &[Ipv4Addr], port: u16) -> Vec<SocketAddrV4> {
    addresses.iter().map(|address| SocketAddrV4::new(*address, port)).collect()
}

fn join(client: &Namespace, node: &Namespace, server: &Namespace) -> anyhow::Result<()> {
    node.ip(&format!(
        "link add pod type veth peer name eth0 netns {}\naddr add 10.244.1.1/24 dev pod\nlink set pod up\n\
         link add eth0 type veth peer name eth0 netns {}\naddr add 172.18.0.2/24 dev eth0\nlink set eth0 up\n\
         route add {ENDPOINT_CIDR} via 172.18.0.3",
        client.name(),
        server.name()
    ))?;
    client.ip("addr add 10.244.1.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.244.1.1")?;
    server.ip(&format!(
        "addr add 172.18.0.3/24 dev eth0\nlink set eth0 up\nroute add default via 172.18.0.2\n\
         route add local {ENDPOINT_CIDR} dev lo"
    ))?;
    // As many ports as there are, and closed connections forgotten soon: a tuple that comes again is not met in the table.
    client.sysctl(&[("ipv4/ip_local_port_range", "1024 65535"), ("ipv4/tcp_syn_retries", "2")])?;
    step::feed(node.command("nft").args(["-f", "-"]), TRACKING_ALONE)?;
    node.sysctl(&[("netfilter/nf_conntrack_tcp_timeout_close", "1")])
}
