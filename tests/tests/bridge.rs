//! Several pods on one bridge of the node, as with the CNI plugin `bridge`. What goes from one to another does not pass the
//! node's IP layer: without `net.bridge.bridge-nf-call-iptables` an answer bypasses connection tracking, and the client gets
//! it from the pod's own address.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use kubeferry_tests::client::{Connection, DEADLINE, Running, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::forging::{Victim, outlived};
use kubeferry_tests::hosts::Host;
use kubeferry_tests::netns::{End, Netns, link, mac_text};
use kubeferry_tests::packets::FrameSocket;

/// The node's addresses on the bridge: the pods' gateways.
const GATEWAYS: [&str; 2] = ["10.244.1.254", "fd00:10:244:1::fe"];
const BRIDGE: [u8; 6] = [2, 0, 0, 0, 9, 9];
const PODS: [(&str, [&str; 2]); 2] =
    [("web", ["10.244.1.1", "fd00:10:244:1::1"]), ("client", ["10.244.1.7", "fd00:10:244:1::7"])];
const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const NODE: &str = "
name: worker-1
addresses: {eth0: [10.244.1.254, 'fd00:10:244:1::fe']}
detect-local-mode: BridgeInterface
pod-bridge-interface: cni0
";
const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: tcp, port: 80}, {name: udp, protocol: UDP, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: ['fd00:10:244:1::1'], nodeName: worker-1}]
";

/// A node with the bridge `cni0`, the pods `web` and `client` on it, and `kubeferry run`.
struct Cluster {
    // Ends before the namespaces do.
    _running: Running,
    node: Netns,
    pods: Vec<Host>,
    _source: Source,
    datapath: Datapath,
}

impl Cluster {
    /// `call`: what `net.bridge.bridge-nf-call-iptables` and `-ip6tables` are in the node's namespace.
    fn start(datapath: Datapath, call: bool, masquerade_all: bool) -> Self {
        let node = Netns::new("node").unwrap();
        let keys = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
        let known = node.run(|| Path::new("/proc/sys").join(keys[0]).exists()).unwrap();
        assert!(known, "this kernel has no br_netfilter for the tests: modprobe br_netfilter");
        for key in keys {
            node.sysctl(key, if call { "1" } else { "0" }).unwrap();
        }
        node.sysctl("net/ipv4/ip_forward", "1").unwrap();
        node.sysctl("net/ipv6/conf/all/forwarding", "1").unwrap();
        // Pods must not learn that they could talk to each other directly instead.
        node.sysctl("net/ipv4/conf/all/send_redirects", "0").unwrap();
        node.sysctl("net/ipv4/conf/default/send_redirects", "0").unwrap();
        let add = format!("link add cni0 address {} type bridge", mac_text(BRIDGE));
        node.ip(&[add.as_str(), "link set cni0 addrgenmode none", "link set cni0 up"]).unwrap();
        node.ip(&[
            format!("addr add {}/24 dev cni0", GATEWAYS[0]),
            format!("addr add {}/64 dev cni0 nodad", GATEWAYS[1]),
            // The node asks from here who has a pod's address.
            "addr add fe80::fe/64 dev cni0 nodad".into(),
            // Some route to the Service, for the node's own packets; they never take it.
            "route add default dev cni0".into(),
            "route add ::/0 dev cni0".into(),
        ])
        .unwrap();
        let pods = PODS.iter().enumerate().map(|(number, (name, addresses))| {
            let namespace = Netns::new(name).unwrap();
            let mac = |end| [2, 0, 0, 0, end, u8::try_from(number).unwrap()];
            let near = End { namespace: &node, interface: name, mac: mac(1) };
            link(near, End { namespace: &namespace, interface: "eth0", mac: mac(2) }).unwrap();
            node.ip(&[format!("link set {name} master cni0")]).unwrap();
            let lines = [
                format!("addr add {}/24 dev eth0", addresses[0]),
                format!("addr add {}/64 dev eth0 nodad", addresses[1]),
                format!("route add default via {}", GATEWAYS[0]),
                format!("route add ::/0 via {}", GATEWAYS[1]),
            ];
            namespace.ip(&lines).unwrap();
            let addresses = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
            let host = Host { name: (*name).into(), addresses, namespace };
            host.serve(8080).unwrap();
            host
        });
        let pods = pods.collect();
        let mut parsed = Node::parse(NODE).unwrap();
        parsed.masquerade_all = masquerade_all;
        let case = Case { name: "bridge".into(), node: parsed.clone(), steps: Vec::new() };
        let source = Source::new(&case).unwrap();
        source.write(&Step { manifests: with_node(&parsed, MANIFESTS).unwrap(), rows: Vec::new() }).unwrap();
        let running = datapath.run(&source, &node).unwrap();
        let cluster = Self { _running: running, node, pods, _source: source, datapath };
        for vip in VIPS {
            let from = match cluster.datapath {
                // The node is not behind its bridge.
                Datapath::Nftables => &cluster.node,
                // The node's own packets would need a next hop that answers.
                Datapath::Ebpf(_) => cluster.pod("client"),
            };
            until("the Service to answer", || Connection::attempt(from, vip.parse().unwrap())).unwrap();
        }
        cluster
    }

