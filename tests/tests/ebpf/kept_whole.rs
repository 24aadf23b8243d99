//! The entries of a connection belong together: one that is lost comes again, and what an end says of one side leaves the other alone. And
//! what else one packet must not do to another.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kubeferry_ebpf_common::packet::{ACK, FIN, RST, SYN};
use kubeferry_ebpf_common::{Flow, FlowKey, TCP, UDP};
use kubeferry_tests::bpf::pinned::flow_key;
use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::packets::{Protocol, first_packet, fragments, tcp_packet};
use kubeferry_tests::web::MANIFESTS;

use super::by_packet::{ByPacket, NEXT, SHOT};

/// So that each packet finds its entries older than its own time.
const OLDER: u32 = 2;

fn endpoint() -> SocketAddr {
    SocketAddr::from(([10, 244, 1, 1], 8080))
}

fn client() -> SocketAddr {
    SocketAddr::from(([10, 244, 1, 7], 40_001))
}

fn one_endpoint(flags: &[&str]) -> ByPacket {
    ByPacket::start(&one_endpoint_at("10.244.1.1"), flags)
}

fn one_endpoint_at(ip: &str) -> String {
    MANIFESTS.replace(", {addresses: [10.244.1.2], nodeName: worker-1}", "").replace("[10.244.1.1]", &format!("[{ip}]"))
}

/// A full table throws out what was used least recently: of a connection where one side alone sends, the other side's entries.
#[test]
fn entries_for_answers_that_a_full_table_has_thrown_out_come_again() {
    for (flags, entries) in [(&[][..], 2), (&["--masquerade-all"], 4)] {
        let cluster = one_endpoint(flags);
        let web = cluster.web();
        let mut tcp = Connection::open(web.client(), web.vip()).unwrap();
        let before = tcp.ask().unwrap();
        let udp = datagrams(web.client(), web.vip()).unwrap();
        let seen = ask_once(&udp).unwrap().expect("an answer");
        let keys = cluster.pinned.flow_keys().unwrap();
        assert_eq!(keys.len(), 2 * entries, "{flags:?}");
        let answers: Vec<_> = keys.iter().filter(|key| key.source == endpoint().ip().into()).collect();
        assert_eq!(answers.len(), entries, "{flags:?}");
        for key in answers {
            cluster.pinned.forget_flow(key).unwrap();
        }
        cluster.age(OLDER);
        assert_eq!(tcp.ask().unwrap(), before, "{flags:?}");
        assert_eq!(ask_once(&udp).unwrap().expect("an answer"), seen, "{flags:?}");
        assert_eq!(cluster.pinned.flow_keys().unwrap(), keys.clone(), "{flags:?}");
    }
}

/// The port that a connection was masqueraded by is another's, after a full table has forgotten that.
#[test]
fn a_connection_whose_port_is_another_s_begins_anew() {
    let cluster = one_endpoint(&["--masquerade-all"]);
    let web = cluster.web();
    let udp = datagrams(web.client(), web.vip()).unwrap();
    let (_, seen) = ask_once(&udp).unwrap().expect("an answer");
    let answers = flow_key(UDP, endpoint(), seen, FlowKey::IN);
    let another = SocketAddr::from(([10, 244, 1, 2], 7));
    cluster
        .pinned
        .change_flow(&answers, |flow| (flow.address, flow.port) = (another.ip().into(), 7_u16.to_be()))
        .unwrap();
    assert!(ask_once(&udp).unwrap().is_none(), "the answer is the other's");
    cluster.age(OLDER);
    let (_, now) = ask_once(&udp).unwrap().expect("an answer");
    assert_ne!(now, seen);
    assert_eq!(cluster.pinned.flow(&answers).unwrap().expect("the other's").end, another);
}

