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
use uplink::{Hook, Rate};

pub mod counting;
pub mod first_packets;
pub mod programs;
pub mod report;
pub mod schedulers;
mod uncounted;
pub mod uplink;

/// So many addresses are connected to in turn, services or endpoints, in every variant.
const TARGETS: usize = 10;
/// A rule that asks for the connection's state is what switches tracking on.
const TRACKING_ALONE: &str = "table inet tracking {\n  chain forward {\n    type filter hook forward priority filter\n    \
    ct state established,related accept\n  }\n}\n";

/// The programs of TC alone.
const AT_TC: &[&str] = &["--socket-lb", "off", "--xdp", "off"];
/// The same, and every packet is counted.
const AT_TC_COUNTING: &[&str] = &["--socket-lb", "off", "--xdp", "off", "--service-metrics", "full"];
/// All programs, but those of sockets.
const AT_XDP: &[&str] = &["--socket-lb", "off", "--xdp", "native", "--xdp-devices", "eth0,out"];

/// `--service-metrics`.
const COUNT_CONNECTIONS: &[&str] = &["--service-metrics", "connections"];
const COUNT_ALL: &[&str] = &["--service-metrics", "full"];

/// What is between client and server.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Endpoints are connected to, no proxy.
    Nothing,
    /// The same, and connections are tracked.
    Tracking,
    Nftables,
    /// The same, and new connections are counted (`--service-metrics connections`).
    NftablesConnections,
    /// The same, and packets and bytes as well (`--service-metrics full`).
    NftablesFull,
    /// eBPF, every packet of a connection translated.
    Packets,
    /// The same, and packets and bytes are counted (`--service-metrics full`); connections always are.
    PacketsFull,
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
    pub uplink: Vec<Rate>,
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

/// Measures all of it.
pub fn measure(binary: &Path, home: &Path, plan: Plan) -> anyhow::Result<Figures> {
    let bench = Bench::new(binary, home)?;
    let large = Cluster::create(home, plan.large)?;
    let variants = bench.variants(plan, &large)?;
    let uplink = bench.uplink(plan)?;
    step::note(format!("every program alone, {} runs", plan.runs));
    bench.clear()?;
    bench.proxy(Backend::Ebpf, AT_XDP).once(&large)?;
    let programs = programs::measure(&bench.node, &bench.ebpf, large.last_cluster_ip(), plan.runs)?;
    bench.clear()?;
    Ok(Figures { variants, uplink, programs })
}

/// Where it is measured. What the datapath has goes after the namespaces.
#[derive(Debug)]
struct Bench<'a> {
    binary: &'a Path,
    home: &'a Path,
    _serving: Server,
    client: Namespace,
    node: Namespace,
    server: Namespace,
    outside: Namespace,
    ebpf: Datapath,
}

impl<'b> Bench<'b> {
    fn new(binary: &'b Path, home: &'b Path) -> anyhow::Result<Self> {
        let ebpf = Datapath::create(Backend::Ebpf, home, "node")?;
        let (client, node, server) = (namespace("client")?, namespace("node")?, namespace("server")?);
        join(&client, &node, &server)?;
        let outside = uplink::join(&node)?;
        let serving = Server::start(&server)?;
        Ok(Self { binary, home, _serving: serving, client, node, server, outside, ebpf })
    }

