//! By hash: sh, dh and mh choose what the model says, for every single connection.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use kubeferry::scheduler::hash::slot;
use kubeferry::scheduler::slots::slots;
use kubeferry::scheduler::{HashKey, Schedule, Scheduler};
use kubeferry_tests::datapath::Datapath;

use super::cluster::{Flow, Service, World, client, endpoint, flows};
use super::on_each_datapath;

on_each_datapath! {
    sh_and_mh_choose_by_the_source_address,
    sh_and_mh_choose_by_the_source_address_and_port,
    dh_chooses_by_the_destination_address,
}

const ENDPOINTS: u8 = 7;
const WEIGHTS: [u16; 7] = [1, 3, 1, 2, 1, 1, 4];

/// The endpoint that the definition gives to a connection.
fn expected(schedule: &Schedule, weights: &[u16], (from, to): Flow) -> SocketAddr {
    let ends: Vec<_> = (1..=ENDPOINTS).map(|number| endpoint(number, to.is_ipv6())).collect();
    let slots = slots(schedule, &ends, weights);
    ends[slots[slot(schedule, from, to.ip(), slots.len()).unwrap()] as usize]
}

/// Opens the connections and compares each with the definition.
fn compare(world: &World, schedule: &Schedule, weights: &[u16], flows: &[Flow]) {
    assert!(flows.len() >= 1000, "{} flows", flows.len());
    let reached = world.connect(flows);
    for (flow, reached) in flows.iter().zip(&reached) {
        let expected = expected(schedule, weights, *flow);
        assert_eq!(*reached, expected, "{} to {}, {schedule:?}", flow.0, flow.1);
    }
    let seen: BTreeSet<_> = reached.into_iter().collect();
    assert_eq!(seen.len(), usize::from(ENDPOINTS), "all endpoints have connections");
}

fn by_source(datapath: &Datapath, hash_key: HashKey, annotation: &str, flows: impl Fn(bool, SocketAddr) -> Vec<Flow>) {
    for scheduler in [Scheduler::Sh, Scheduler::Mh] {
        let mut plain = Service::new("web", scheduler.name(), ENDPOINTS);
        let mut weighted = Service::new("other", scheduler.name(), ENDPOINTS).weighted(&WEIGHTS);
        for service in [&mut plain, &mut weighted] {
            service.annotations += &format!("\n    {annotation}");
        }
        let world = World::start(datapath, &[plain.clone(), weighted.clone()]);
        let schedule = Schedule { scheduler, hash_key, ..Schedule::default() };
        for v6 in [false, true] {
            compare(&world, &schedule, &[], &flows(v6, plain.vip(v6)));
            compare(&world, &schedule, &WEIGHTS, &flows(v6, weighted.vip(v6)));
        }
    }
}

fn sh_and_mh_choose_by_the_source_address(datapath: Datapath) {
    by_source(&datapath, HashKey::Source, "kubeferry.dev/hash-key: source-address", |v6, vip| {
        (1..=200).flat_map(|number| flows(0, 5, client(number, v6), vip)).collect()
    });
}

fn sh_and_mh_choose_by_the_source_address_and_port(datapath: Datapath) {
    by_source(&datapath, HashKey::SourceAndPort, "kubeferry.dev/hash-key: source-address-and-port", |v6, vip| {
        (1..=10).flat_map(|number| flows(0, 100, client(number, v6), vip)).collect()
    });
}

fn dh_chooses_by_the_destination_address(datapath: Datapath) {
    let external = |number: u16, v6: bool| -> IpAddr {
        let text = if v6 { format!("2001:db8:7::{number:x}") } else { format!("198.51.100.{number}") };
        text.parse().unwrap()
    };
    let mut service = Service::new("web", "dh", ENDPOINTS).weighted(&WEIGHTS);
    let ips = (1..=200).flat_map(|number| [false, true].map(|v6| format!("'{}'", external(number, v6))));
    service.spec = format!("externalIPs: [{}]", ips.collect::<Vec<_>>().join(", "));
    let world = World::start(&datapath, &[service.clone()]);
    let schedule = Schedule { scheduler: Scheduler::Dh, ..Schedule::default() };
    for v6 in [false, true] {
        let to = |number: u16| SocketAddr::new(external(number, v6), 80);
        // Weights are nothing to dh.
        let all: Vec<_> =
            (1..=200).flat_map(|number| flows(number * 5, 5, client(number as u8, v6), to(number))).collect();
        compare(&world, &schedule, &[], &all);
        let own: BTreeSet<_> = world.connect(&flows(2000, 50, client(1, v6), service.vip(v6))).into_iter().collect();
        assert_eq!(own.len(), 1, "one destination is one endpoint");
    }
}