/// What goes to an endpoint on the node itself never leaves, and where it would be masqueraded its entry for that is not used: a table
/// that is full throws it out first.
#[test]
fn a_connection_to_the_node_goes_on_without_the_entry_that_it_does_not_use() {
    let cluster = ByPacket::start(&one_endpoint_at("192.0.2.1"), &["--masquerade-all"]);
    let vip = cluster.web().vip();
    let here = SocketAddr::from(([192, 0, 2, 1], 8080));
    let question = |bits| {
        let ran = cluster.comes("client", &tcp_packet(client(), vip, bits, 1));
        assert_eq!((ran.verdict, ran.frame), (NEXT, tcp_packet(client(), here, bits, 1)), "bits {bits:#x}");
    };
    let answer = |bits| {
        let ran = cluster.leaves("client", None, &tcp_packet(here, client(), bits, 1));
        assert_eq!((ran.verdict, ran.frame), (NEXT, tcp_packet(vip, client(), bits, 1)), "bits {bits:#x}");
    };
    question(SYN);
    answer(SYN | ACK);
    question(ACK);
    let unused = flow_key(TCP, client(), here, FlowKey::OUT);
    assert_eq!(cluster.pinned.raw_flow(&unused).unwrap().expect("it is there").flags & Flow::PENDING, Flow::PENDING);
    // Whoever begins anew is told by where that goes.
    cluster.web().write(&one_endpoint_at("10.244.1.1")).unwrap();
    let elsewhere = || {
        let list = cluster.pinned.list(vip, TCP).unwrap();
        list.iter().map(|endpoint| endpoint.address).eq([endpoint().ip().into()]).then_some(())
    };
    until("another endpoint", elsewhere).unwrap();
    let keys = cluster.pinned.flow_keys().unwrap();
    for _ in 0..2 {
        cluster.pinned.forget_flow(&unused).unwrap();
        cluster.age(OLDER);
        question(ACK);
        answer(ACK);
        assert_eq!(cluster.pinned.flow_keys().unwrap().len(), keys.len());
        assert!(cluster.pinned.raw_flow(&unused).unwrap().is_some_and(|flow| flow.flags & Flow::PENDING != 0));
    }
}

/// Maps of other sizes are filled with what is in the old ones, row by row, while programs use the new ones already: of a
/// connection the first entry may be there before the others.
#[test]
fn a_connection_that_is_half_carried_over_is_neither_begun_anew_nor_filled_up() {
    let mut cluster = one_endpoint(&["--masquerade-all"]);
    // It would repair what it finds in the maps.
    cluster.end();
    let (web, pinned) = (cluster.web(), &cluster.pinned);
    let vip = web.vip();
    for (from, is_own) in [(web.client(), false), (&web.hosts.node, true)] {
        let what = from.name();
        let earlier = pinned.flow_keys().unwrap();
        let entries = || {
            let keys = pinned.flow_keys().unwrap().into_iter().filter(|key| !earlier.contains(key));
            keys.map(|key| (key, pinned.raw_flow(&key).unwrap().unwrap())).collect::<BTreeMap<_, _>>()
        };
        let mut tcp = Connection::open(from, vip).unwrap();
        let before = tcp.ask().unwrap();
        // The client may acknowledge the answer a moment later.
        std::thread::sleep(Duration::from_millis(200));
        let mut others = entries();
        let keys: Vec<_> = others.keys().copied().collect();
        others.remove(&flow_key(TCP, tcp.local().unwrap(), vip, FlowKey::IN)).expect("its first entry");
        assert_eq!(others.len(), 3, "{what}");
        pinned.set_moving(true).unwrap();
        others.keys().for_each(|key| pinned.forget_flow(key).unwrap());
        cluster.age(OLDER);
        let packet = tcp_packet(tcp.local().unwrap(), vip, ACK, 1);
        let ran = if is_own { cluster.leaves("client", None, &packet) } else { cluster.comes("client", &packet) };
        assert_ne!(ran.verdict, SHOT, "{what}");
        assert_eq!(ran.frame[16..20], [10, 244, 1, 1], "{what}: it goes to its endpoint");
        // As `carry_over` does: what is there stays.
        others.iter().for_each(|(key, flow)| pinned.put_new_flow(key, flow).unwrap());
        pinned.set_moving(false).unwrap();
        assert_eq!(tcp.ask().unwrap_or_else(|error| panic!("{what}: {error:#}")), before, "{what}");
        assert_eq!(entries().into_keys().collect::<Vec<_>>(), keys, "{what}");
    }
}

