//! Real connections through Services of every type, in both families, that come from any API server: see [`Cluster::all`].

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kubeferry_tests::apiserver::Resource;
use kubeferry_tests::client::{Connection, ask_once, datagrams};
use kubeferry_tests::cluster::Cluster;
use kubeferry_tests::hosts::{Host, Hosts};
use kubeferry_tests::netns::Netns;
use serde_json::Value;

use crate::node::{Node, Reached};

const NODE: [&str; 2] = ["192.0.2.1", "2001:db8:2::1"];
/// The Services with what makes them what they are; `EXTERNAL` stands for the addresses of theirs from outside.
const SERVICES: [(&str, &str); 4] = [
    ("inside", "type: ClusterIP"),
    ("port", "type: NodePort"),
    // A class that nobody serves: a real cluster is to make no load balancer.
    ("balanced", "type: LoadBalancer, loadBalancerClass: kubeferry.test/none"),
    ("external", "type: ClusterIP, externalIPs: EXTERNAL"),
];
/// How long what is gone is given to answer.
const PATIENCE: Duration = Duration::from_millis(200);

/// A way into a Service.
#[derive(Debug)]
struct Way {
    service: &'static str,
    tcp: SocketAddr,
    udp: SocketAddr,
    is_cluster_ip: bool,
}

/// The node, with two web pods, a client pod and a client outside.
struct Site {
    node: Node<Reached>,
    hosts: Vec<Host>,
    ways: Vec<Way>,
}

impl Site {
    fn new(cluster: Cluster) -> Self {
        let ips = |texts: [&str; 2]| texts.map(|text| text.parse::<IpAddr>().unwrap());
        let hosts = [
            ("web1", ips(["10.244.1.1", "fd00:10:244:1::1"])),
            ("web2", ips(["10.244.1.2", "fd00:10:244:1::2"])),
            ("client", ips(["10.244.1.7", "fd00:10:244:1::7"])),
            ("outside", ips(["203.0.113.9", "2001:db8:113::9"])),
        ];
        let hosts: Vec<_> = hosts.iter().map(|(name, addresses)| (*name, addresses.as_slice())).collect();
        let Hosts { node, hosts } = Hosts::build(&ips(NODE), &hosts).unwrap();
        for web in &hosts[..2] {
            web.serve(8080).unwrap();
        }
        let mut site = Self { node: Node::of_at(cluster, node), hosts, ways: Vec::new() };
        for (number, (name, spec)) in (0..).step_by(2).zip(SERVICES) {
            site.create(name, spec, number);
        }
        site
    }

    fn cluster(&self) -> &Cluster {
        &self.node.server.cluster
    }

    /// Creates a Service with its slices and notes the ways into it. From `number` on it has addresses of its own.
    fn create(&mut self, name: &'static str, spec: &str, number: u8) {
        let cluster = &self.node.server.cluster;
        let families = |service: &Value| {
            let families = service["spec"]["ipFamilies"].as_array().unwrap().iter();
            families.map(|family| family == "IPv6").collect::<Vec<_>>()
        };
        // An API server knows no external address of a family that a Service has not.
        let both = [false, true].map(|is_ipv6| cluster.address(is_ipv6, number));
        let spec = spec.replace("EXTERNAL", &format!("['{}', '{}']", both[0], both[1]));
        let ports = "[{name: tcp, protocol: TCP, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 80, targetPort: 8080}]";
        let held = cluster
            .create(&format!(
                "{{kind: Service, metadata: {{name: {name}}}, spec: {{{spec}, ipFamilyPolicy: PreferDualStack, ports: {ports}}}}}"
            ))
            .unwrap();
        let families = families(&held);
        println!("{name} has the ClusterIPs {}", held["spec"]["clusterIPs"]);
        if spec.contains("LoadBalancer") {
            let ingress = families.iter().map(|is_ipv6| format!("{{ip: '{}'}}", cluster.address(*is_ipv6, number)));
            let ingress = ingress.collect::<Vec<_>>().join(", ");
            cluster
                .change_status(Resource::Service, name, &format!("{{loadBalancer: {{ingress: [{ingress}]}}}}"))
                .unwrap();
        }
        for (at, is_ipv6) in families.into_iter().enumerate() {
            let family = if is_ipv6 { "IPv6" } else { "IPv4" };
            cluster
                .create(&format!(
                    "{{kind: EndpointSlice, metadata: {{name: {}, labels: {{kubernetes.io/service-name: {name}}}}}, addressType: {family}, \
                     ports: [{{name: tcp, protocol: TCP, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}], endpoints: {}}}",
                    slice_name(name, is_ipv6),
                    self.endpoints(is_ipv6, &["web1"]),
                ))
                .unwrap();
            let mut way = |ip: IpAddr, [tcp, udp]: [u16; 2], is_cluster_ip| {
                let (tcp, udp) = (SocketAddr::new(ip, tcp), SocketAddr::new(ip, udp));
                self.ways.push(Way { service: name, tcp, udp, is_cluster_ip });
            };
            way(held["spec"]["clusterIPs"][at].as_str().unwrap().parse().unwrap(), [80, 80], true);
            let node_port = |port: usize| held["spec"]["ports"][port]["nodePort"].as_u64();
            if let (Some(tcp), Some(udp)) = (node_port(0), node_port(1)) {
                let ports = [tcp, udp].map(|port| u16::try_from(port).unwrap());
                way(NODE[usize::from(is_ipv6)].parse().unwrap(), ports, false);
            }
            if ["balanced", "external"].contains(&name) {
                way(both[usize::from(is_ipv6)], [80, 80], false);
            }
        }
    }

