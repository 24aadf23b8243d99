//! What goes by as it is at an address and port of the node where a frontend is (see `others.rs` of the programs), packet by packet.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::flow::limits;
use kubeferry_ebpf_common::packet::{ACK, SYN};
use kubeferry_ebpf_common::{Flow, FlowKey};
use kubeferry_tests::bpf::pinned::{Ran, flow_key};
use kubeferry_tests::client::{ask_once, datagrams};
use kubeferry_tests::packets::{Protocol, first_packet, tcp_packet};
use kubeferry_tests::web::MANIFESTS;

use super::by_packet::{ByPacket, NEXT, SHOT};

/// With a node port.
const NODE_PORT: &str = "clusterIP: 10.96.0.10
  type: NodePort
  ports:
    - {name: tcp, port: 80, nodePort: 30080}
    - {name: udp, protocol: UDP, port: 80, nodePort: 30080}
---";
/// One that refuses, and one that drops what the node sends.
const CLOSED: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec:
  clusterIP: 10.96.0.20
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: ranged, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.30
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{name: tcp, port: 80}]
status: {loadBalancer: {ingress: [{ip: 198.51.100.7}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ranged-1, namespace: default, labels: {kubernetes.io/service-name: ranged}}
addressType: IPv4
ports: [{name: tcp, port: 8080}]
endpoints: [{addresses: [10.244.1.1], nodeName: worker-1}]
";
/// Longer ago than any packet that still counts as one of just now.
const LATER: u32 = 3;

struct Passing(ByPacket);

impl Passing {
    fn start(flags: &[&str]) -> Self {
        let (service, slice) = MANIFESTS.split_once("\n---").unwrap();
        let (head, _) = service.split_once("clusterIP").unwrap();
        let one = slice.replace(", {addresses: [10.244.1.2], nodeName: worker-1}", "");
        Self(ByPacket::start(&format!("{head}{NODE_PORT}{one}{CLOSED}"), flags))
    }

    /// It leaves to the client; a pod has sent it, or the node itself.
    fn leaves(&self, of_pod: bool, packet: &[u8]) -> Ran {
        self.0.leaves("client", of_pod.then_some("web1"), packet)
    }

    /// Whether it goes on as it is, having come in from the client.
    fn passes(&self, packet: &[u8]) -> bool {
        let ran = self.0.comes("client", packet);
        assert_eq!(ran.verdict, NEXT, "{packet:?}");
        ran.frame == packet
    }

    fn flow(&self, protocol: Protocol, hook: u8) -> Option<Flow> {
        self.0.pinned.raw_flow(&key(protocol, hook)).unwrap()
    }
}

/// Where the node port is.
fn here() -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], 30_080))
}

/// Whoever is at the other end.
fn there() -> SocketAddr {
    SocketAddr::from(([203, 0, 113, 5], 5_555))
}

fn key(protocol: Protocol, hook: u8) -> FlowKey {
    let (from, to) = if hook == FlowKey::IN { (there(), here()) } else { (here(), there()) };
    flow_key(protocol.number(), from, to, hook)
}

fn out(bits: u8) -> Vec<u8> {
    tcp_packet(here(), there(), bits, 1)
}

fn back(bits: u8) -> Vec<u8> {
    tcp_packet(there(), here(), bits, 1)
}

#[test]
fn one_packet_that_leaves_keeps_no_client_out() {
    let passing = Passing::start(&[]);
    for of_pod in [true, false] {
        passing.0.pinned.forget_flows().unwrap();
        passing.leaves(of_pod, &out(ACK));
        let noted = passing.flow(Protocol::Tcp, FlowKey::IN).expect("it is noted");
        assert_eq!(noted.flags & Flow::SEEN, 0);
        assert!(!passing.passes(&back(SYN)), "nobody has answered: it is the Service's client, of a pod: {of_pod}");
        let opened = passing.flow(Protocol::Tcp, FlowKey::IN).expect("it is open");
        assert_ne!(opened.backend, 0, "{opened:?}");
    }
    // What both sides have used is no client's.
    passing.0.pinned.forget_flows().unwrap();
    passing.leaves(true, &out(ACK));
    assert!([ACK, SYN, ACK].iter().all(|bits| passing.passes(&back(*bits))));
}

