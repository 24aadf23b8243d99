//! Ports that connection tracking masquerades by, and our programs, too.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::web::MANIFESTS;

use super::{Cluster, with};

/// As kube-proxy translates, but by a port that is known.
const OTHERS: &str = "
table ip others {
  chain pre {
    type nat hook prerouting priority -100;
    ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.1:8080
  }
  chain post {
    type nat hook postrouting priority 100;
    ip daddr 10.244.1.1 tcp dport 8080 masquerade to :20003
  }
}
";
/// The port is among them.
const PORTS: [&str; 3] = ["--masquerade-all", "--masquerade-ports", "20000-20007"];
/// As many as there are but for that one.
const FREE: usize = 7;

#[test]
fn a_port_that_connection_tracking_masquerades_by_is_nobody_elses() {
    let cluster = Cluster::build();
    let one = MANIFESTS.replace(", {addresses: [10.244.1.2], nodeName: worker-1}", "");
    assert_ne!(one, MANIFESTS);
    cluster.write(&one).unwrap();
    cluster.hosts.node.nft(&["-f", "-"], OTHERS).unwrap();
    let open = || Connection::attempt(cluster.client(), cluster.vip());
    let ask = |connection: &mut Connection| connection.ask().unwrap().1;
    let mut theirs = until("a connection by the other's rules", open).unwrap();
    assert_eq!(ask(&mut theirs).port(), 20003, "the other masquerades");

    let log = cluster.once(|run| with(run, &PORTS)).unwrap();
    assert!(log.contains("TCP connections to services stay with connection tracking"), "{log}");
    cluster.hosts.node.nft(&["delete", "table", "ip", "others"], "").unwrap();
    let mut ours = Vec::new();
    while ours.len() < FREE {
        let mut connection = until("a connection of ours", open).unwrap();
        let port = ask(&mut connection).port();
        assert!((20000..20008).contains(&port) && port != 20003, "{port}");
        ours.push(connection);
        assert_eq!(ask(&mut theirs).port(), 20003, "it goes on beside {}", ours.len());
    }
    // The next finds no port, and takes none from anybody.
    assert!(open().is_none());
    for connection in ours.iter_mut().chain([&mut theirs]) {
        ask(connection);
    }
}

/// What pod `web2` asks `web1` by itself.
const DIRECT: &str = "
table ip others {
  chain post {
    type nat hook postrouting priority 100;
    ip saddr 10.244.1.2 ip daddr 10.244.1.1 udp dport 8080 masquerade to :20003
  }
}
";

#[test]
fn a_question_that_has_its_answer_gives_its_port_to_whoever_uses_it() {
    let cluster = Cluster::build();
    let one = MANIFESTS.replace(", {addresses: [10.244.1.2], nodeName: worker-1}", "");
    cluster.write(&one).unwrap();
    cluster.once(|run| with(run, &PORTS)).unwrap();
    let mut ours = Vec::new();
    while ours.len() <= FREE {
        let socket = datagrams(cluster.client(), cluster.vip()).unwrap();
        let (_, seen) = ask_once(&socket).unwrap().expect("an answer");
        ours.push((socket, seen.port()));
    }
    cluster.hosts.node.nft(&["-f", "-"], DIRECT).unwrap();
    // Just now, they may be on their way still.
    thread::sleep(Duration::from_secs(3));
    let endpoint = SocketAddr::from(([10, 244, 1, 1], 8080));
    let theirs = datagrams(&cluster.hosts.host("web2").namespace, endpoint).unwrap();
    for question in 0..3 {
        let (_, seen) = ask_once(&theirs).unwrap().unwrap_or_else(|| panic!("question {question} has no answer"));
        assert_eq!(seen.port(), 20003, "it is masqueraded by the port of one of ours");
    }
    for (socket, port) in &ours {
        // The one that was forgotten begins anew; all others keep their ports.
        let (_, seen) = ask_once(socket).unwrap().unwrap_or_else(|| panic!("a client by {port} has no answer"));
        assert!(seen.port() == *port || *port == 20003, "{} instead of {port}", seen.port());
    }
}
