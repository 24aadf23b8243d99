//! A node changes from kube-proxy to Kubeferry and back under load: new connections from every side all the time, and others
//! that stay open. Not one request may fail, and a datagram is a request: nobody asks twice.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::channel;
use std::thread;

use anyhow::ensure;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::bpf::sockets::Maker;
use kubeferry_tests::client::until;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;
use kubeferry_tests::kube_proxy::{Mode, Service};
use kubeferry_tests::load::{Client, Kept, Load, ROUND, Way};
use kubeferry_tests::netns::Netns;
use kubeferry_tests::small;

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: tcp, port: 80, nodePort: 30080}
    - {name: udp, protocol: UDP, port: 80, nodePort: 30080}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}, {addresses: [10.244.1.2], nodeName: worker-1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints:
  - {addresses: ['fd00:10:244:1::1'], nodeName: worker-1}
  - {addresses: ['fd00:10:244:1::2'], nodeName: worker-1}
";
/// For connections that are closed while the eBPF datapath drains; more than a test takes.
const DRAIN: &str = "25s";

/// A node with two web pods, a client pod and a client outside.
struct World {
    /// Makes the node's own sockets where programs translate them: in the cgroup that the proxy is told, as every process of
    /// a node is.
    sockets: Option<Maker>,
    hosts: Hosts,
    source: Source,
}

impl World {
    fn build(datapath: &Datapath) -> Self {
        let hosts = small::hosts().unwrap();
        let node = Node::parse(small::NODE).unwrap();
        let source = Source::new(&Case { name: "migration".into(), node: node.clone(), steps: Vec::new() }).unwrap();
        source.write(&Step { manifests: with_node(&node, OBJECTS).unwrap(), rows: Vec::new() }).unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_socket-maker"));
        let sockets = match datapath {
            Datapath::Nftables => None,
            Datapath::Ebpf(places) => Some(Maker::start(program, &hosts.node, places.cgroup()).unwrap()),
        };
        Self { sockets, hosts, source }
    }

    fn node(&self) -> &Netns {
        &self.hosts.node
    }

    /// From a pod and from the node to the ClusterIPs, from outside to the node ports.
    fn ways(&self) -> Vec<Way<'_, dyn Client>> {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let [client, outside] = ["client", "outside"].map(|name| &self.hosts.host(name).namespace as &dyn Client);
        let node = self.sockets.as_ref().map_or(self.node() as &dyn Client, |maker| maker);
        let vips = ["10.96.0.10:80", "[fd00:10:96::10]:80"].map(at);
        let node_ports = ["192.0.2.1:30080", "[2001:db8:2::1]:30080"].map(at);
        let to_vips = vips.iter().flat_map(|vip| [(client, *vip), (node, *vip)]);
        to_vips.chain(node_ports.iter().map(|port| (outside, *port))).collect()
    }

    fn cleanup(&self, arguments: &[&str], datapath: &Datapath) -> Output {
        let mut command = Command::new(binary::path().unwrap());
        command.arg("cleanup").args(arguments).stdin(Stdio::null());
        if let Datapath::Ebpf(places) = datapath {
            command.arg("--bpffs-root").arg(places.bpffs());
        }
        self.node().output(&mut command, "").unwrap()
    }
}

fn services() -> [Service; 2] {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let service = |cluster_ip, node_ip, endpoints: [&str; 2], pods| Service {
        cluster_ip: ip(cluster_ip),
        node_ip: ip(node_ip),
        endpoints: endpoints.map(ip),
        pods,
    };
    [
        service("10.96.0.10", "192.0.2.1", ["10.244.1.1", "10.244.1.2"], "10.244.0.0/16"),
        service("fd00:10:96::10", "2001:db8:2::1", ["fd00:10:244:1::1", "fd00:10:244:1::2"], "fd00:10:244::/48"),
    ]
}

