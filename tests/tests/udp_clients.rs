//! UDP clients that never fall silent, while something else changes than the endpoints of the Service that they meet: each of
//! them reaches who serves its address now.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use kubeferry_tests::client::{Running, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
/// The node has a way there, at the end of which nobody answers.
const EXTERNAL: [&str; 2] = ["198.51.100.7:53", "[2001:db8:7::7]:53"];
/// Two Services, each with the last part of its ClusterIPs, its age, and its endpoint.
const OLDER: (&str, u8, &str, u8) = ("older", 1, "2026-01-01T00:00:00Z", 1);
const YOUNGER: (&str, u8, &str, u8) = ("younger", 2, "2026-02-01T00:00:00Z", 2);

/// A node with two servers and a client.
struct Cluster {
    // Ends before the namespaces do.
    _running: Running,
    hosts: Hosts,
    source: Source,
    node: Node,
    _datapath: Datapath,
}

impl Cluster {
    fn start(datapath: Datapath, objects: &[String]) -> Self {
        let ips = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().unwrap());
        let hosts = [
            ("web1", ips(["10.244.1.1", "fd00:10:244:1::1"])),
            ("web2", ips(["10.244.1.2", "fd00:10:244:1::2"])),
            ("client", ips(["10.244.1.7", "fd00:10:244:1::7"])),
            ("outside", ips(["203.0.113.9", "2001:db8:113::9"])),
        ];
        let hosts: Vec<_> = hosts.iter().map(|(name, addresses)| (*name, addresses.as_slice())).collect();
        let hosts = Hosts::build(&ips(["192.0.2.1", "2001:db8:2::1"]), &hosts).unwrap();
        for name in ["web1", "web2"] {
            hosts.host(name).serve(8080).unwrap();
        }
        let node = Node::parse(NODE).unwrap();
        let case = Case { name: "udp-clients".into(), node: node.clone(), steps: Vec::new() };
        let source = Source::new(&case).unwrap();
        source.write(&step(&node, objects)).unwrap();
        let running = datapath.run(&source, &hosts.node).unwrap();
        Self { _running: running, hosts, source, node, _datapath: datapath }
    }

    fn change(&self, objects: &[String]) {
        self.source.write(&step(&self.node, objects)).unwrap();
    }

    fn sockets(&self, to: [&str; 2]) -> [UdpSocket; 2] {
        let client = &self.hosts.host("client").namespace;
        to.map(|to| datagrams(client, to.parse::<SocketAddr>().unwrap()).unwrap())
    }
}

fn step(node: &Node, objects: &[String]) -> Step {
    Step { manifests: with_node(node, &objects.join("\n---\n")).unwrap(), rows: Vec::new() }
}

fn service((name, number, created, _): (&str, u8, &str, u8), external: bool) -> String {
    let external = if external { "externalIPs: [198.51.100.7, '2001:db8:7::7']," } else { "" };
    format!(
        "apiVersion: v1\nkind: Service\n\
         metadata: {{name: {name}, namespace: default, creationTimestamp: '{created}'}}\n\
         spec: {{clusterIP: 10.96.0.{number}, clusterIPs: [10.96.0.{number}, 'fd00:10:96::{number}'],\n  {external}\n  \
         ipFamilies: [IPv4, IPv6], ports: [{{name: udp, protocol: UDP, port: 53}}]}}"
    )
}

fn slices((name, _, _, endpoint): (&str, u8, &str, u8)) -> String {
    let slice = |(family, prefix): (&str, &str)| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-{}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: {family}\nports: [{{name: udp, protocol: UDP, port: 8080}}]\n\
             endpoints: [{{addresses: ['{prefix}{endpoint}'], nodeName: worker-1}}]",
            family.to_lowercase()
        )
    };
    [("IPv4", "10.244.1."), ("IPv6", "fd00:10:244:1::")].map(slice).join("\n---\n")
}

/// Each goes on sending until this server answers.
fn reach(sockets: &[UdpSocket], server: &str) {
    for socket in sockets {
        let reached = || ask_once(socket).unwrap().filter(|(answered, _)| answered == server).map(drop);
        until(&format!("datagrams to {} to reach {server}", socket.peer_addr().unwrap()), reached).unwrap();
    }
}

/// What the kernel remembers of their first datagrams is that these are nobody's.
fn reach_nobody(sockets: &[UdpSocket]) {
    for socket in sockets {
        assert_eq!(ask_once(socket).unwrap(), None);
    }
}

kubeferry_tests::on_both_datapaths! {
    they_move_when_another_service_takes_the_address,
    they_come_to_an_address_that_becomes_a_services,
    they_come_to_a_service_whose_endpoints_came_first,
}

fn they_move_when_another_service_takes_the_address(datapath: Datapath) {
    let younger = [service(YOUNGER, true), slices(YOUNGER)];
    let both = [&[service(OLDER, true), slices(OLDER)], &younger[..]].concat();
    let cluster = Cluster::start(datapath, &both);
    reach(&cluster.sockets(["10.96.0.2:53", "[fd00:10:96::2]:53"]), "web2");
    let clients = cluster.sockets(EXTERNAL);
    reach(&clients, "web1");
    // The flows of both are looked at until a while after the start.
    std::thread::sleep(Duration::from_secs(3));
    cluster.change(&younger);
    reach(&clients, "web2");
    cluster.change(&both);
    reach(&clients, "web1");
}

fn they_come_to_an_address_that_becomes_a_services(datapath: Datapath) {
    let cluster = Cluster::start(datapath, &[service(YOUNGER, false), slices(YOUNGER)]);
    reach(&cluster.sockets(["10.96.0.2:53", "[fd00:10:96::2]:53"]), "web2");
    let clients = cluster.sockets(EXTERNAL);
    reach_nobody(&clients);
    cluster.change(&[service(YOUNGER, true), slices(YOUNGER)]);
    reach(&clients, "web2");
}

fn they_come_to_a_service_whose_endpoints_came_first(datapath: Datapath) {
    let older = [service(OLDER, false), slices(OLDER)];
    let with = |more: &[String]| [&older[..], more].concat();
    let cluster = Cluster::start(datapath, &with(&[slices(YOUNGER)]));
    reach(&cluster.sockets(["10.96.0.1:53", "[fd00:10:96::1]:53"]), "web1");
    let clients = cluster.sockets(EXTERNAL);
    reach_nobody(&clients);
    cluster.change(&with(&[service(YOUNGER, true), slices(YOUNGER)]));
    reach(&clients, "web2");
}