    fn proxy<'a>(&'a self, backend: Backend, hooks: &'a [&'static str]) -> Proxy<'a> {
        let datapath = if backend == Backend::Nftables { &Datapath::Nftables } else { &self.ebpf };
        Proxy { binary: self.binary, node: &self.node, home: self.home, datapath, hooks }
    }

    /// Leaves the node without any datapath.
    fn clear(&self) -> anyhow::Result<()> {
        Backend::ALL.into_iter().try_for_each(|backend| self.proxy(backend, &[]).clear())?;
        // What one variant leaves in the table would clash with the tuples of the next.
        step::output(self.node.command("conntrack").arg("-F")).map(drop)
    }

    /// Measures all variants in turn, round by round.
    fn variants(&self, plan: Plan, large: &Cluster) -> anyhow::Result<Vec<Variant>> {
        let small = Cluster::create(self.home, Size { services: TARGETS, endpoints: 10 })?;
        let endpoints: Vec<_> = (1..=TARGETS as u8).map(|last| Ipv4Addr::new(10, 128, 0, last)).collect();
        let mut variants = variants(plan.large.services);
        for round in 0..=plan.rounds {
            step::note(format!("round {round} of {}", plan.rounds));
            for index in order(variants.len(), round) {
                let variant = &mut variants[index];
                self.clear()?;
                let cluster = if variant.services == Some(TARGETS) { &small } else { large };
                let mut running = None;
                match variant.kind {
                    Kind::Nothing => {}
                    Kind::Tracking => step::feed(self.node.command("nft").args(["-f", "-"]), TRACKING_ALONE)?,
                    Kind::Nftables => drop_time(self.proxy(Backend::Nftables, &[]).once(cluster))?,
                    Kind::NftablesConnections => {
                        drop_time(self.proxy(Backend::Nftables, COUNT_CONNECTIONS).once(cluster))?;
                    }
                    Kind::NftablesFull => {
                        // Events cost a connection something only while somebody listens: this one goes on.
                        running = Some(self.proxy(Backend::Nftables, COUNT_ALL).start(cluster)?);
                    }
                    Kind::Packets => drop_time(self.proxy(Backend::Ebpf, AT_TC).once(cluster))?,
                    Kind::PacketsFull => drop_time(self.proxy(Backend::Ebpf, AT_TC_COUNTING).once(cluster))?,
                    Kind::Sockets => drop_time(self.proxy(Backend::Ebpf, &["--xdp", "off"]).once(cluster))?,
                }
                let targets = match variant.services {
                    Some(_) => at(&cluster.cluster_ips(TARGETS), PORT),
                    None => at(&endpoints, TARGET_PORT),
                };
                let measured = load::measure(&self.client, self.ebpf.cgroup(), &targets, plan.time)?;
                drop(running);
                check_hook(variant.kind, &self.ebpf)?;
                step::note(format!("  {}", report::line(variant, &measured)));
                // The first round warms up.
                if round > 0 {
                    variant.rounds.push(measured);
                }
            }
        }
        Ok(variants)
    }

    /// Sends packets to a node port, with all hooks in turn, round by round.
    fn uplink(&self, plan: Plan) -> anyhow::Result<Vec<Rate>> {
        let cluster = Cluster::create(self.home, Size { services: TARGETS, endpoints: 1 })?;
        cluster.add_node_port()?;
        uplink::take_frames(&self.server)?;
        let mut rates = Hook::ALL.map(|hook| Rate { hook, rounds: Vec::new() });
        for round in 0..=plan.rounds {
            let mut line = String::new();
            for index in order(rates.len(), round) {
                let Rate { hook, rounds } = &mut rates[index];
                self.clear()?;
                match hook {
                    Hook::Routed => {}
                    Hook::Nftables => drop_time(self.proxy(Backend::Nftables, &[]).once(&cluster))?,
                    Hook::Tc => drop_time(self.proxy(Backend::Ebpf, AT_TC).once(&cluster))?,
                    Hook::Passed | Hook::Xdp => drop_time(self.proxy(Backend::Ebpf, AT_XDP).once(&cluster))?,
                }
                let places = (&self.outside, &self.node, &self.server);
                let packets = uplink::packets_per_second(places, *hook, plan.time)?;
                line += &format!("  {} {packets:.0}", hook.name());
                if round > 0 {
                    rounds.push(packets);
                }
            }
            step::note(format!("node port, round {round} of {}, packets/s:{line}", plan.rounds));
        }
        Ok(rates.into())
    }
}

/// How long a proxy took does not matter here.
fn drop_time(done: anyhow::Result<Duration>) -> anyhow::Result<()> {
    done.map(|_| ())
}

/// Every other round goes backwards, so that a machine that slows down or speeds up favours none.
fn order(count: usize, round: usize) -> Vec<usize> {
    if round % 2 == 1 { (0..count).rev().collect() } else { (0..count).collect() }
}

/// Fails if connections got their endpoint elsewhere than meant.
fn check_hook(kind: Kind, ebpf: &Datapath) -> anyhow::Result<()> {
    let Datapath::Ebpf(places) = ebpf else { return Ok(()) };
    let Connected { packets, sockets } =
        Pins::find(places.bpffs())?.map_or(Ok(Connected::default()), |pins| pins.connected())?;
    let meant = match kind {
        Kind::Packets | Kind::PacketsFull => packets > 0 && sockets == 0,
        Kind::Sockets => packets == 0 && sockets > 0,
        Kind::Nothing | Kind::Tracking | Kind::Nftables | Kind::NftablesConnections | Kind::NftablesFull => {
            packets == 0 && sockets == 0
        }
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
    // What counting costs a connection does not depend on the number of Services.
    let counting = [Kind::NftablesConnections, Kind::NftablesFull, Kind::PacketsFull];
    variants.extend(counting.map(|kind| variant(kind, Some(TARGETS))));
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
