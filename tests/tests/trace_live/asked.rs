//! Which packets are followed, and how often.

use std::time::Duration;

use kubeferry_tests::client::{Connection, datagrams};
use kubeferry_tests::datapath::Datapath;
use serde_json::{Value, json};

use crate::served::Served;

/// To these, in the order in which they were told.
fn destinations(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["to"].as_str().unwrap()).collect()
}

pub fn service_is_followed_at_ports_that_it_has_not(datapath: Datapath) {
    let served = Served::on(datapath);
    let follower = served.follow(&["--service", "web"]);
    let to = "10.96.0.10:82".parse().unwrap();
    assert!(Connection::open(served.web.client(), to).is_err(), "nobody serves there");
    let line = follower.line(None, to).unwrap();
    assert_eq!((&line["end"], &line["agrees"]), (&json!("refused"), &json!(true)), "{line:#}");
}

pub fn address_or_port_alone_will_do(datapath: Datapath) {
    let served = Served::on(datapath);
    for (to, wanted) in [("10.96.0.10", ["10.96.0.10:80", "10.96.0.10:82"]), ("82", ["10.96.0.10:82", "10.96.0.11:82"])]
    {
        let follower = served.follow(&["--to", to]);
        served.connect(80);
        for other in ["10.96.0.11:82", "10.96.0.10:82"] {
            assert!(Connection::open(served.web.client(), other.parse().unwrap()).is_err(), "nobody serves there");
        }
        follower.line(None, "10.96.0.10:82".parse().unwrap()).unwrap();
        let lines = follower.lines();
        let mut found = destinations(&lines);
        found.sort_unstable();
        assert_eq!(found, wanted, "--to {to}: {lines:#?}");
    }
}

pub fn datagrams_of_one_flow_are_one_connection(datapath: Datapath) {
    let served = Served::on(datapath);
    let _silent =
        served.web.hosts.host("web1").namespace.run(|| std::net::UdpSocket::bind("0.0.0.0:8083").unwrap()).unwrap();
    let follower = served.follow(&["--service", "web"]);
    let to = "10.96.0.10:83".parse().unwrap();
    let socket = datagrams(served.web.client(), to).unwrap();
    for _ in 0..10 {
        socket.send(b"?\n").unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let line = follower.line(Some(socket.local_addr().unwrap()), to).unwrap();
    assert_eq!((&line["wentTo"], &line["agrees"]), (&json!("10.244.1.1:8083"), &json!(true)), "{line:#}");
    // What comes later is told later.
    let (from, to) = served.connect(80);
    follower.line(Some(from), to).unwrap();
    let lines = follower.lines();
    assert_eq!(destinations(&lines), ["10.96.0.10:83", "10.96.0.10:80"], "{lines:#?}");
}
