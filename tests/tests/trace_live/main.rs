//! `kubeferry trace --live`: real packets of flow table rows, followed and told of as they are; limits; and that nothing stays behind.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod asked;
mod ending;
mod judged;
mod programs;
mod rows;
mod served;

use std::mem::offset_of;
use std::process::Command;

use kubeferry_ebpf_common::{Frontend, TCP};
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::{Connection, until};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::{binary, netns::Netns, on_both_datapaths};
use serde_json::{Value, json};

use asked::{
    address_or_port_alone_will_do, datagrams_of_one_flow_are_one_connection,
    service_is_followed_at_ports_that_it_has_not,
};
use ending::{ending_is_not_held_up_by_a_proxy_that_does_not_answer, ending_is_not_held_up_by_who_does_not_read};
use judged::{
    changes_of_other_services_silence_nothing, changes_of_the_service_are_counted,
    client_that_is_known_keeps_its_endpoint,
};
use served::Served;

fn only_what_is_asked_for_is_told_and_no_more_than_that(datapath: Datapath) {
    let served = Served::on(datapath);
    let mut follower = served.follow(&["--to", "tcp:10.96.0.10:81", "--count", "3"]);
    for _ in 0..5 {
        served.connect(80);
        served.connect(81);
    }
    let status = until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
    assert!(status.success(), "{}", follower.complaints());
    let lines = follower.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    for line in lines {
        assert_eq!((&line["to"], &line["agrees"]), (&json!("10.96.0.10:81"), &json!(true)), "{line:#}");
    }
    assert!(follower.complaints().contains("3 connections followed, 0 not as the model says"));
}

fn a_service_is_followed_by_its_name_and_the_time_ends_it(datapath: Datapath) {
    let served = Served::on(datapath);
    let mut follower = served.follow(&["--service", "web", "--for", "3s"]);
    let connections = [served.connect(80), served.connect(81)];
    let refused = Connection::open(served.web.client(), "10.96.0.11:80".parse().unwrap());
    assert!(refused.is_err(), "nobody serves there");
    let lines = connections.map(|(from, to)| follower.line(Some(from), to).unwrap());
    for line in &lines {
        let told = ["end", "wentTo", "agrees"].map(|key| line[key].clone());
        assert_eq!(told, [json!("went"), json!("10.244.1.1:8080"), json!(true)], "{line:#}");
        assert_eq!(line["wentFrom"], line["from"], "a pod's address is kept: {line:#}");
        assert_eq!(
            line["model"]["service"],
            json!(if line == &lines[0] { "default/web:tcp" } else { "default/web:other" })
        );
    }
    let status = until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
    assert!(status.success() && follower.lines().len() == 2, "{:#?}", follower.lines());
}

fn no_more_are_followed_than_is_allowed(datapath: Datapath) {
    let served = Served::on(datapath);
    let mut command = served.trace(&["--rate", "2", "--for", "4s", "--service", "web"]);
    let told = std::thread::scope(|scope| {
        let told = scope.spawn(|| served.node().output(&mut command, "").unwrap());
        // As many as there are in that time: far more than 2 a second.
        let opened = served.flood(|| told.is_finished());
        (told.join().unwrap(), opened)
    });
    let (output, opened) = told;
    let text = String::from_utf8(output.stdout).unwrap();
    let followed = text.matches("  as the model says\n").count();
    println!("{followed} of {opened} connections were followed");
    // 2 at once, and 2 in each second; the ends of the time count whole.
    assert!((2..=12).contains(&followed) && opened > 1_000, "{followed} of {opened}\n{text}");
    served.connect(80);
}

#[test]
fn a_killed_trace_leaves_no_table_behind() {
    let served = Served::on(Datapath::Nftables);
    let before = served.tables();
    let mut follower = served.follow(&["--service", "default/web"]);
    assert!(served.tables().contains("kubeferry-trace-"), "{}", served.tables());
    follower.child().kill().unwrap();
    follower.child().wait().unwrap();
    until("the kernel to remove the table", || (served.tables() == before).then_some(())).unwrap();
    served.connect(80);
}

/// Without a filter everything is followed, but for the questions that the trace asks itself.
fn everything_is_followed_but_the_one_who_follows(datapath: Datapath) {
    let served = Served::on(datapath);
    let mut follower = served.follow(&["--for", "4s"]);
    let (from, to) = served.connect(80);
    follower.line(Some(from), to).unwrap();
    until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
    let asked = follower.lines().into_iter().filter(|line| line["to"] == json!("127.0.0.1:10249")).count();
    assert_eq!(asked, 0, "{} lines", follower.lines().len());
}

