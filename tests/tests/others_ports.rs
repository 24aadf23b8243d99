//! Connections at an address and port of the node where a Service is, too, that are none of the Service's: a CNI masquerades by any
//! port, and somebody may have had the port before.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::hosts::Hosts;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::small::{self, Small};

/// With a node port, and an external IP that is the node's own.
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4, IPv6]
  externalIPs: [192.0.2.1]
  ports:
    - {name: tcp, port: 2080, nodePort: 30080, targetPort: 8080}
    - {name: udp, protocol: UDP, port: 2080, nodePort: 30080, targetPort: 8080}
";

/// With this node port.
fn objects(node_port: u16) -> String {
    OBJECTS.replace("30080", &node_port.to_string()) + small::ENDPOINT
}

/// As a CNI masquerades what leaves the cluster, but by ports that are known.
const CNI: &str = "
table inet cni {
  chain post {
    type nat hook postrouting priority 100;
    oifname \"outside\" meta l4proto { tcp, udp } th dport { 9000, 9002, 9010 } masquerade to :30080
    oifname \"outside\" meta l4proto { tcp, udp } th dport { 9001, 9003, 9011 } masquerade to :2080
  }
}
";
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A port out there, by what it is masqueraded, and whether a pod asks or the node: two with the same ends would have to wait for
/// each other.
const PORTS: [(u16, u16, bool); 4] =
    [(9000, 30_080, true), (9001, 2080, true), (9002, 30_080, false), (9003, 2080, false)];

on_both_datapaths! {
    their_answers_come,
    who_had_the_port_before_the_service_goes_on,
    clients_of_another_proxy_are_not_taken_for_such,
}

fn their_answers_come(datapath: Datapath) {
    let cluster = Small::start(datapath, &objects(30_080)).unwrap();
    let node_port = [("192.0.2.1", 30_080), ("2001:db8:2::1", 30_080), ("192.0.2.1", 2080)];
    let node_port = node_port.map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port));
    let serves = || node_port.iter().all(|at| Connection::attempt(cluster.outside(), *at).is_some()).then_some(());
    until("the Service to answer", serves).unwrap();
    cluster.hosts.node.nft(&["-f", "-"], CNI).unwrap();
    for (port, by, of_pod) in PORTS {
        cluster.hosts.host("outside").serve(port).unwrap();
        let from = if of_pod { cluster.client() } else { &cluster.hosts.node };
        for ip in ["203.0.113.9", "2001:db8:113::9"] {
            asks(from, SocketAddr::new(ip.parse().unwrap(), port), by);
        }
    }
    // Nobody is there.
    for by_rule in [9010, 9011] {
        let there = SocketAddr::new("203.0.113.9".parse().unwrap(), by_rule);
        let error = Connection::open_within(cluster.client(), there, PATIENCE).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{there}");
    }
    // Whoever is out there and uses other ports is served.
    serves().unwrap();
}

/// A server of the node itself, whose port becomes a node port. Its connections are its own; its clients over UDP are the Service's.
fn who_had_the_port_before_the_service_goes_on(datapath: Datapath) {
    let cluster = Small::start(datapath, &objects(30_081)).unwrap();
    let elsewhere = SocketAddr::new("192.0.2.1".parse().unwrap(), 30_081);
    // Connection tracking knows of what began while there were rules.
    until("the Service to be in force", || Connection::attempt(cluster.outside(), elsewhere)).unwrap();
    let at = SocketAddr::new("192.0.2.1".parse().unwrap(), 30_080);
    let node = &cluster.hosts.node;
    let listener = node.run(|| TcpListener::bind(at)).unwrap().unwrap();
    let socket = node.run(|| UdpSocket::bind(at)).unwrap().unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        // Whoever comes now finds nobody, or the Service.
        drop(listener);
        drop(std::io::copy(&mut &stream, &mut &stream));
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(format!("node {client}\n").as_bytes(), client));
        }
    });
    let mut old = cluster.outside().run(|| TcpStream::connect(at)).unwrap().unwrap();
    old.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut echoed = || {
        let mut answer = [0; 1];
        old.write_all(b"?").and_then(|()| old.read_exact(&mut answer)).map(|()| answer)
    };
    assert_eq!(echoed().unwrap(), *b"?");
    let udp = datagrams(cluster.outside(), at).unwrap();
    let answers = |name: &str| ask_once(&udp).unwrap().filter(|(from, _)| from == name);
    until("the node's server to answer", || answers("node")).unwrap();

    cluster.change(&objects(30_080)).unwrap();
    until("the Service to answer", || Connection::attempt(cluster.outside(), at)?.ask().ok()).unwrap();
    for time in 0..3 {
        echoed().unwrap_or_else(|error| panic!("question {time} of who had the port: {error}"));
    }
    until("the client to be the Service's", || answers("web1")).unwrap();
}

