//! What a datapath costs between a pod and pods elsewhere, through a node: with nothing at all in the way, with connection
//! tracking alone, and through the ClusterIP of each datapath.
//!
//! ```text
//! client 10.244.1.2 ── node-1 10.244.1.1 · 172.18.0.2 ── server 172.18.0.3, every address of 10.128.0.0/10
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use super::generate::{Cluster, ENDPOINT_CIDR, PORT, Size, TARGET_PORT};
use super::load::{self, Measured, Server};
use super::namespace;
use super::proxy::Proxy;
use crate::datapath::{Backend, Datapath};
use crate::netns::Namespace;
use crate::pins::{Connected, Pins};
use crate::step;

pub mod programs;
pub mod report;
pub mod uplink;

/// So many addresses are connected to in turn, services or endpoints, in every variant.
const TARGETS: usize = 10;
/// A rule that asks for the connection's state is what switches tracking on.
const TRACKING_ALONE: &str = "table inet tracking {\n  chain forward {\n    type filter hook forward priority filter\n    \
    ct state established,related accept\n  }\n}\n";

/// All programs, but those of sockets.
const AT_XDP: &[&str] = &["--socket-lb", "off", "--xdp", "native", "--xdp-devices", "eth0,out"];

/// What is between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Endpoints are connected to, no proxy.
    Nothing,
    /// The same, and connections are tracked.
    Tracking,
    Nftables,
    /// eBPF, every packet of a connection translated.
    Packets,
    /// eBPF, the client's sockets translated when they connect.
    Sockets,
}

/// A way from client to server, with all that was measured on it, one entry a round.
#[derive(Clone, Serialize, Debug)]
pub struct Variant {
    pub kind: Kind,
    /// How many services there are; `None` where there is no proxy.
    pub services: Option<usize>,
    pub rounds: Vec<Measured>,
}

/// All variants, in the order of the table, and what the programs alone cost.
#[derive(Clone, Serialize, Debug)]
pub struct Figures {
    pub variants: Vec<Variant>,
    pub uplink: Vec<uplink::Rate>,
    pub programs: Vec<programs::Cost>,
}

/// How long, how often, and with how many services besides ten.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    /// For each of the four measurements of a variant.
    pub time: Duration,
    pub large: Size,
    /// Runs of each program.
    pub runs: u32,
}