/// What is not as the model says is shouted, and is the exit code.
fn a_difference_is_shouted(datapath: Datapath) {
    let served = Served::on(datapath);
    // Not within 2 s of the rows being written: the model might know others.
    let mut command = served.trace(&["--service", "web", "--for", "5s"]);
    let output = std::thread::scope(|scope| {
        let output = scope.spawn(|| served.node().output(&mut command, "").unwrap());
        while !output.is_finished() {
            spoil(&served);
            // It is answered by the other endpoint, or refused.
            drop(Connection::attempt(served.web.client(), served.web.vip()));
        }
        output.join().unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(shout(&served)), "{text}");
}

/// What is said of a packet after [`spoil`].
fn shout(served: &Served) -> &'static str {
    match served.datapath {
        Datapath::Nftables => "!!! NOT AS THE MODEL SAYS: the packet went to 10.244.1.2:8080 !!!",
        Datapath::Ebpf(_) => "!!! NOT AS THE MODEL SAYS: the packet was refused !!!",
    }
}

/// Has packets to the Service go elsewhere.
fn spoil(served: &Served) {
    match &served.datapath {
        // The proxy's own drift check would put its rows right, so somebody else's rule sends the packet elsewhere, before ours.
        Datapath::Nftables => {
            let mut rule = Command::new("nft");
            rule.arg("add table ip other; flush table ip other; table ip other { chain out { type nat hook prerouting priority -120; ip daddr 10.96.0.10 tcp dport 80 dnat to 10.244.1.2:8080; }; }");
            let added = served.node().output(&mut rule, "").unwrap();
            assert!(added.status.success(), "{added:?}");
        }
        Datapath::Ebpf(places) => {
            let pinned = Pinned::open(places.bpffs()).unwrap();
            let mut row = pinned.frontend(served.web.vip(), TCP).unwrap().unwrap();
            row[offset_of!(Frontend, flags)..][..4].copy_from_slice(&Frontend::REFUSE.to_ne_bytes());
            pinned.put_frontend(served.web.vip(), TCP, &row).unwrap();
        }
    }
}

/// Somebody else's rule that stops a packet is named, where the datapath hears of it.
fn who_stops_a_packet_is_named(datapath: Datapath) {
    let served = Served::on(datapath);
    let follower = served.follow(&["--service", "web"]);
    let rule =
        "add table inet firewall { chain forward { type filter hook forward priority 0; tcp dport 8080 drop; }; }";
    let added = served.node().output(Command::new("nft").arg(rule), "").unwrap();
    assert!(added.status.success(), "{added:?}");
    assert!(Connection::attempt(served.web.client(), served.web.vip()).is_none());
    let line = follower.line(None, served.web.vip()).unwrap();
    let says = line["says"].as_str().unwrap();
    if matches!(served.datapath, Datapath::Ebpf(_)) {
        assert_eq!((&line["end"], &line["agrees"]), (&json!("unseen"), &Value::Null), "{line:#}");
        assert!(says.starts_with("not seen again: "), "{says}");
        return;
    }
    assert_eq!((&line["end"], &line["agrees"]), (&json!("stopped"), &Value::Null), "{line:#}");
    assert!(says.starts_with("dropped by firewall/forward, rule ") && says.ends_with(", which is not ours"), "{says}");
}

on_both_datapaths! {
    only_what_is_asked_for_is_told_and_no_more_than_that,
    a_service_is_followed_by_its_name_and_the_time_ends_it,
    no_more_are_followed_than_is_allowed,
    everything_is_followed_but_the_one_who_follows,
    a_difference_is_shouted,
    who_stops_a_packet_is_named,
    service_is_followed_at_ports_that_it_has_not,
    address_or_port_alone_will_do,
    datagrams_of_one_flow_are_one_connection,
    client_that_is_known_keeps_its_endpoint,
    changes_of_other_services_silence_nothing,
    changes_of_the_service_are_counted,
    ending_is_not_held_up_by_who_does_not_read,
    ending_is_not_held_up_by_a_proxy_that_does_not_answer,
}

#[test]
fn what_cannot_be_followed_is_told() {
    let node = Netns::new("live").unwrap();
    let fails = |flags: &[&str]| {
        let mut command = Command::new(binary::path().unwrap());
        let output = node.output(command.args(["trace", "--live"]).args(flags), "").unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(fails(&[]).contains("no proxy answers at http://127.0.0.1:10249"));
    assert!(fails(&["--node-name", "worker-1"]).contains("cannot be used with"));
}