#[test]
fn what_a_service_refuses_or_drops_notes_nothing() {
    let passing = Passing::start(&[]);
    for (to, verdict) in [([10, 96, 0, 20], None), ([198, 51, 100, 7], Some(SHOT))] {
        let ran = passing.leaves(false, &tcp_packet(here(), SocketAddr::from((to, 80)), ACK, 1));
        assert!(ran.verdict != NEXT && verdict.is_none_or(|verdict| ran.verdict == verdict), "{to:?}: {ran:?}");
        assert_eq!(passing.0.pinned.flows_as_text().unwrap(), Vec::<String>::new(), "to {to:?}");
    }
    passing.leaves(false, &out(ACK));
    assert_eq!(passing.0.pinned.flows().unwrap(), 2, "to anybody else it does");
}

#[test]
fn an_entry_for_answers_that_was_thrown_out_comes_again() {
    let passing = Passing::start(&[]);
    passing.leaves(true, &out(ACK));
    assert!(passing.passes(&back(ACK)));
    passing.0.pinned.forget_flow(&key(Protocol::Tcp, FlowKey::IN)).unwrap();
    passing.leaves(true, &out(ACK));
    assert!(passing.flow(Protocol::Tcp, FlowKey::IN).is_some());
    assert!(passing.passes(&back(ACK)) && passing.passes(&back(SYN)));
}

#[test]
fn datagrams_go_by_while_one_side_sends() {
    let passing = Passing::start(&[]);
    let [out, back] = [(here(), there()), (there(), here())].map(|(from, to)| first_packet(Protocol::Udp, from, to, 7));
    let age = |hook| {
        let older = |flow: &mut Flow| flow.seen = flow.seen.wrapping_sub(limits::STREAM + LATER);
        passing.0.pinned.change_flow(&key(Protocol::Udp, hook), older).unwrap();
    };
    passing.leaves(true, &out);
    assert!(passing.passes(&back));
    age(FlowKey::IN);
    assert!(passing.passes(&back), "the other side has sent just now");
    [FlowKey::IN, FlowKey::OUT].into_iter().for_each(age);
    assert!(!passing.passes(&back), "neither has sent for long");
}

/// A question of the client to the Service, masqueraded, that has its answer.
struct Question {
    client: SocketAddr,
    /// Whom somebody else asks by the port that it is masqueraded by.
    packet: Vec<u8>,
    asked: Instant,
}

const ENDPOINT: ([u8; 4], u16) = ([10, 244, 1, 1], 8080);

impl Question {
    fn ask(passing: &Passing) -> Self {
        let (web, asked) = (passing.0.web(), Instant::now());
        passing.0.pinned.forget_flows().unwrap();
        let socket = datagrams(web.client(), web.vip()).unwrap();
        let (_, seen) = ask_once(&socket).unwrap().expect("an answer");
        let client = socket.local_addr().unwrap();
        let packet = first_packet(Protocol::Udp, seen, ENDPOINT.into(), 7);
        Self { client, packet, asked }
    }

    /// From the client to the Service, or to the endpoint.
    fn key(&self, hook: u8, passing: &Passing) -> FlowKey {
        let to = if hook == FlowKey::IN { passing.0.web().vip() } else { ENDPOINT.into() };
        flow_key(Protocol::Udp.number(), self.client, to, hook)
    }
}

const MASQUERADED: [&str; 1] = ["--masquerade-all"];

#[test]
fn a_question_that_was_answered_just_now_keeps_its_port() {
    let passing = Passing::start(&MASQUERADED);
    for attempt in 0.. {
        let question = Question::ask(&passing);
        passing.leaves(true, &question.packet);
        let kept = passing.0.pinned.flows().unwrap();
        // The clock of flows has units of little more than a second.
        if question.asked.elapsed() < Duration::from_secs(1) {
            assert_eq!(kept, 4, "{:?}", passing.0.pinned.flows_as_text().unwrap());
            break;
        }
        assert!(attempt < 20, "a question takes a second each time");
    }
}

#[test]
fn only_a_question_that_is_over_gives_its_port() {
    let passing = Passing::start(&MASQUERADED);
    // What is different about it, and how many of its four entries stay.
    type Difference = fn(&mut Flow);
    let cases: [(&str, u8, Difference, usize); 3] = [
        ("nothing", FlowKey::OUT, |_| (), 0),
        ("the client has another endpoint", FlowKey::IN, |flow| flow.address = IpAddr::from([10, 244, 1, 2]).into(), 1),
        ("the client goes on sending", FlowKey::OUT, |flow| flow.flags |= Flow::LASTS, 4),
    ];
    for (what, hook, difference, stay) in cases {
        let question = Question::ask(&passing);
        passing.0.age(LATER);
        passing.0.pinned.change_flow(&question.key(hook, &passing), difference).unwrap();
        passing.leaves(true, &question.packet);
        let left = passing.0.pinned.flows_as_text().unwrap();
        assert_eq!(left.len(), stay, "{what}: {left:#?}");
    }
}