/// Another proxy has translated for a client, and its endpoint goes on to answer, unasked: what leaves for the client then looks like
/// somebody else's question. It has to come to us all the same.
fn clients_of_another_proxy_are_not_taken_for_such(datapath: Datapath) {
    let world = Takeover::new(small::hosts().unwrap());
    world.hosts.node.nft(&["-f", "-"], ANOTHER).unwrap();
    let web1 = &world.hosts.host("web1").namespace;
    let endpoint = web1.run(|| UdpSocket::bind("10.244.1.1:8081")).unwrap().unwrap();
    endpoint.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    thread::spawn(move || {
        let (mut buffer, mut client) = ([0; 64], None);
        loop {
            if let Ok((_, from)) = endpoint.recv_from(&mut buffer) {
                client = Some(from);
            }
            if let Some(to) = client {
                drop(endpoint.send_to(format!("stream {to}\n").as_bytes(), to));
            }
        }
    });
    world.hosts.host("web2").serve(8081).unwrap();
    let at = SocketAddr::new("192.0.2.1".parse().unwrap(), 30_080);
    let udp = datagrams(&world.hosts.host("outside").namespace, at).unwrap();
    let answers = |name: &str| ask_once(&udp).unwrap().filter(|(from, _)| from == name);
    until("the other proxy to serve", || answers("stream")).unwrap();

    world.write("10.244.1.1");
    let _running = datapath.run(&world.source, &world.hosts.node).unwrap();
    let serves = || Connection::attempt(&world.hosts.host("outside").namespace, world.tcp);
    until("the Service to answer", serves).unwrap();
    world.hosts.node.nft(&["delete", "table", "ip", "another"], "").unwrap();
    world.write("10.244.1.2");
    until("the client to come to the endpoint that there is", || answers("web2")).unwrap();
}

/// The translation of another proxy.
const ANOTHER: &str = "
table ip another {
  chain pre {
    type nat hook prerouting priority -100;
    ip daddr 192.0.2.1 udp dport 30080 dnat to 10.244.1.1:8081
  }
}
";

/// A node that nobody serves yet.
struct Takeover {
    hosts: Hosts,
    source: Source,
    node: Node,
    /// Of the same Service, over TCP.
    tcp: SocketAddr,
}

impl Takeover {
    fn new(hosts: Hosts) -> Self {
        let node = Node::parse(small::NODE).unwrap();
        let source = Source::new(&Case { name: "takeover".into(), node: node.clone(), steps: Vec::new() }).unwrap();
        Self { hosts, source, node, tcp: SocketAddr::new("192.0.2.1".parse().unwrap(), 30_080) }
    }

    /// The Service with this endpoint for UDP.
    fn write(&self, endpoint: &str) {
        let slice = format!(
            "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-u, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\nports: [{{name: udp, protocol: UDP, port: 8081}}]\n\
             endpoints: [{{addresses: ['{endpoint}'], nodeName: worker-1}}]\n"
        );
        let both = objects(30_080);
        let of_tcp = both.replace(", {name: udp, protocol: UDP, port: 8080}", "");
        assert_ne!(of_tcp, both);
        let manifests = with_node(&self.node, &(of_tcp + &slice)).unwrap();
        self.source.write(&Step { manifests, rows: Vec::new() }).unwrap();
    }
}

/// Asks somebody outside, who sees this port of the node.
fn asks(from: &Netns, there: SocketAddr, by: u16) {
    let what = format!("{} to {there}", from.name());
    let mut tcp = until(&what, || Connection::attempt(from, there)).unwrap();
    let udp = datagrams(from, there).unwrap();
    for time in 0..4 {
        let (name, seen) = tcp.ask().unwrap_or_else(|error| panic!("{what}, question {time}: {error:#}"));
        assert_eq!((name.as_str(), seen.port()), ("outside", by), "{what}");
        let answer = ask_once(&udp).unwrap();
        let (name, seen) = answer.unwrap_or_else(|| panic!("{what}: datagram {time} has no answer"));
        assert_eq!((name.as_str(), seen.port()), ("outside", by), "{what}");
    }
}
