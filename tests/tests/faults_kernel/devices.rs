//! Interfaces that go down, are made anew, renamed, and addresses that move and change.

use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::site::{NODE_IPS, at};

use super::trial::{RIGHT, Sees, Trial};

on_both_datapaths! {
    an_uplink_that_goes_down_and_up,
    a_pods_device_that_goes_down_and_up,
    a_pods_device_that_is_made_anew,
    a_device_that_is_renamed,
    an_address_that_moves_to_another_interface,
    a_node_that_gets_another_address,
}

/// Where the cables of the pods `web1`, `client` and of the router are plugged in.
const WEB1: u8 = 0;
const CLIENT: u8 = 2;
const ROUTER: u8 = 3;

/// Takes the device of a host down and up again.
fn flaps(trial: &Trial, name: &str, number: u8) {
    let host = trial.site.hosts.host(name);
    trial.site.node().ip(&[format!("link set {name} down")]).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let mut lines = vec![format!("link set {name} up")];
    // As whoever sets interfaces up does.
    lines.extend(host.ways(number));
    if number == ROUTER {
        lines.extend(host.default_ways());
    }
    trial.site.node().ip(&lines).unwrap();
}

/// The uplink's.
pub fn the_uplink_flaps(trial: &Trial) {
    flaps(trial, "router", ROUTER);
}

/// An endpoint is behind it: who asks that one meanwhile waits, and goes on.
fn a_pods_device_that_goes_down_and_up(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    trial.watches("a pod's device down and up", Sees::NewFail, || flaps(&trial, "web1", WEB1), || Some(()));
}

fn an_uplink_that_goes_down_and_up(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    let flap = || the_uplink_flaps(&trial);
    // The kernel forgets whom it masquerades by a device that goes down; the programs do not.
    match trial.site.datapath() {
        Datapath::Nftables => trial.watches("the uplink down and up", Sees::NewFail, flap, || Some(())),
        Datapath::Ebpf(_) => trial.suffers("the uplink down and up", Sees::NewFail, flap, || Some(())),
    };
}

fn a_pods_device_that_is_made_anew(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    let node = trial.site.node();
    for (name, number) in [("client", CLIENT), ("web1", WEB1)] {
        let host = trial.site.hosts.host(name);
        let replace = || {
            node.ip(&[format!("link delete {name}")]).unwrap();
            host.plug(node, number).unwrap();
        };
        let fault = format!("the device of the pod {name} made anew");
        let seen = trial.watches(&fault, Sees::NewFail, replace, || Some(()));
        // Others are concerned only as they ask the pod.
        let own = trial.site.client().name();
        let others = seen.failures.iter().map(|failure| failure.what.as_str());
        let others: Vec<_> = others.filter(|what| name == "client" && !what.contains(own)).collect();
        assert!(others.is_empty(), "{fault}: {others:?}");
    }
}

fn a_device_that_is_renamed(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    for (from, to) in [("client", "pod7"), ("router", "uplink0"), ("pod7", "client")] {
        let rename = || trial.site.node().ip(&[format!("link set dev {from} name {to}")]).unwrap();
        let told = || match trial.site.datapath() {
            Datapath::Nftables => Some(()),
            Datapath::Ebpf(_) => {
                let status = trial.status()["datapath"].to_string();
                (status.contains(&format!(" {to}")) && !status.contains(&format!(" {from}"))).then_some(())
            }
        };
        trial.suffers(&format!("the device {from} renamed to {to}"), Sees::Nothing, rename, told);
    }
    assert_eq!(trial.drift(), (0, 0));
}

fn an_address_that_moves_to_another_interface(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    let (v4, v6) = (NODE_IPS[0], NODE_IPS[1]);
    // With its last address, an interface loses its routes.
    trial.site.node().ip(&["addr add 192.0.2.250/32 dev router", "addr add 192.0.2.251/32 dev eth0"]).unwrap();
    let moves = |from: &str, to: &str| {
        let lines = [
            format!("addr add {v4}/32 dev {to}"),
            format!("addr add {v6}/128 dev {to} nodad"),
            format!("addr del {v4}/32 dev {from}"),
            format!("addr del {v6}/128 dev {from}"),
        ];
        trial.site.node().ip(&lines).unwrap();
    };
    let fault = "the node's addresses moved to another interface";
    trial.watches(fault, Sees::NewFail, || moves("eth0", "router"), || Some(()));
    trial.watches("and back", Sees::NewFail, || moves("router", "eth0"), || Some(()));
}

fn a_node_that_gets_another_address(datapath: Datapath) {
    let trial = Trial::start(datapath, &[]);
    let (old, new) = (at(NODE_IPS[0], 30080), at("192.0.2.2", 30080));
    let outside = trial.site.outside();
    let answers = |to| Connection::attempt(outside, to)?.ask().ok();
    assert!(answers(old).is_some());
    // Node ports answer at the node's primary address, which its object says.
    let change = || {
        trial.site.node().ip(&["addr add 192.0.2.2/32 dev eth0"]).unwrap();
        let edit = |text: String| text.replace("192.0.2.1", "192.0.2.2");
        trial.site.change_as(&["1", "2", "remote"], &edit).unwrap();
        trial.site.node().ip(&["addr del 192.0.2.1/32 dev eth0"]).unwrap();
    };
    let ways: Vec<_> = trial.ways().into_iter().filter(|(_, to)| *to != old).collect();
    trial.watches_by(&ways, "another address of the node", Sees::NewFail, change, || answers(new).map(drop));
    let gone = || Connection::open_within(outside, old, std::time::Duration::from_millis(500)).is_err().then_some(());
    until_for(RIGHT, "nobody to answer at the old address", gone).unwrap();
}
