//! Whole connections with real sockets through a running `kubeferry`: what clients get, what they are told, and what happens
//! to them when the cluster changes.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use kubeferry_tests::client::{Connection, answer, ask_once, datagrams, refused, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::small::Small;

const SERVICES: &str = "
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
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec:
  clusterIPs: [10.96.0.11, 'fd00:10:96::11']
  clusterIP: 10.96.0.11
  ipFamilies: [IPv4, IPv6]
  ports:
    - {name: tcp, port: 80}
    - {name: udp, protocol: UDP, port: 80}
";
const VIPS: [&str; 2] = ["10.96.0.10:80", "[fd00:10:96::10]:80"];
const EMPTY: [&str; 2] = ["10.96.0.11:80", "[fd00:10:96::11]:80"];
const NODE_PORTS: [&str; 2] = ["192.0.2.1:30080", "[2001:db8:2::1]:30080"];

/// The small cluster, as soon as it serves.
fn start(datapath: Datapath, endpoints: &[&str]) -> Small {
    let cluster = Small::start(datapath, &objects(endpoints)).unwrap();
    for vip in VIPS {
        let attempt = || Connection::attempt(cluster.client(), socket(vip));
        until("the first connection through the Service", attempt).unwrap();
    }
    cluster
}

/// The Services with these endpoints, `1` and `2` for `web1` and `web2`.
fn objects(endpoints: &[&str]) -> String {
    let mut manifests = SERVICES.to_string();
    for (family, prefix) in [("IPv4", "10.244.1."), ("IPv6", "fd00:10:244:1::")] {
        let endpoint = |number: &&str| format!("{{addresses: ['{prefix}{number}'], nodeName: worker-1}}");
        let endpoints: Vec<_> = endpoints.iter().map(endpoint).collect();
        manifests += &format!(
            "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: web-{}, namespace: default, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: {family}\nports: [{{name: tcp, port: 8080}}, {{name: udp, protocol: UDP, port: 8080}}]\n\
             endpoints: [{}]\n",
            family.to_lowercase(),
            endpoints.join(", "),
        );
    }
    manifests
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

kubeferry_tests::on_both_datapaths! {
    every_way_in_carries_tcp_and_udp_to_every_endpoint,
    a_service_without_endpoints_refuses_at_once_wherever_the_client_is,
    an_endpoint_that_goes_keeps_its_tcp_connections_and_gets_no_new_ones,
    a_udp_client_moves_when_its_endpoint_goes,
    clients_whose_datagrams_meet_the_change_move_too,
}

fn every_way_in_carries_tcp_and_udp_to_every_endpoint(datapath: Datapath) {
    let cluster = start(datapath, &["1", "2"]);
    let (client, node, outside) = (cluster.client(), &cluster.hosts.node, cluster.outside());
    for (from, addresses, masquerade) in [
        (client, VIPS, false),
        (node, VIPS, true),
        (client, NODE_PORTS, true),
        (node, NODE_PORTS, true),
        (outside, NODE_PORTS, true),
    ] {
        for to in addresses.map(socket) {
            let mut servers = BTreeSet::new();
            let both = || {
                let opened = Connection::open(from, to);
                let mut connection = opened.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
                let (server, seen) = connection.ask().unwrap();
                assert_eq!(seen != connection.local().unwrap(), masquerade, "{} to {to}: {seen}", from.name());
                servers.insert(server);
                (servers.len() == 2).then_some(())
            };
            until("both endpoints to answer over TCP", both).unwrap();
            let mut servers = BTreeSet::new();
            let both = || {
                servers.extend(ask_once(&datagrams(from, to).unwrap()).unwrap().map(|(server, _)| server));
                (servers.len() == 2).then_some(())
            };
            until("both endpoints to answer over UDP", both).unwrap();
        }
    }
}

fn a_service_without_endpoints_refuses_at_once_wherever_the_client_is(datapath: Datapath) {
    let cluster = start(datapath, &["1"]);
    for from in [cluster.client(), &cluster.hosts.node, cluster.outside()] {
        for to in EMPTY.map(socket) {
            let error = Connection::open(from, to).map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{} to {to}: {error}", from.name());
            refused(&datagrams(from, to).unwrap()).unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
        }
    }
}

fn an_endpoint_that_goes_keeps_its_tcp_connections_and_gets_no_new_ones(datapath: Datapath) {
    let cluster = start(datapath, &["1"]);
    let mut old = VIPS.map(|vip| Connection::open(cluster.client(), socket(vip)).unwrap());
    for connection in &mut old {
        assert_eq!(connection.ask().unwrap().0, "web1");
    }
    cluster.change(&objects(&["2"])).unwrap();
    for vip in VIPS {
        let moved = || {
            let server = Connection::open(cluster.client(), socket(vip)).unwrap().ask().unwrap().0;
            (server == "web2").then_some(())
        };
        until("new connections to reach web2", moved).unwrap();
    }
    for connection in &mut old {
        assert_eq!(connection.ask().unwrap().0, "web1", "an established connection stays");
    }
}

fn a_udp_client_moves_when_its_endpoint_goes(datapath: Datapath) {
    let cluster = start(datapath, &["1"]);
    let sockets =
        [VIPS[0], VIPS[1], NODE_PORTS[0], NODE_PORTS[1]].map(|to| datagrams(cluster.client(), socket(to)).unwrap());
    let reach = |server: &str| {
        for socket in &sockets {
            let reached = || ask_once(socket).unwrap().filter(|(answered, _)| answered == server).map(drop);
            until(&format!("datagrams to {} to reach {server}", socket.peer_addr().unwrap()), reached).unwrap();
        }
    };
    reach("web1");
    cluster.change(&objects(&["2"])).unwrap();
    reach("web2");
    cluster.change(&objects(&["1"])).unwrap();
    reach("web1");
}

/// UDP clients of which each sends something all the time, but not often.
const CLIENTS: usize = 400;
/// Between two datagrams, of whichever clients: each is silent for more than a second.
const PAUSE: Duration = Duration::from_millis(3);

/// Some datagrams go by while the flows of the endpoint that has gone are looked for and deleted. A flow that is left then goes
/// on for as long as its client sends.
fn clients_whose_datagrams_meet_the_change_move_too(datapath: Datapath) {
    let cluster = start(datapath, &["1"]);
    let ways = [VIPS[0], VIPS[1], NODE_PORTS[0], NODE_PORTS[1]].map(socket);
    let sockets: Vec<_> =
        (0..CLIENTS).map(|number| datagrams(cluster.client(), ways[number % ways.len()]).unwrap()).collect();
    sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
    // Who answered each one last; a datagram that is lost, or refused between two endpoints, is sent again a round later.
    let mut last = vec![String::new(); CLIENTS];
    let mut reach = |name: &str| {
        let all = || {
            for (socket, last) in sockets.iter().zip(&mut last) {
                let _ = socket.send(b"?\n");
                std::thread::sleep(PAUSE);
                let mut buffer = [0; 128];
                while let Ok(length) = socket.recv(&mut buffer) {
                    *last = answer(&String::from_utf8_lossy(&buffer[..length])).unwrap().0;
                }
            }
            last.iter().all(|server| server == name).then_some(())
        };
        if let Err(error) = until(&format!("all clients to reach {name}"), all) {
            let elsewhere = |(socket, server): (&UdpSocket, &String)| {
                (server != name).then(|| format!("{} by {server:?}", socket.peer_addr().unwrap()))
            };
            let left: Vec<_> = sockets.iter().zip(&last).filter_map(elsewhere).collect();
            panic!("{error}: {} are not: {left:?}", left.len());
        }
    };
    reach("web1");
    for name in ["web2", "web1", "web2"] {
        cluster.change(&objects(&[&name[3..]])).unwrap();
        reach(name);
    }
}