/// Measures all variants in turn, round by round.
pub fn measure(binary: &Path, home: &Path, plan: Plan) -> anyhow::Result<Figures> {
    // Outlives what runs in the namespaces.
    let ebpf = Datapath::create(Backend::Ebpf, home, "node")?;
    let (client, node, server) = (namespace("client")?, namespace("node")?, namespace("server")?);
    join(&client, &node, &server)?;
    let _server = Server::start(&server)?;
    let small = Cluster::create(home, Size { services: TARGETS, endpoints: 10 })?;
    let large = Cluster::create(home, plan.large)?;
    let endpoints: Vec<_> = (1..=TARGETS as u8).map(|last| Ipv4Addr::new(10, 128, 0, last)).collect();
    let proxy = |kind: Kind| Proxy {
        binary,
        node: &node,
        home,
        datapath: if kind == Kind::Nftables { &Datapath::Nftables } else { &ebpf },
        hooks: if kind == Kind::Packets { &["--socket-lb", "off", "--xdp", "off"] } else { &["--xdp", "off"] },
    };

    let mut variants = variants(plan.large.services);
    // The first round warms up and does not count. Every other round goes backwards, so that a machine that slows down or
    // speeds up favours none.
    for round in 0..=plan.rounds {
        step::note(format!("round {round} of {}", plan.rounds));
        let mut order: Vec<usize> = (0..variants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let variant = &mut variants[index];
            proxy(Kind::Nftables).clear()?;
            proxy(Kind::Packets).clear()?;
            // What one variant leaves in the table would clash with the tuples of the next.
            step::output(node.command("conntrack").arg("-F"))?;
            let targets = match (variant.kind, variant.services) {
                (Kind::Tracking, _) => {
                    step::feed(node.command("nft").args(["-f", "-"]), TRACKING_ALONE)?;
                    at(&endpoints, TARGET_PORT)
                }
                (kind, Some(services)) => {
                    let cluster = if services == TARGETS { &small } else { &large };
                    proxy(kind).once(cluster)?;
                    at(&cluster.cluster_ips(TARGETS), PORT)
                }
                (_, None) => at(&endpoints, TARGET_PORT),
            };
            let measured = load::measure(&client, ebpf.cgroup(), &targets, plan.time)?;
            check_hook(variant.kind, &ebpf)?;
            step::note(format!("  {}", report::line(variant, &measured)));
            if round > 0 {
                variant.rounds.push(measured);
            }
        }
    }
    let node_port = Cluster::create(home, Size { services: TARGETS, endpoints: 1 })?;
    node_port.add_node_port()?;
    let outside = uplink::join(&node, &server)?;
    let mut uplink = uplink::Hook::ALL.map(|hook| uplink::Rate { hook, rounds: Vec::new() });
    for round in 0..=plan.rounds {
        let mut line = String::new();
        let mut order: Vec<usize> = (0..uplink.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let rate = &mut uplink[index];
            proxy(Kind::Nftables).clear()?;
            proxy(Kind::Packets).clear()?;
            step::output(node.command("conntrack").arg("-F"))?;
            match rate.hook {
                uplink::Hook::Routed => {}
                uplink::Hook::Nftables => drop(proxy(Kind::Nftables).once(&node_port)?),
                uplink::Hook::Tc => drop(proxy(Kind::Packets).once(&node_port)?),
                uplink::Hook::Passed | uplink::Hook::Xdp => {
                    drop(Proxy { hooks: AT_XDP, ..proxy(Kind::Packets) }.once(&node_port)?)
                }
            }
            let packets = uplink::packets_per_second((&outside, &node, &server), rate.hook, plan.time)?;
            line += &format!("  {} {:.0}", rate.hook.name(), packets);
            if round > 0 {
                rate.rounds.push(packets);
            }
        }
        step::note(format!("node port, round {round} of {}, packets/s:{line}", plan.rounds));
    }
    step::note(format!("every program alone, {} runs", plan.runs));
    let with_programs = Proxy { hooks: AT_XDP, ..proxy(Kind::Packets) };
    with_programs.clear()?;
    with_programs.once(&large)?;
    let programs = programs::measure(&node, &ebpf, large.last_cluster_ip(), plan.runs)?;
    with_programs.clear()?;
    Ok(Figures { variants, uplink: uplink.into(), programs })
}

/// Fails if connections got their endpoint elsewhere than meant.
fn check_hook(kind: Kind, ebpf: &Datapath) -> anyhow::Result<()> {
    let Datapath::Ebpf(places) = ebpf else { return Ok(()) };
    let Connected { packets, sockets } =
        Pins::find(places.bpffs())?.map_or(Ok(Connected::default()), |pins| pins.connected())?;
    let meant = match kind {
        Kind::Packets => packets > 0 && sockets == 0,
        Kind::Sockets => packets == 0 && sockets > 0,
        Kind::Nothing | Kind::Tracking | Kind::Nftables => packets == 0 && sockets == 0,
    };
    ensure!(meant, "{kind:?}: {packets} connections got their endpoint by a packet, {sockets} by a socket");
    Ok(())
}

fn variants(large: usize) -> Vec<Variant> {
    let variant = |kind, services| Variant { kind, services, rounds: Vec::new() };
    let mut variants = vec![variant(Kind::Nothing, None), variant(Kind::Tracking, None)];
    for kind in [Kind::Nftables, Kind::Packets, Kind::Sockets] {
        variants.extend([TARGETS, large].map(|services| variant(kind, Some(services))));
    }
    variants
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