    fn endpoints(&self, is_ipv6: bool, names: &[&str]) -> String {
        let node = &self.cluster().name;
        let hosts = self.hosts.iter().filter(|host| names.contains(&host.name.as_str()));
        let endpoint = |host: &Host| {
            let conditions = "{ready: true, serving: true, terminating: false}";
            let address = host.addresses[usize::from(is_ipv6)];
            format!("{{addresses: ['{address}'], nodeName: {node}, conditions: {conditions}}}")
        };
        format!("[{}]", hosts.map(endpoint).collect::<Vec<_>>().join(", "))
    }

    /// Changes the endpoints of every Service.
    fn move_to(&self, names: &[&str]) {
        for way in self.ways.iter().filter(|way| way.is_cluster_ip) {
            let (name, is_ipv6) = (slice_name(way.service, way.tcp.is_ipv6()), way.tcp.is_ipv6());
            let patch = format!("{{endpoints: {}}}", self.endpoints(is_ipv6, names));
            self.cluster().change(Resource::EndpointSlice, &name, &patch).unwrap();
        }
    }

    /// Waits until the kernel has the frontends of these Services and no others of ours.
    fn until_served(&self, what: &str, is_served: impl Fn(&str) -> bool) {
        let served = self.ways.iter().filter(|way| way.is_cluster_ip && is_served(way.service));
        self.node.expect(what, &served.map(|way| way.tcp).collect::<Vec<_>>());
    }

    fn clients(&self) -> [&Netns; 3] {
        [&self.hosts[2].namespace, &self.node.namespace, &self.hosts[3].namespace]
    }

    /// Who answers over TCP and who over UDP, which may be nobody yet. Each has to see the client's address, or the node's; not its
    /// port, which is another where it has come from the same one to the same endpoint by another Service.
    fn ask(&self, from: &Netns, way: &Way) -> [Option<String>; 2] {
        let context = || format!("{} to {way:?}", from.name());
        let mut connection = Connection::open(from, way.tcp).unwrap_or_else(|error| panic!("{}: {error}", context()));
        let socket = datagrams(from, way.udp).unwrap();
        let over_tcp = connection.ask().unwrap_or_else(|error| panic!("{}: {error:#}", context()));
        let tcp = (Some(over_tcp), connection.local().unwrap());
        let udp = (ask_once(&socket).unwrap(), socket.local_addr().unwrap());
        let is_masqueraded = !way.is_cluster_ip || from.name() != self.clients()[0].name();
        [tcp, udp].map(|(answer, local)| {
            let (server, seen) = answer?;
            if is_masqueraded {
                assert_eq!(seen.ip().to_string(), NODE[usize::from(way.tcp.is_ipv6())], "{}", context());
            } else {
                assert_eq!(seen.ip(), local.ip(), "{}", context());
            }
            Some(server)
        })
    }

    /// Waits until each of `servers` has answered each client over TCP and over UDP through every way. Where there is but one,
    /// it is known which answers come.
    fn check(&self, servers: &[&str]) {
        for way in &self.ways {
            for from in self.clients() {
                let mut answered = [BTreeSet::new(), BTreeSet::new()];
                let all = || {
                    for (answered, server) in answered.iter_mut().zip(self.ask(from, way)) {
                        answered.extend(server);
                    }
                    let has_all = |answered: &BTreeSet<String>| servers.iter().all(|server| answered.contains(*server));
                    answered.iter().all(has_all).then_some(())
                };
                self.node.until(&format!("{servers:?} to answer {} through {way:?}", from.name()), all);
            }
        }
    }

    /// Asserts that nobody answers through the ways into a Service, but through all others.
    fn check_gone(&self, gone: &BTreeSet<&str>) {
        for way in &self.ways {
            for from in self.clients() {
                if gone.contains(way.service) {
                    let connected = Connection::open_within(from, way.tcp, PATIENCE);
                    assert!(connected.is_err(), "{} still gets through {way:?}", from.name());
                    let socket = datagrams(from, way.udp).unwrap();
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                    let answer = ask_once(&socket).unwrap();
                    assert!(answer.is_none(), "{} still gets {answer:?} through {way:?}", from.name());
                } else {
                    let [over_tcp, over_udp] = self.ask(from, way);
                    assert!(over_tcp.is_some() && over_udp.is_some(), "{} gets no answer through {way:?}", from.name());
                }
            }
        }
    }
}

fn slice_name(service: &str, is_ipv6: bool) -> String {
    format!("{service}-{}", if is_ipv6 { "ipv6" } else { "ipv4" })
}

#[test]
fn every_type_of_service_carries_traffic_in_both_families() {
    for cluster in Cluster::all().unwrap() {
        let is_scripted = cluster.is_scripted();
        let mut site = Site::new(cluster);
        // A real cluster may have one family only; it is printed which.
        assert!(!is_scripted || site.ways.len() == 16, "{:?}", site.ways);
        site.node.run();
        site.until_served("those that were there", |_| true);
        site.check(&["web1"]);
        site.move_to(&["web2"]);
        site.check(&["web2"]);
        site.move_to(&["web1", "web2"]);
        site.check(&["web1", "web2"]);
        let mut gone = BTreeSet::new();
        for pair in [["inside", "port"], ["balanced", "external"]] {
            for service in pair {
                site.cluster().delete(Resource::Service, service).unwrap();
            }
            gone.extend(pair);
            site.until_served("two have been deleted", |service| !gone.contains(service));
            site.check_gone(&gone);
        }
    }
}
