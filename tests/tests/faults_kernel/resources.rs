//! What the kernel has no room for: notifications.

use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::hosts::Host;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::site::{VIPS, at};
use rustix::process::{Pid, Signal, kill_process};

use super::trial::{RIGHT, Sees, Trial};

on_both_datapaths! {
    notifications_that_are_lost_are_made_up_for,
}

/// Datagrams that the kernel has thrown away for want of room in netlink sockets of a node.
fn lost(trial: &Trial) -> u64 {
    let table = trial.site.node().run(|| std::fs::read_to_string("/proc/thread-self/net/netlink")).unwrap().unwrap();
    let mut lines = table.lines();
    let column = lines.next().unwrap().split_whitespace().position(|name| name == "Drops").unwrap();
    lines.map(|line| line.split_whitespace().nth(column).unwrap().parse::<u64>().unwrap()).sum()
}

fn notifications_that_are_lost_are_made_up_for(datapath: Datapath) {
    let trial = Trial::start(datapath, &["--nodeport-addresses", "192.0.2.0/24,2001:db8:2::/64"]);
    let node = trial.site.node();
    let pid = Pid::from_raw(trial.site.pid().unwrap().cast_signed()).unwrap();
    let mut late = None;
    let flood = || {
        // Nothing is read while it stands still.
        kill_process(pid, Signal::STOP).unwrap();
        let lines = (0..4_000).map(|number| format!("addr {} 198.51.100.99/32 dev eth0", ["add", "del"][number % 2]));
        node.ip(&lines.collect::<Vec<_>>()).unwrap();
        node.ip(&["addr add 192.0.2.9/32 dev eth0"]).unwrap();
        late = Some(Host::join(node, "late", 50, &[[10, 244, 1, 50].into()]).unwrap());
        assert!(lost(&trial) > 0, "the sockets had room for all of it");
        kill_process(pid, Signal::CONT).unwrap();
    };
    let answers = |from, to| Connection::attempt(from, to)?.ask().ok();
    trial.suffers("notifications lost", Sees::Nothing, flood, || {
        answers(trial.site.outside(), at("192.0.2.9", 30080)).map(drop)
    });
    let late = late.unwrap();
    until_for(RIGHT, "a pod of the time to be served", || answers(&late.namespace, at(VIPS[0], 80))).unwrap();
}
