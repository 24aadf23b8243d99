//! In turn: rr and wrr are exact for each service port, whatever the others do and from however many CPUs.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kubeferry::scheduler::slots::slots;
use kubeferry::scheduler::{Schedule, Scheduler};
use kubeferry_tests::client::until;
use kubeferry_tests::cpus;
use kubeferry_tests::datapath::Datapath;

use super::cluster::{Service, World, client, endpoint, flows};

kubeferry_tests::on_both_datapaths! {
    each_comes_in_its_turn,
    two_services_do_not_disturb_each_other,
    all_frontends_of_a_service_take_one_turn,
    turns_are_exact_from_several_cpus_at_once,
    the_turn_goes_on_when_an_endpoint_changes,
}

/// Asserts that endpoints follow each other as in a cycle, from wherever it begins.
fn assert_cycles(reached: &[SocketAddr], cycle: &[SocketAddr]) {
    let from = |start: usize| cycle.iter().cycle().skip(start);
    let follows = |start: usize| reached.iter().zip(from(start)).all(|(reached, next)| reached == next);
    assert!((0..cycle.len()).any(follows), "{reached:?} does not cycle through {cycle:?}");
}

/// One whole turn of endpoints 1, 2 … by these weights.
fn cycle(scheduler: Scheduler, weights: &[u16], v6: bool) -> Vec<SocketAddr> {
    let ends: Vec<_> = (1..).zip(weights).map(|(number, _)| endpoint(number, v6)).collect();
    let schedule = Schedule { scheduler, ..Schedule::default() };
    slots(&schedule, &ends, weights).iter().map(|index| ends[*index as usize]).collect()
}

fn counts(reached: impl IntoIterator<Item = SocketAddr>) -> BTreeMap<SocketAddr, usize> {
    let mut counts = BTreeMap::new();
    reached.into_iter().for_each(|endpoint| *counts.entry(endpoint).or_default() += 1);
    counts
}

fn each_comes_in_its_turn(datapath: Datapath) {
    let weights = [4, 1, 2];
    // Weights are nothing to rr.
    let rr = Service::new("web", "rr", 3).weighted(&weights);
    let wrr = Service::new("other", "wrr", 3).weighted(&weights);
    let world = World::start(&datapath, &[rr.clone(), wrr.clone()]);
    for v6 in [false, true] {
        let reached = world.connect(&flows(0, 300, client(1, v6), rr.vip(v6)));
        let mut first: Vec<_> = reached[..3].to_vec();
        assert_cycles(&reached, &first);
        first.sort();
        assert_eq!(first, cycle(Scheduler::Rr, &[1; 3], v6));
        let reached = world.connect(&flows(0, 350, client(1, v6), wrr.vip(v6)));
        let turn = cycle(Scheduler::Wrr, &weights, v6);
        assert_eq!(turn.len(), 7);
        assert_cycles(&reached, &turn);
        let counts = counts(reached);
        assert_eq!([1, 2, 3].map(|number| counts[&endpoint(number, v6)]), [200, 50, 100]);
    }
}

fn two_services_do_not_disturb_each_other(datapath: Datapath) {
    let (one, two) = (Service::new("web", "rr", 3), Service::new("other", "rr", 3));
    let world = World::start(&datapath, &[one.clone(), two.clone()]);
    for v6 in [false, true] {
        // Now one of them, now the other, in no step that a common turn could have: by the bits of a number.
        let pattern = 0x9e37_79b9_7f4a_7c15_u64;
        let to_one = |index: usize| pattern.rotate_left(index as u32 * 7) & 1 == 1;
        let (to_first, to_second) =
            (flows(0, 240, client(1, v6), one.vip(v6)), flows(240, 240, client(1, v6), two.vip(v6)));
        let chosen: Vec<_> = to_first
            .iter()
            .zip(&to_second)
            .enumerate()
            .map(|(index, (a, b))| if to_one(index) { *a } else { *b })
            .collect();
        let reached = world.connect(&chosen);
        for vip in [one.vip(v6), two.vip(v6)] {
            let own = chosen.iter().zip(&reached).filter(|(flow, _)| flow.1 == vip).map(|(_, reached)| *reached);
            let own: Vec<_> = own.collect();
            assert!(own.len() > 60, "{} connections to {vip}", own.len());
            assert_cycles(&own, &own[..3]);
            assert_eq!(counts(own[..3].iter().copied()).len(), 3, "{own:?}");
        }
    }
}