    fn pod(&self, name: &str) -> &Netns {
        &self.pods.iter().find(|pod| pod.name == name).unwrap().namespace
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Sends datagrams to a Service until one is answered; returns whom the answer is from, and the client as the server saw it.
fn answered_by(from: &Netns, vip: SocketAddr) -> (SocketAddr, SocketAddr) {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    // Not connected: it takes answers from anybody.
    let socket = from.run(|| UdpSocket::bind(any).unwrap()).unwrap();
    socket.set_read_timeout(Some(DEADLINE / 60)).unwrap();
    let mut buffer = [0; 128];
    let attempt = || {
        socket.send_to(b"?\n", vip).unwrap();
        socket.recv_from(&mut buffer).ok()
    };
    let (length, answers) = until("an answer over UDP", attempt).unwrap();
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    (answers, text.trim_end().split_once(' ').unwrap().1.parse().unwrap())
}

#[test]
fn without_bridge_netfilter_an_answer_bypasses_the_node() {
    let cluster = Cluster::start(Datapath::Nftables, false, false);
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        let (answers, seen) = answered_by(cluster.pod("client"), vip);
        assert_eq!(seen.ip(), ip(PODS[1].1[family]), "the question comes through, with the pod's own address");
        assert_eq!(answers, SocketAddr::new(ip(PODS[0].1[family]), 8080), "the answer is not from the Service");
    }
}

#[test]
fn with_bridge_netfilter_pods_of_one_bridge_reach_each_other_through_a_service() {
    let cluster = Cluster::start(Datapath::Nftables, true, false);
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        let mut connection = Connection::open(cluster.pod("client"), vip).unwrap();
        let (server, seen) = connection.ask().unwrap();
        assert_eq!((server.as_str(), seen), ("web", connection.local().unwrap()), "the source is kept");
        let (answers, seen) = answered_by(cluster.pod("client"), vip);
        assert_eq!((answers, seen.ip()), (vip, ip(PODS[1].1[family])));
    }
    // The packet would have to leave by the port that it came in by, which a bridge does not do unless told to.
    cluster.node.ip(&["link set web type bridge_slave hairpin on"]).unwrap();
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        let (server, seen) = Connection::open(cluster.pod("web"), vip).unwrap().ask().unwrap();
        assert_eq!((server.as_str(), seen.ip()), ("web", ip(GATEWAYS[family])), "a hairpin is masqueraded");
    }
}

#[test]
fn ebpf_needs_no_bridge_netfilter() {
    for call in [false, true] {
        let cluster = Cluster::start(Datapath::ebpf().unwrap(), call, false);
        for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
            let mut connection = Connection::open(cluster.pod("client"), vip).unwrap();
            let (server, seen) = connection.ask().unwrap();
            assert_eq!((server.as_str(), seen), ("web", connection.local().unwrap()), "the source is kept");
            let (answers, seen) = answered_by(cluster.pod("client"), vip);
            assert_eq!((answers, seen.ip()), (vip, ip(PODS[1].1[family])));
            let (server, seen) = Connection::open(cluster.pod("web"), vip).unwrap().ask().unwrap();
            assert_eq!((server.as_str(), seen.ip()), ("web", ip(GATEWAYS[family])), "a hairpin is masqueraded");
        }
    }
}

#[test]
fn masquerade_all_serves_pods_of_one_bridge_without_bridge_netfilter() {
    let cluster = Cluster::start(Datapath::Nftables, false, true);
    for (family, vip) in VIPS.map(|vip| vip.parse().unwrap()).into_iter().enumerate() {
        // A hairpin too: the node routes it, the bridge has no part in it.
        for pod in ["client", "web"] {
            let (server, seen) = Connection::open(cluster.pod(pod), vip).unwrap().ask().unwrap();
            assert_eq!((server.as_str(), seen.ip()), ("web", ip(GATEWAYS[family])), "from {pod}");
        }
        let (answers, seen) = answered_by(cluster.pod("client"), vip);
        assert_eq!((answers, seen.ip()), (vip, ip(GATEWAYS[family])));
    }
}

/// What a pod sends on by way of the bridge has come in by the bridge, whichever of its pods that was.
#[test]
fn a_pod_ends_no_connection_of_another_of_its_bridge() {
    let cluster = Cluster::start(Datapath::ebpf().unwrap(), false, false);
    let (client, endpoint) = (ip("203.0.113.9"), SocketAddr::new(ip(PODS[0].1[0]), 8080));
    let outside = Host::join(&cluster.node, "outside", 9, &[client]).unwrap();
    let wire = cluster.pod("client").run(|| FrameSocket::open("eth0")).unwrap().unwrap();
    // From the second pod.
    let macs = [BRIDGE, [2, 0, 0, 0, 2, 1]];
    let open = |_| Victim::open(&outside.namespace, VIPS[0].parse().unwrap(), endpoint);
    assert!(open(0).unwrap().is_masqueraded());
    outlived(&wire, macs, open).unwrap();
}
