//! What makes datagrams more than a question and its answer: those are forgotten sooner.

use std::time::{Duration, Instant};

use kubeferry_ebpf_common::Flow;
use kubeferry_ebpf_common::flow::TICK;
use kubeferry_tests::client::{ask_once, datagrams, until, until_for};
use kubeferry_tests::web::MANIFESTS;
use rustix::time::{ClockId, clock_gettime};

use super::by_packet::ByPacket;
use super::{Cluster, flows};

#[test]
fn a_question_and_its_answer_over_udp_are_forgotten_sooner_than_datagrams_that_go_on() {
    let cluster = Cluster::build();
    let _running = cluster.start();
    let _kept = cluster.until_served().unwrap();
    let asked = Instant::now();
    let [once, twice] = [0; 2].map(|_| datagrams(cluster.client(), cluster.vip()).unwrap());
    for socket in [&once, &twice] {
        ask_once(socket).unwrap().unwrap();
    }
    // Times of flows are counted by little more than a second.
    std::thread::sleep(Duration::from_secs(3));
    ask_once(&twice).unwrap().unwrap();
    // Two entries each: the connection that is open, and both of these.
    until("a sweep that has met them", || flows(&cluster).filter(|flows| *flows == 6)).unwrap();
    until_for(Duration::from_secs(100), "the question to be gone", || flows(&cluster).filter(|flows| *flows == 4))
        .unwrap();
    assert!(asked.elapsed() > Duration::from_secs(30), "{:?}", asked.elapsed());
}

/// Now, in the clock of flows, which is read as the programs read it.
fn now() -> i64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec * 1_000_000_000 + now.tv_nsec) >> TICK
}

#[test]
fn a_clock_that_ticks_within_a_question_and_its_answer_makes_no_stream_of_them() {
    let cluster = ByPacket::start(MANIFESTS, &[]);
    let (client, vip) = (cluster.web().client(), cluster.web().vip());
    // Each time, the entries are of one unit of the clock before.
    let asked = || {
        let start = now();
        cluster.pinned.forget_flows().unwrap();
        let socket = datagrams(client, vip).unwrap();
        let ask = |_| {
            ask_once(&socket).unwrap().expect("an answer");
            let keys = cluster.pinned.flow_keys().unwrap();
            let entries = keys.iter().map(|key| cluster.pinned.raw_flow(key).unwrap().expect("its entry"));
            let flags = entries.map(|flow| flow.flags & (Flow::AGAIN | Flow::LASTS)).collect::<Vec<_>>();
            cluster.age(1);
            flags
        };
        let flags = [0; 3].map(ask);
        (now() == start).then_some(flags)
    };
    let both = |flags| vec![flags; 2];
    let flags = until("three questions within one unit of the clock", asked).unwrap();
    assert_eq!(flags, [both(0), both(Flow::AGAIN), both(Flow::AGAIN | Flow::LASTS)]);
}