fn all_frontends_of_a_service_take_one_turn(datapath: Datapath) {
    let mut service = Service::new("web", "rr", 4);
    service.spec = "type: NodePort\n  externalIPs: [198.51.100.7, '2001:db8:7::7']".into();
    let world = World::start(&datapath, &[service.clone()]);
    for v6 in [false, true] {
        let texts =
            if v6 { ["[2001:db8:7::7]:80", "[2001:db8:2::1]:30080"] } else { ["198.51.100.7:80", "192.0.2.1:30080"] };
        let [external, node_port] = texts.map(|text| text.parse().unwrap());
        let frontends = [service.vip(v6), external, node_port, service.vip(v6), node_port, node_port, external];
        let mut flows = flows(0, 280, client(1, v6), service.vip(v6));
        flows.iter_mut().zip(frontends.iter().cycle()).for_each(|(flow, frontend)| flow.1 = *frontend);
        let reached = world.connect(&flows);
        assert_cycles(&reached, &reached[..4]);
        assert_eq!(counts(reached).into_values().collect::<Vec<_>>(), [70; 4]);
    }
}

fn turns_are_exact_from_several_cpus_at_once(datapath: Datapath) {
    let weights = [1, 5, 2];
    let rr = Service::new("web", "rr", 3);
    let wrr = Service::new("other", "wrr", 3).weighted(&weights);
    let world = World::start(&datapath, &[rr.clone(), wrr.clone()]);
    let cpus = cpus::allowed().unwrap().len();
    for v6 in [false, true] {
        for (service, weights) in [(&rr, [1, 1, 1]), (&wrr, weights)] {
            // From each CPU by an address of its own.
            let by_cpu = world.connect_on_each_cpu(|cpu| flows(1000, 480, client(10 + cpu as u8, v6), service.vip(v6)));
            let counted = counts(by_cpu.iter().flatten().copied());
            let (all, whole) = (480 * cpus, usize::from(weights.iter().sum::<u16>()));
            for (number, weight) in (1..).zip(weights) {
                let (found, due) = (counted[&endpoint(number, v6)], all * usize::from(weight) / whole);
                assert!(found.abs_diff(due) <= cpus, "endpoint {number} has {found}, due are {due} on {cpus} CPUs");
            }
        }
    }
}

fn the_turn_goes_on_when_an_endpoint_changes(datapath: Datapath) {
    let mut service = Service::new("web", "rr", 4);
    service = service.weighted(&[1, 1, 1, 0]);
    let world = World::start(&datapath, &[service.clone()]);
    let vip = service.vip(false);
    let before = world.connect(&flows(0, 3, client(1, false), vip));
    assert_eq!(counts(before.iter().copied()).len(), 3);
    // Endpoint 2 gets no new connections any more, endpoint 4 begins.
    world.change(&[service.weighted(&[1, 0, 1, 1])]);
    let mut port = 3;
    let mut reached = Vec::new();
    let changed = || {
        reached.extend(world.connect(&flows(port, 1, client(1, false), vip)));
        port += 1;
        (reached.last() == Some(&endpoint(4, false))).then_some(())
    };
    until("endpoint 4 to be in use", changed).unwrap();
    reached.extend(world.connect(&flows(port, 30, client(1, false), vip)));
    // Nobody is left out, and nobody comes twice.
    let cycle = &reached[reached.len() - 3..];
    assert_eq!(counts(cycle.iter().copied()).len(), 3, "{reached:?}");
    assert_cycles(&reached[reached.len() - 30..], cycle);
}
