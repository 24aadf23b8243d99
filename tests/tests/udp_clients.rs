//! UDP clients that never fall silent, while something else changes than the endpoints of the Service that they meet: each of
//! them reaches who serves its address now.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use kubeferry_tests::client::{ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::small::Small;

/// The node has a way there, at the end of which nobody answers.
const EXTERNAL: [&str; 2] = ["198.51.100.7:53", "[2001:db8:7::7]:53"];
/// Two Services, each with the last part of its ClusterIPs, its age, and its endpoint.
const OLDER: (&str, u8, &str, u8) = ("older", 1, "2026-01-01T00:00:00Z", 1);
const YOUNGER: (&str, u8, &str, u8) = ("younger", 2, "2026-02-01T00:00:00Z", 2);

fn start(datapath: Datapath, objects: &[String]) -> Small {
    Small::start(datapath, &objects.join("\n---\n")).unwrap()
}

fn change(cluster: &Small, objects: &[String]) {
    cluster.change(&objects.join("\n---\n")).unwrap();
}

fn sockets(cluster: &Small, to: [&str; 2]) -> [UdpSocket; 2] {
    let client = cluster.client();
    to.map(|to| datagrams(client, to.parse::<SocketAddr>().unwrap()).unwrap())
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
    they_come_to_rows_that_somebody_had_deleted,
}

fn they_move_when_another_service_takes_the_address(datapath: Datapath) {
    let younger = [service(YOUNGER, true), slices(YOUNGER)];
    let both = [&[service(OLDER, true), slices(OLDER)], &younger[..]].concat();
    let cluster = start(datapath, &both);
    reach(&sockets(&cluster, ["10.96.0.2:53", "[fd00:10:96::2]:53"]), "web2");
    let clients = sockets(&cluster, EXTERNAL);
    reach(&clients, "web1");
    // The flows of both are looked at until a while after the start.
    std::thread::sleep(Duration::from_secs(3));
    change(&cluster, &younger);
    reach(&clients, "web2");
    change(&cluster, &both);
    reach(&clients, "web1");
}

fn they_come_to_an_address_that_becomes_a_services(datapath: Datapath) {
    let cluster = start(datapath, &[service(YOUNGER, false), slices(YOUNGER)]);
    reach(&sockets(&cluster, ["10.96.0.2:53", "[fd00:10:96::2]:53"]), "web2");
    let clients = sockets(&cluster, EXTERNAL);
    reach_nobody(&clients);
    change(&cluster, &[service(YOUNGER, true), slices(YOUNGER)]);
    reach(&clients, "web2");
}

fn they_come_to_a_service_whose_endpoints_came_first(datapath: Datapath) {
    let older = [service(OLDER, false), slices(OLDER)];
    let with = |more: &[String]| [&older[..], more].concat();
    let cluster = start(datapath, &with(&[slices(YOUNGER)]));
    reach(&sockets(&cluster, ["10.96.0.1:53", "[fd00:10:96::1]:53"]), "web1");
    let clients = sockets(&cluster, EXTERNAL);
    reach_nobody(&clients);
    change(&cluster, &with(&[service(YOUNGER, true), slices(YOUNGER)]));
    reach(&clients, "web2");
}

/// Rows come back with the next look at the tables, and no change of an object does it.
fn they_come_to_rows_that_somebody_had_deleted(datapath: Datapath) {
    let cluster = start(datapath, &[service(YOUNGER, true), slices(YOUNGER)]);
    reach(&sockets(&cluster, EXTERNAL), "web2");
    // The flows are looked at until a while after the start.
    std::thread::sleep(Duration::from_secs(3));
    let lost = || {
        cluster.lose_frontends().unwrap();
        let clients = sockets(&cluster, EXTERNAL);
        // Those who came too late, as all is repaired already, are no case.
        clients.iter().all(|client| ask_once(client).unwrap().is_none()).then_some(clients)
    };
    let clients = until("clients that come while rows are missing", lost).unwrap();
    reach(&clients, "web2");
}