/// The endpoint has closed, the client has not, and somebody with its address and port begins anew: a pod that has come in its place.
#[test]
fn an_answer_to_a_client_that_begins_anew_stays_the_services() {
    let cluster = one_endpoint(&[]);
    let vip = cluster.web().vip();
    let question = |by, bits| {
        let ran = cluster.comes(by, &tcp_packet(client(), vip, bits, 1));
        assert_eq!((ran.verdict, ran.frame), (NEXT, tcp_packet(client(), endpoint(), bits, 1)));
    };
    let answer = |bits| {
        let packet = tcp_packet(endpoint(), client(), bits, 1);
        cluster.comes("web1", &packet);
        let ran = cluster.leaves("client", Some("web1"), &packet);
        assert_eq!((ran.verdict, ran.frame), (NEXT, tcp_packet(vip, client(), bits, 1)), "bits {bits:#x}");
    };
    question("client", SYN);
    answer(SYN | ACK);
    question("client", ACK);
    answer(FIN | ACK);
    question("web2", SYN);
    answer(SYN | ACK);
    answer(ACK);
    // Closed by both, it is nobody's any more: this is an answer to a connection without us.
    answer(FIN | ACK);
    question("client", FIN | ACK);
    let packet = tcp_packet(endpoint(), client(), SYN | ACK, 1);
    assert_eq!(cluster.leaves("client", Some("web1"), &packet).frame, packet);
}

/// Nobody listened yet. The client has its port again at once, and asks the endpoint itself.
#[test]
fn an_answer_to_whoever_was_reset_before_is_not_the_services() {
    let cluster = one_endpoint(&[]);
    let vip = cluster.web().vip();
    cluster.comes("client", &tcp_packet(client(), vip, SYN, 1));
    let refused = tcp_packet(endpoint(), client(), RST | ACK, 1);
    assert_eq!(cluster.leaves("client", Some("web1"), &refused).frame, tcp_packet(vip, client(), RST | ACK, 1));
    let direct = tcp_packet(endpoint(), client(), SYN | ACK, 1);
    assert_eq!(cluster.leaves("client", Some("web1"), &direct).frame, direct);
}

/// Fragments after the first have no ports: they are those of the first with the same number.
#[test]
fn later_fragments_are_of_the_last_datagram_with_their_number() {
    let cluster = one_endpoint(&[]);
    let vip = cluster.web().vip();
    let parts = |from, to| fragments(&first_packet(Protocol::Udp, from, to, 7));
    let translated = parts(client(), vip).map(|packet| cluster.comes("client", &packet).frame != packet);
    assert_eq!(translated, [true; 2], "it is for the Service");
    let answers =
        |from| parts(from, client()).map(|packet| cluster.leaves("client", Some("web1"), &packet).frame != packet);
    assert_eq!(answers(endpoint()), [true; 2], "of the Service");
    let other = SocketAddr::new(endpoint().ip(), 9);
    assert_eq!(answers(other), [false; 2], "of somebody else at the same address");
    assert_eq!(answers(endpoint()), [true; 2], "of the Service again");
}

/// The same with SCTP at port 81.
fn with_sctp(manifests: &str) -> String {
    let ports = "ports:\n    - {name: sctp, protocol: SCTP, port: 81, targetPort: 8080}\n";
    manifests
        .replace("  ports:\n", &format!("  {ports}"))
        .replace("ports: [{name: tcp", "ports: [{name: sctp, protocol: SCTP, port: 8080}, {name: tcp")
}

/// A client of SCTP asks from one port again and again, as it was configured.
#[test]
fn an_association_that_was_ended_is_over_for_whoever_begins_anew() {
    /// Where the first chunk says what it is.
    const CHUNK: usize = 32;
    const INIT: u8 = 1;
    const ABORT: u8 = 6;
    const SHUTDOWN_ACK: u8 = 8;
    const SHUTDOWN_COMPLETE: u8 = 14;
    let at = |ip| with_sctp(&one_endpoint_at(ip));
    let (first, second) = ("10.244.1.1", "10.244.1.2");
    let cluster = ByPacket::start(&at(first), &[]);
    let to = SocketAddr::new(cluster.web().vip().ip(), 81);
    let chunk = |kind, from, to| {
        let mut packet = first_packet(Protocol::Sctp, from, to, 7);
        packet[CHUNK] = kind;
        packet
    };
    let asks = |kind, from| {
        let ran = cluster.comes("client", &chunk(kind, from, to));
        assert_eq!((ran.verdict, &ran.frame[22..24]), (NEXT, &8080_u16.to_be_bytes()[..]));
        IpAddr::from([16, 17, 18, 19].map(|at| ran.frame[at]))
    };
    let client = |port| SocketAddr::new(client().ip(), port);
    let cases =
        [(SHUTDOWN_ACK, false), (ABORT, false), (ABORT, true), (SHUTDOWN_COMPLETE, false), (SHUTDOWN_COMPLETE, true)];
    let clients = || (40_001..).map(client).zip(cases);
    for (from, (kind, by_client)) in clients() {
        assert_eq!(asks(INIT, from).to_string(), first);
        let answer = |kind| cluster.leaves("client", Some("web1"), &chunk(kind, endpoint(), from));
        assert_eq!(answer(INIT + 1).frame[12..16], [10, 96, 0, 10]);
        if by_client {
            assert_eq!(asks(kind, from).to_string(), first);
        } else {
            answer(kind);
        }
    }
    cluster.web().write(&at(second)).unwrap();
    let listed = || cluster.pinned.list(to, 132).unwrap().first().map(|one| IpAddr::from(one.address).to_string());
    until("the other endpoint", || listed().filter(|ip| ip == second)).unwrap();
    for (from, (kind, by_client)) in clients() {
        let wanted = if kind == SHUTDOWN_ACK { first } else { second };
        assert_eq!(asks(INIT, from).to_string(), wanted, "chunk {kind}, by the client: {by_client}");
    }
}

