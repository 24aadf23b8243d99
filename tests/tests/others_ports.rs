//! Connections that somebody else masquerades, by an address and port of the node where a Service is, too: a CNI draws any port.
//! Their answers come in there, and are none of ours.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::SocketAddr;

use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::small::Small;

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
";

/// As a CNI masquerades what leaves the cluster, but by ports that are known.
const CNI: &str = "
table inet cni {
  chain post {
    type nat hook postrouting priority 100;
    oifname \"outside\" meta l4proto { tcp, udp } th dport { 9000, 9002 } masquerade to :30080
    oifname \"outside\" meta l4proto { tcp, udp } th dport { 9001, 9003 } masquerade to :2080
  }
}
";
/// A port out there, by what it is masqueraded, and whether a pod asks or the node: two with the same ends would have to wait for
/// each other.
const PORTS: [(u16, u16, bool); 4] =
    [(9000, 30_080, true), (9001, 2080, true), (9002, 30_080, false), (9003, 2080, false)];

on_both_datapaths! {
    their_answers_come,
}

fn their_answers_come(datapath: Datapath) {
    let cluster = Small::start(datapath, OBJECTS).unwrap();
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
    // Whoever is out there and uses other ports is served.
    serves().unwrap();
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
