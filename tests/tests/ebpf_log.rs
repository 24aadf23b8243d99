//! What the eBPF programs write about single connections (`--bpf-log-level`), and that it changes nothing for them.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;

use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::sockets::Maker;
use kubeferry_tests::client::{Connection, DEADLINE, Running, until};
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;
use kubeferry_tests::netns::Netns;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
pod-cidrs: [10.244.1.0/24, 'fd00:10:244:1::/64']
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  type: NodePort
  externalTrafficPolicy: Local
  ports: [{name: tcp, port: 80}, {name: udp, protocol: UDP, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: default}
spec:
  clusterIP: 10.96.0.13
  internalTrafficPolicy: Local
  ports: [{name: tcp, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: ['fd00:10:244:1::1'], nodeName: worker-1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: elsewhere-4, namespace: default, labels: {kubernetes.io/service-name: elsewhere}}
addressType: IPv4
ports: [{name: tcp, port: 8080}]
endpoints: [{addresses: [10.244.2.1], nodeName: worker-2}]
";

/// A node with a web pod and a client pod.
struct Cluster {
    // In this order: what runs ends before what it runs in.
    running: Option<Running>,
    sockets: Maker,
    places: Places,
    hosts: Hosts,
    source: Source,
    logs: tempfile::TempDir,
    starts: u32,
}

impl Cluster {
    fn build() -> Self {
        let ips = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().unwrap());
        let (web, client) = (ips(["10.244.1.1", "fd00:10:244:1::1"]), ips(["10.244.1.7", "fd00:10:244:1::7"]));
        let hosts = Hosts::build(&ips(["192.0.2.1", "2001:db8:2::1"]), &[("web", &web), ("client", &client)]).unwrap();
        hosts.host("web").serve(8080).unwrap();
        let node = Node::parse(NODE).unwrap();
        let manifests = with_node(&node, MANIFESTS).unwrap();
        let source = Source::new(&Case { name: "log".into(), node, steps: Vec::new() }).unwrap();
        source.write(&Step { manifests, rows: Vec::new() }).unwrap();
        let places = Places::new().unwrap();
        let program = Path::new(env!("CARGO_BIN_EXE_socket-maker"));
        let sockets = Maker::start(program, &hosts.host("client").namespace, places.cgroup()).unwrap();
        let logs = tempfile::tempdir().unwrap();
        Self { running: None, sockets, places, hosts, source, logs, starts: 0 }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = self.source.command("run").unwrap();
        self.places.apply(&mut command).args(flags);
        command
    }

    /// Ends what runs (SIGKILL) and starts anew; waits until it is in force.
    fn restart(&mut self, flags: &[&str]) {
        self.stop();
        self.starts += 1;
        let mut command = self.command(flags);
        command.stderr(File::create(self.file()).unwrap());
        self.running = Some(Running::start_command(&mut command, &self.hosts.node).unwrap());
        until("the first sync", || self.log().contains("synced").then_some(())).unwrap();
    }

    fn stop(&mut self) {
        drop(self.running.take());
    }

    fn file(&self) -> PathBuf {
        self.logs.path().join(self.starts.to_string())
    }

    /// The standard error of what runs.
    fn log(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    /// Waits for a line of the programs.
    fn until_logged(&self, level: &str, text: &str) {
        let is_it = |line: &str| line.contains(level) && line.contains("kubeferry::bpf: ") && line.ends_with(text);
        let found = until(text, || self.log().lines().any(is_it).then_some(()));
        found.unwrap_or_else(|error| panic!("{error}:\n{}", self.log()));
    }

    fn says_nothing(&self) {
        assert!(!self.log().contains("kubeferry::bpf"), "{}", self.log());
    }

    fn client(&self) -> &Netns {
        &self.hosts.host("client").namespace
    }

    fn connect(&self, to: &str) -> Connection {
        let mut connection = Connection::open(self.client(), to.parse().unwrap()).unwrap();
        connection.ask().unwrap();
        connection
    }
}

#[test]
fn lines_tell_what_became_of_connections() {
    let mut cluster = Cluster::build();
    cluster.restart(&["--bpf-log-level", "trace"]);
    for (to, endpoint) in [("10.96.0.10:80", "10.244.1.1:8080"), ("[fd00:10:96::10]:80", "[fd00:10:244:1::1]:8080")] {
        let from = cluster.connect(to).local().unwrap();
        cluster.until_logged("DEBUG", &format!("tcp {from} to {to}: endpoint {endpoint}"));
    }
    Connection::open(cluster.client(), "10.96.0.10:81".parse().unwrap()).unwrap_err();
    cluster.until_logged(" INFO", " to 10.96.0.10:81: refused (undefined_port)");
    let udp = cluster.client().run(|| UdpSocket::bind("10.244.1.7:0")).unwrap().unwrap();
    udp.send_to(b"?\n", "10.96.0.13:81").unwrap();
    let from = udp.local_addr().unwrap();
    cluster.until_logged(" INFO", &format!("udp {from} to 10.96.0.13:81: refused (undefined_port)"));
    let to: SocketAddr = "10.96.0.13:80".parse().unwrap();
    Connection::open_within(cluster.client(), to, std::time::Duration::from_millis(100)).unwrap_err();
    cluster.until_logged(" INFO", &format!(" to {to}: dropped (no_local_endpoint)"));
    let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
    cluster.sockets.tcp(false).unwrap().connect(to, DEADLINE).unwrap();
    until("the line of a socket", || {
        let is_it =
            |line: &str| line.contains("tcp socket ") && line.ends_with(&format!("to {to}: endpoint 10.244.1.1:8080"));
        cluster.log().lines().any(is_it).then_some(())
    })
    .unwrap();
    cluster.sockets.udp(false).unwrap().send_to(b"?\n", "10.244.1.1:8080").unwrap();
    cluster.until_logged("TRACE", " to 10.244.1.1:8080: left as it is");
}

#[test]
fn the_level_changes_over_restarts_and_connections_go_on() {
    let mut cluster = Cluster::build();
    cluster.restart(&[]);
    let mut kept = cluster.connect("10.96.0.10:80");
    cluster.restart(&["--bpf-log-level", "debug"]);
    kept.ask().unwrap();
    let from = cluster.connect("10.96.0.10:80").local().unwrap();
    cluster.until_logged("DEBUG", &format!("tcp {from} to 10.96.0.10:80: endpoint 10.244.1.1:8080"));
    // The same level again: the lines are this process's.
    cluster.restart(&["--bpf-log-level", "debug"]);
    let from = cluster.connect("10.96.0.10:80").local().unwrap();
    cluster.until_logged("DEBUG", &format!("tcp {from} to 10.96.0.10:80: endpoint 10.244.1.1:8080"));
    kept.ask().unwrap();
    cluster.restart(&["--bpf-log-level", "info"]);
    drop(cluster.connect("10.96.0.10:80"));
    Connection::open(cluster.client(), "10.96.0.10:81".parse().unwrap()).unwrap_err();
    cluster.until_logged(" INFO", " to 10.96.0.10:81: refused (undefined_port)");
    assert!(!cluster.log().contains("endpoint"), "{}", cluster.log());
    cluster.restart(&[]);
    kept.ask().unwrap();
    drop(cluster.connect("10.96.0.10:80"));
    Connection::open(cluster.client(), "10.96.0.10:81".parse().unwrap()).unwrap_err();
    cluster.says_nothing();
    let programs = |pins: Vec<String>| pins.iter().filter(|pin| pin.ends_with("/tc_ingress")).count();
    assert_eq!(programs(cluster.places.pins().unwrap()), 1, "programs of other levels are gone");
}

#[test]
fn programs_that_nobody_reads_go_on() {
    let mut cluster = Cluster::build();
    cluster.restart(&["--bpf-log-level", "debug"]);
    let mut kept = cluster.connect("10.96.0.10:80");
    cluster.stop();
    // More than their buffer has room for.
    let to: SocketAddr = "10.96.0.10:80".parse().unwrap();
    let many = || {
        for port in 20_000..26_000 {
            UdpSocket::bind(("10.244.1.7", port)).and_then(|socket| socket.send_to(b"?\n", to)).unwrap();
        }
    };
    cluster.client().run(many).unwrap();
    kept.ask().unwrap();
    drop(cluster.connect("10.96.0.10:80"));
    cluster.restart(&["--bpf-log-level", "debug"]);
    let from = cluster.connect("10.96.0.10:80").local().unwrap();
    cluster.until_logged("DEBUG", &format!("tcp {from} to 10.96.0.10:80: endpoint 10.244.1.1:8080"));
    kept.ask().unwrap();
}
