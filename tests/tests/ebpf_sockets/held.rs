//! A ClusterIP that the node has itself, as NodeLocal DNSCache gives it one: whoever serves there is asked, and no endpoint.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use kubeferry_tests::client::until;
use kubeferry_tests::load::Client;
use kubeferry_tests::server::Server;

use super::cluster::{Cluster, NODE, socket};
use super::{WEB, WEBS};

/// Who has answered everybody, over TCP and UDP: sockets that are translated as they connect, and others of a pod.
fn servers(cluster: &Cluster, when: &str) -> BTreeSet<String> {
    let pod = &cluster.hosts.host("client").namespace;
    let clients: [&dyn Client; 3] = [&cluster.node_sockets, &cluster.pod_sockets, pod];
    let mut servers = BTreeSet::new();
    for (client, to) in clients.into_iter().flat_map(|client| WEB.map(|to| (client, socket(to)))) {
        for _ in 0..6 {
            let opened = client.connect(to).and_then(|mut connection| connection.ask());
            servers.insert(opened.unwrap_or_else(|error| panic!("{when}: {} to {to}: {error:#}", client.name())).0);
            let datagrams = client.datagrams(to).unwrap();
            let answer = || kubeferry_tests::client::ask_once(&datagrams).unwrap();
            servers.insert(
                until(&format!("{when}: a datagram of {} to {to} to be answered", client.name()), answer).unwrap().0,
            );
        }
    }
    servers
}

#[test]
fn who_serves_at_a_cluster_ip_that_the_node_has_is_asked() {
    let cluster = Cluster::start(NODE, &[]);
    let node = &cluster.hosts.node;
    let ips: Vec<IpAddr> = WEB.map(|to| socket(to).ip()).to_vec();
    let webs: BTreeSet<String> = WEBS.iter().map(|name| (*name).to_owned()).collect();
    // Not what the node sends from.
    let give = |ip: &IpAddr| format!("addr add {ip}/{} dev held preferred_lft 0", if ip.is_ipv4() { 32 } else { 128 });
    node.ip(&["link add held type bridge", "link set held up"]).unwrap();
    node.ip(&ips.iter().map(give).collect::<Vec<_>>()).unwrap();
    assert_eq!(servers(&cluster, "nobody serves there"), webs);
    let any: [SocketAddr; 1] = [socket("[::]:80")];
    let everywhere = Server::start_at("everywhere", node, &any.map(|at| at.ip()), 80).unwrap();
    assert_eq!(servers(&cluster, "somebody serves at every address"), webs);
    drop(everywhere);
    let cache = until("the port to be free", || Server::start_at("cache", node, &ips, 80).ok()).unwrap();
    assert_eq!(servers(&cluster, "somebody serves there"), ["cache".to_owned()].into());
    drop(cache);
    assert_eq!(servers(&cluster, "it has ended"), webs);
}