/// What is to be made by hardware, or by the kernel in its place, of all that stands in the packet.
#[test]
fn a_checksum_of_sctp_that_is_still_to_be_made_stays_nothing() {
    const SUM: std::ops::Range<usize> = 28..32;
    let cluster = ByPacket::start(&with_sctp(MANIFESTS), &[]);
    let to = SocketAddr::new(cluster.web().vip().ip(), 81);
    let whole = first_packet(Protocol::Sctp, client(), to, 7);
    let mut partial = whole.clone();
    partial[SUM].fill(0);
    for packet in [whole, partial] {
        let ran = cluster.comes("client", &packet);
        assert_eq!((ran.verdict, &ran.frame[22..24]), (NEXT, &8080_u16.to_be_bytes()[..]));
        assert_eq!(packet[SUM] == [0; 4], ran.frame[SUM] == [0; 4]);
    }
    assert!(cluster.pinned.flow(&flow_key(132, client(), to, FlowKey::IN)).unwrap().is_some());
}

/// Nobody may send from or to an address of IPv6 that stands for one of IPv4 (RFC 4291, 2.5.5.2).
#[test]
fn an_address_of_ipv4_in_a_header_of_ipv6_is_nobody_s() {
    let cluster = one_endpoint(&[]);
    let mapped = |at: SocketAddr| match at.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), at.port()),
        IpAddr::V6(_) => at,
    };
    let packet = first_packet(Protocol::Udp, mapped(client()), mapped(cluster.web().vip()), 7);
    assert_eq!(packet[0] >> 4, 6);
    let ran = cluster.comes("client", &packet);
    assert_eq!((ran.verdict, ran.frame), (NEXT, packet));
    assert!(cluster.pinned.flow_keys().unwrap().is_empty());
}

/// A switch that does not know where somebody is sends frames for them to all.
#[test]
fn a_frame_for_another_is_the_stack_s_at_xdp() {
    const PASS: i32 = 2;
    let cluster = one_endpoint(&["--xdp", "native", "--xdp-devices", "client"]);
    let packet = tcp_packet(client(), cluster.web().vip(), SYN, 1);
    let key = flow_key(TCP, client(), cluster.web().vip(), FlowKey::IN);
    for (last, is_ours) in [(9, false), (2, true)] {
        let frame = [&[2, 0, 0, 0, 1, last, 2, 0, 0, 0, 2, 2, 8, 0], &packet[..]].concat();
        let ran = cluster.comes_at_xdp("client", &frame);
        assert_eq!((ran.verdict, ran.frame == frame), (PASS, true), "an endpoint on the node is the stack's to reach");
        assert_eq!(cluster.pinned.raw_flow(&key).unwrap().is_some(), is_ours);
    }
}

/// Ports of a bond are carried at XDP, and have no row of their own: what the switch sends there is for the bond.
#[test]
fn an_uplink_without_a_row_of_its_own_is_carried_at_xdp() {
    let flags = ["--xdp", "native", "--xdp-devices", "client", "--devices", "web*"];
    let cluster = one_endpoint(&flags);
    let packet = tcp_packet(client(), cluster.web().vip(), SYN, 1);
    let key = flow_key(TCP, client(), cluster.web().vip(), FlowKey::IN);
    cluster.comes_at_xdp("client", &[&[2, 0, 0, 0, 0, 0xbd, 2, 0, 0, 0, 2, 2, 8, 0], &packet[..]].concat());
    assert!(cluster.pinned.raw_flow(&key).unwrap().is_some(), "it was left to the stack");
}
