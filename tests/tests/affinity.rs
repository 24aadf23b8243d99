//! ClientIP affinity over time, with real connections: each new one renews it, and when none came for the timeout it ends.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;
use kubeferry_tests::netns::Netns;
use serde_json::Value;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 2}}
  ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1]}, {addresses: [10.244.1.2]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{port: 8080}]
endpoints: [{addresses: ['fd00:10:244:1::1']}, {addresses: ['fd00:10:244:1::2']}]
";
/// A pause that is shorter than the timeout of 2 s for certain: the kernel counts in ticks.
const PAUSE: Duration = Duration::from_millis(1800);
/// A pause that is longer than the timeout for certain.
const FORGOTTEN: Duration = Duration::from_millis(2200);
/// How long a client has to have come again and again: affinity that is not renewed would have ended twice.
const LOYAL: Duration = Duration::from_secs(5);
/// Clients of each family. That all of a family choose the endpoint that they had comes once in 16 million times.
const CLIENTS: u8 = 24;

/// An address that opens one connection after the other.
struct Client {
    ip: IpAddr,
    endpoint: String,
    /// Since when no pause was longer than [`PAUSE`].
    since: Instant,
    /// When it last began to connect.
    last: Instant,
}

impl Client {
    fn new(from: &Netns, ip: IpAddr) -> Self {
        let begin = Instant::now();
        Self { ip, endpoint: connect(from, ip), since: begin, last: begin }
    }

    /// Connects once more: to the same endpoint, unless this machine was so slow that the timeout may have passed.
    fn again(&mut self, from: &Netns) {
        let begin = Instant::now();
        let endpoint = connect(from, self.ip);
        if self.last.elapsed() >= PAUSE {
            self.since = begin;
        } else {
            assert_eq!(endpoint, self.endpoint, "{}, after {:?}", self.ip, begin - self.since);
        }
        (self.endpoint, self.last) = (endpoint, begin);
    }
}

/// The name of the endpoint that a new connection reaches.
fn connect(from: &Netns, source: IpAddr) -> String {
    let vip: SocketAddr = if source.is_ipv4() { "10.96.0.10:80" } else { "[fd00:10:96::10]:80" }.parse().unwrap();
    let mut connection = Connection::open_from(from, source, vip).unwrap();
    assert_eq!(connection.local().unwrap().ip(), source);
    connection.ask().unwrap().0
}

/// The clients that the rules remember.
fn remembered(node: &Netns) -> usize {
    let count = |set: &str| {
        let listed = node.nft(&["-j", "list", "set", "inet", "kubeferry", set], "").unwrap();
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["nftables"][1]["set"]["elem"].as_array().map_or(0, Vec::len)
    };
    count("affinity4") + count("affinity6")
}

kubeferry_tests::on_both_datapaths! {
    affinity_lasts_while_a_client_comes_and_ends_when_it_does_not,
}

fn affinity_lasts_while_a_client_comes_and_ends_when_it_does_not(datapath: Datapath) {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let clients: Vec<_> = (1..=CLIENTS)
        .flat_map(|number| [ip(&format!("10.244.2.{number}")), ip(&format!("fd00:10:244:2::{number:x}"))])
        .collect();
    let web = |number: u8| [ip(&format!("10.244.1.{number}")), ip(&format!("fd00:10:244:1::{number}"))];
    let (web1, web2) = (web(1), web(2));
    let hosts = [("web1", web1.as_slice()), ("web2", web2.as_slice()), ("client", clients.as_slice())];
    let hosts = Hosts::build(&[ip("192.0.2.1"), ip("2001:db8:2::1")], &hosts).unwrap();
    for name in ["web1", "web2"] {
        hosts.host(name).serve(8080).unwrap();
    }
    let node = Node::parse(NODE).unwrap();
    let case = Case { name: "affinity".into(), node: node.clone(), steps: Vec::new() };
    let source = Source::new(&case).unwrap();
    source.write(&Step { manifests: with_node(&node, MANIFESTS).unwrap(), rows: Vec::new() }).unwrap();
    let _running = datapath.run(&source, &hosts.node).unwrap();
    let from = &hosts.host("client").namespace;
    for vip in ["10.96.0.10:80", "[fd00:10:96::10]:80"] {
        let vip = vip.parse().unwrap();
        until("the Service to answer", || Connection::attempt(from, vip)).unwrap();
    }

    let mut clients: Vec<_> = clients.into_iter().map(|ip| Client::new(from, ip)).collect();
    let chosen: BTreeSet<_> = clients.iter().map(|client| client.endpoint.clone()).collect();
    assert_eq!(chosen.len(), 2, "both endpoints have clients");
    let round = || {
        clients.iter_mut().for_each(|client| client.again(from));
        clients.iter().all(|client| client.last - client.since >= LOYAL).then_some(())
    };
    until("every client to have come without a pause", round).unwrap();
    let is_remembered = || match datapath {
        Datapath::Nftables => remembered(&hosts.node) > 0,
        // Rows stay until their place is needed: by its clock a client is forgotten.
        Datapath::Ebpf(_) => clients.iter().any(|client| client.last.elapsed() <= FORGOTTEN),
    };
    assert!(matches!(datapath, Datapath::Ebpf(_)) || is_remembered());
    until("every client to be forgotten", || (!is_remembered()).then_some(())).unwrap();
    for v4 in [true, false] {
        let mut family = clients.iter().filter(|client| client.ip.is_ipv4() == v4);
        assert!(
            family.any(|client| connect(from, client.ip) != client.endpoint),
            "each client chose its old endpoint again"
        );
    }
}