/// Of both its ways, by TCP and by UDP, the node's sockets are translated when they connect.
fn sockets_are_translated(places: &Places, load: &Load) -> anyhow::Result<()> {
    let pinned = Pinned::open(places.bpffs())?;
    let before = pinned.counter(Counter::SocketConnected)?;
    load.go_on()?;
    let more = pinned.counter(Counter::SocketConnected)? - before;
    // One of each may have connected before.
    ensure!(usize::try_from(more)? >= 4 * (ROUND - 1), "{more} of the node's sockets were translated");
    Ok(())
}

/// There and back.
fn migrate(mode: Mode, datapath: Datapath) {
    let world = World::build(&datapath);
    mode.load(world.node(), &services()).unwrap();
    let before = mode.rules(world.node()).unwrap();
    assert!(!before.is_empty());
    let kubelets = mode.kubelets(world.node()).unwrap();
    let ways = world.ways();
    let mut of_theirs = Kept::open(&ways).unwrap();
    let answered = Load::during_asking_once(&ways, |load| {
        load.go_on()?;
        let running = datapath.run(&world.source, world.node())?;
        let gone = || mode.rules(world.node()).ok().filter(Vec::is_empty);
        until("kube-proxy's rules to be removed", gone)?;
        load.go_on()?;
        of_theirs.ask()?;
        assert_eq!(mode.kubelets(world.node())?, kubelets, "what is kubelet's stays");

        if let Datapath::Ebpf(places) = &datapath {
            sockets_are_translated(places, load)?;
        }
        let mut of_ours = Kept::open(&ways)?;
        mode.load(world.node(), &services())?;
        load.go_on()?;
        running.stop()?;
        load.go_on()?;
        of_theirs.ask()?;
        of_ours.ask()?;
        hand_over(&world, &datapath, load, &mut of_theirs, of_ours)?;
        assert_eq!(mode.rules(world.node())?, before, "their rules are left alone");
        Ok(())
    });
    assert!(answered.unwrap() > 0);
    of_theirs.ask().unwrap();
}

/// Cleans ours up. Connections that rules translate go on; those of programs are waited for.
fn hand_over(
    world: &World,
    datapath: &Datapath,
    load: &Load,
    of_theirs: &mut Kept,
    mut of_ours: Kept,
) -> anyhow::Result<()> {
    match datapath {
        Datapath::Nftables => {
            assert!(world.cleanup(&[], datapath).status.success());
            load.go_on()?;
            of_theirs.ask()?;
            of_ours.ask()?;
        }
        Datapath::Ebpf(places) => thread::scope(|scope| {
            let (ended, end) = channel();
            scope.spawn(move || ended.send(world.cleanup(&["--drain", DRAIN], datapath)));
            load.go_on()?;
            of_theirs.ask()?;
            of_ours.ask()?;
            assert!(end.try_recv().is_err(), "connections are still open");
            drop(of_ours);
            let output = until("the cleanup to end", || end.try_recv().ok())?;
            assert!(output.status.success(), "{output:?}");
            assert!(!String::from_utf8_lossy(&output.stderr).contains("have not ended"), "{output:?}");
            assert_eq!(places.pins()?, Vec::<String>::new());
            load.go_on()
        })?,
    }
    let tables = world.node().nft(&["list", "tables"], "")?;
    assert!(!tables.contains("kubeferry"), "{tables}");
    Ok(())
}

mod from_nftables {
    use super::*;

    #[test]
    fn to_nftables_and_back() {
        migrate(Mode::Nftables, Datapath::Nftables);
    }

    #[test]
    fn to_ebpf_and_back() {
        migrate(Mode::Nftables, Datapath::ebpf().unwrap());
    }
}

mod from_iptables {
    use super::*;

    #[test]
    fn to_nftables_and_back() {
        migrate(Mode::Iptables, Datapath::Nftables);
    }

    #[test]
    fn to_ebpf_and_back() {
        migrate(Mode::Iptables, Datapath::ebpf().unwrap());
    }

    #[test]
    fn of_the_older_kind_to_nftables_and_back() {
        migrate(Mode::IptablesLegacy, Datapath::Nftables);
    }

    #[test]
    fn of_the_older_kind_to_ebpf_and_back() {
        migrate(Mode::IptablesLegacy, Datapath::ebpf().unwrap());
    }
}
