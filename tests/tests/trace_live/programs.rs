//! What is eBPF's own: each hook, and how the programs stop telling.

use std::path::Path;

use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::bpf::sockets::Maker;
use kubeferry_tests::client::{DEADLINE, ask_once, datagrams, until};
use kubeferry_tests::datapath::Datapath;
use serde_json::{Value, json};

use crate::served::Served;

fn served() -> Served {
    Served::on(Datapath::ebpf().unwrap())
}

fn places(served: &Served) -> &Places {
    match &served.datapath {
        Datapath::Ebpf(places) => places,
        Datapath::Nftables => unreachable!("built on eBPF"),
    }
}

/// The hooks that a packet was told of at, in order.
fn hooks(line: &Value) -> Vec<&str> {
    line["steps"].as_array().unwrap().iter().map(|step| step["place"].as_str().unwrap()).collect()
}

#[test]
fn steps_are_those_of_the_hooks() {
    let served = served();
    let follower = served.follow(&["--service", "web"]);
    let (from, to) = served.connect(80);
    let line = follower.line(Some(from), to).unwrap();
    assert_eq!(hooks(&line), ["TC ingress client", "TC egress web1"], "{line:#}");
    assert_eq!((&line["iif"], &line["wentFrom"]), (&json!("client"), &line["from"]), "{line:#}");
    assert!(line["says"].as_str().unwrap().starts_with("went out by web1: "), "{line:#}");
}

#[test]
fn a_socket_is_followed_where_it_is_translated() {
    let served = served();
    let program = Path::new(env!("CARGO_BIN_EXE_socket-maker"));
    let sockets = Maker::start(program, served.node(), places(&served).cgroup()).unwrap();
    let follower = served.follow(&["--service", "web", "--from", "192.0.2.1"]);
    sockets.tcp(false).unwrap().connect(served.web.vip(), DEADLINE).unwrap();
    sockets.udp(false).unwrap().send_to(b"?\n", served.web.vip()).unwrap();
    for protocol in ["tcp", "udp"] {
        let is_it = |line: &Value| line["protocol"] == protocol && line["to"] == served.web.vip().to_string();
        let line = until("the socket to be told of", || follower.lines().into_iter().find(is_it)).unwrap();
        assert_eq!(hooks(&line), ["socket"], "{line:#}");
        assert_eq!((&line["from"], &line["wentFrom"]), (&Value::Null, &Value::Null), "it has none yet: {line:#}");
        assert_eq!((&line["wentTo"], &line["agrees"]), (&json!("10.244.1.1:8080"), &json!(true)), "{line:#}");
        let says = format!("went on: {protocol} a socket here → 10.244.1.1:8080 (destination rewritten)");
        assert_eq!(
            (line["says"].as_str(), &line["model"]["masquerade"]),
            (Some(says.as_str()), &Value::Null),
            "{line:#}"
        );
        let why = line["model"]["why"].as_array().unwrap();
        assert!(!why.iter().any(|why| why.as_str().unwrap().contains("the source")), "{line:#}");
    }
}

/// Nothing in a datagram says that it is an answer.
#[test]
fn an_answer_is_no_connection_of_its_own() {
    let served = served();
    let mut follower = served.follow(&["--for", "4s"]);
    let socket = datagrams(served.web.client(), served.web.vip()).unwrap();
    let from = socket.local_addr().unwrap();
    until("an answer", || ask_once(&socket).unwrap()).unwrap();
    let line = follower.line(Some(from), served.web.vip()).unwrap();
    until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
    let endpoint = &line["wentTo"];
    let lines = follower.lines();
    assert!(lines.iter().all(|line| line["from"] != *endpoint), "{endpoint} answers: {lines:#?}");
}

#[test]
fn a_killed_trace_is_not_told_anything_any_more() {
    let served = served();
    let pinned = Pinned::open(places(&served).bpffs()).unwrap();
    assert_eq!(pinned.followed_until().unwrap(), 0, "nobody follows yet");
    served.connect(80);
    assert_eq!(pinned.told().unwrap(), 0);
    let mut follower = served.follow(&["--service", "web"]);
    let (from, to) = served.connect(80);
    follower.line(Some(from), to).unwrap();
    assert!(pinned.followed_until().unwrap() > 0);
    follower.child().kill().unwrap();
    follower.child().wait().unwrap();
    // The first packet after the time turns it off.
    let is_off = || {
        served.connect(80);
        (pinned.followed_until().unwrap() == 0).then_some(())
    };
    until("the programs to stop telling", is_off).unwrap();
    let told = pinned.told().unwrap();
    for _ in 0..5 {
        served.connect(80);
    }
    assert_eq!(pinned.told().unwrap(), told);
}

#[test]
fn one_follows_at_a_time_and_the_next_may_at_once() {
    let served = served();
    let pinned = Pinned::open(places(&served).bpffs()).unwrap();
    let mut first = served.follow(&["--service", "web"]);
    let second = served.node().output(&mut served.trace(&[]), "").unwrap();
    let says = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && says.contains("another `kubeferry trace --live` follows packets"), "{says}");
    first.child().kill().unwrap();
    first.child().wait().unwrap();
    let mut next = served.follow(&["--to", "tcp:10.96.0.10:81", "--for", "2s"]);
    served.connect(80);
    let (from, to) = served.connect(81);
    next.line(Some(from), to).unwrap();
    until("the trace to end", || next.child().try_wait().unwrap()).unwrap();
    assert_eq!(next.lines().len(), 1, "what the first was for is forgotten: {:#?}", next.lines());
    assert_eq!(pinned.followed_until().unwrap(), 0, "it is off at once");
}

#[test]
fn a_trace_goes_on_with_the_programs_that_it_began_with() {
    let mut served = served();
    let mut follower = served.follow(&["--service", "web"]);
    served.restart(&[]);
    let (from, to) = served.connect(80);
    follower.line(Some(from), to).unwrap();
    // Programs that write are others, with maps of their own to tell by.
    served.restart(&["--bpf-log-level", "trace"]);
    let status = until("the trace to end", || follower.child().try_wait().unwrap()).unwrap();
    assert!(
        !status.success() && follower.complaints().contains("the programs were replaced"),
        "{}",
        follower.complaints()
    );
    let follower = served.follow(&["--service", "web"]);
    let (from, to) = served.connect(80);
    assert_eq!(follower.line(Some(from), to).unwrap()["agrees"], json!(true));
}
