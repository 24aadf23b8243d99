//! Schedulers, weights and slow start of Services, as the lists of their targets show them.

use std::net::SocketAddr;
use std::time::Duration;

use super::tests::{HERE, OUTSIDE, POD, THERE, endpoint, service, slice, target, to, trace, view, with_detector};
use super::trace::Outcome;
use super::{Desired, Touched};
use crate::scheduler::{HashKey, Schedule, Scheduler};
use crate::settings::DatapathSettings;
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{PodName, Scheduling, Service, SliceEndpoint};

const CLUSTER_IP: &str = "10.96.0.1:80";
const SLOW: Duration = Duration::from_secs(10);

fn asks(scheduler: Scheduler, weights: &str) -> Scheduling {
    let weights = if weights.is_empty() { Default::default() } else { weights.parse().unwrap() };
    Scheduling { scheduler: Some(scheduler), weights, ..Scheduling::default() }
}

fn asking(scheduling: Scheduling) -> Service {
    Service { scheduling: Some(Box::new(scheduling)), ..service() }
}

/// On a datapath that counts connections.
fn counting() -> DatapathSettings {
    DatapathSettings { counts_connections: true, ..with_detector() }
}

fn desired(settings: &DatapathSettings, service: Service, endpoints: Vec<SliceEndpoint>) -> Desired {
    super::tests::desired(settings, service, vec![slice("web-1", 8080, endpoints)])
}

fn two() -> Vec<SliceEndpoint> {
    vec![endpoint(HERE, "here"), endpoint(THERE, "there")]
}

fn cluster(desired: &Desired) -> (Vec<String>, Vec<u16>) {
    let lists = &target(desired).endpoints;
    (lists.cluster.iter().map(|endpoint| endpoint.ip().to_string()).collect(), lists.cluster_weights.to_vec())
}

fn faults(desired: &Desired) -> Vec<String> {
    desired.unscheduled().map(ToString::to_string).collect()
}

#[test]
fn a_service_chooses_before_the_node() {
    let node = Schedule { scheduler: Scheduler::Wrr, table_size: 251, ..Schedule::default() };
    let settings = DatapathSettings { schedule: node, ..with_detector() };
    assert_eq!(target(&desired(&settings, service(), two())).schedule, node);
    let own = Scheduling { hash_key: Some(HashKey::SourceAndPort), ..asks(Scheduler::Mh, "") };
    let got = desired(&settings, asking(own), two());
    let wanted = Schedule { scheduler: Scheduler::Mh, hash_key: HashKey::SourceAndPort, table_size: 251 };
    assert_eq!((target(&got).schedule, faults(&got)), (wanted, vec![]));
}

#[test]
fn what_the_datapath_cannot_do_falls_back_to_the_nodes() {
    for scheduler in Scheduler::ALL {
        let counts = scheduler.counts_connections();
        let got = desired(&with_detector(), asking(asks(scheduler, "")), two());
        assert_eq!(target(&got).schedule.scheduler, if counts { Scheduler::Random } else { scheduler });
        if counts {
            let fault = format!(
                "Service default/web: annotation kubeferry.dev/scheduler ignored: {scheduler} asks how many connections \
                 each endpoint has, which only --backend ebpf counts; random, the node's, is used"
            );
            assert_eq!(faults(&got), [fault]);
        } else {
            assert!(faults(&got).is_empty());
        }
        let got = desired(&counting(), asking(asks(scheduler, "")), two());
        assert_eq!((target(&got).schedule.scheduler, faults(&got)), (scheduler, vec![]));
    }
}

#[test]
fn weights_are_those_that_the_scheduler_uses() {
    let of = |scheduler, weights: &str| cluster(&desired(&counting(), asking(asks(scheduler, weights)), two())).1;
    for scheduler in Scheduler::ALL {
        let ignored = matches!(scheduler, Scheduler::Rr | Scheduler::Lc | Scheduler::Dh);
        assert_eq!(of(scheduler, "node/there=3"), if ignored { vec![] } else { vec![1, 3] }, "{scheduler}");
        assert_eq!(of(scheduler, "node/there=3,node/here=3"), [] as [u16; 0], "all alike");
        let zero = desired(&counting(), asking(asks(scheduler, "node/there=0")), two());
        assert_eq!(cluster(&zero), (vec![HERE.to_owned()], vec![]), "{scheduler}");
    }
    let endpoints = || {
        let [mut here, mut there] = [endpoint(HERE, "here"), endpoint(THERE, "there")];
        here.pod = Some(PodName::of("web-1"));
        there.zone = Some("zone-b".into());
        vec![here, there]
    };
    let got = desired(&with_detector(), asking(asks(Scheduler::Wrr, "zone/zone-b=4,pod/web-1=5")), endpoints());
    assert_eq!(cluster(&got).1, [5, 4]);
}

#[test]
fn weight_zero_leaves_the_lists_of_its_policy() {
    let only = Scheduling { weights: "node/here=0".parse().unwrap(), ..Scheduling::default() };
    let local = Service { external_local: true, ..asking(only.clone()) };
    let got = desired(&with_detector(), local, two());
    let lists = &target(&got).endpoints;
    assert_eq!((lists.cluster.len(), lists.local.len(), lists.serving.len(), lists.local_ready), (1, 0, 2, 0));
    let from_pod = trace(&got, POD, None, CLUSTER_IP);
    assert_eq!(from_pod.outcome, to(&[THERE], false));
    let line = format!("no new connections for those of weight 0: {HERE}:8080");
    assert!(from_pod.why.contains(&line), "{from_pod:?}");
    let from_outside = trace(&got, OUTSIDE, None, "203.0.113.1:80");
    assert_eq!(from_outside.outcome, Outcome::Drop);
    assert!(from_outside.why.contains(&line), "{from_outside:?}");
    let none = Scheduling { weights: "node/here=0,node/there=0".parse().unwrap(), ..Scheduling::default() };
    let draining = SliceEndpoint { ready: false, terminating: true, ..endpoint("10.244.1.9", "other") };
    let got = desired(&with_detector(), asking(none), [two(), vec![draining]].concat());
    assert_eq!(trace(&got, POD, None, CLUSTER_IP).outcome, Outcome::Reject, "a draining one is no candidate");
}

#[test]
fn tables_that_are_too_small_are_told() {
    let many = |count: u8| (1..=count).map(|last| endpoint(&format!("10.244.1.{last}"), "there")).collect::<Vec<_>>();
    let mh = || asking(asks(Scheduler::Mh, ""));
    assert!(faults(&desired(&with_detector(), mh(), many(10))).is_empty());
    let told = faults(&desired(&with_detector(), mh(), many(11)));
    assert_eq!(told.len(), 1);
    assert!(told[0].starts_with("Service default/web port \"http\": 11 endpoints share 1009 slots of mh"), "{told:?}");
    assert!(told[0].contains("--maglev-table-size of at least 1100"), "{told:?}");
    let wide = |scheduler| asking(asks(scheduler, "node/here=65535,node/there=65534"));
    for scheduler in [Scheduler::Random, Scheduler::Wrr, Scheduler::Sh] {
        let told = faults(&desired(&with_detector(), wide(scheduler), two()));
        assert!(told[0].contains("its weights are rounded"), "{told:?}");
    }
    assert!(faults(&desired(&counting(), wide(Scheduler::Wlc), two())).is_empty());
}

#[test]
fn hashed_packets_have_one_endpoint() {
    for (key, port) in [(HashKey::Source, None), (HashKey::SourceAndPort, Some(40_000))] {
        for scheduler in [Scheduler::Sh, Scheduler::Mh, Scheduler::Dh] {
            let scheduling = Scheduling { hash_key: Some(key), ..asks(scheduler, "") };
            let got = trace(&desired(&with_detector(), asking(scheduling), two()), POD, port, CLUSTER_IP);
            let Outcome::Endpoints { endpoints, .. } = &got.outcome else { panic!("{got:?}") };
            assert_eq!(endpoints.len(), 1, "{got:?}");
            assert!(got.why.iter().any(|line| line.starts_with("the hash gives slot ")), "{got:?}");
        }
    }
    let scheduling = Scheduling { hash_key: Some(HashKey::SourceAndPort), ..asks(Scheduler::Sh, "node/here=2") };
    let both = desired(&with_detector(), asking(scheduling), two());
    let got = trace(&both, POD, None, CLUSTER_IP);
    assert_eq!(got.outcome, to(&[HERE, THERE], false));
    assert!(got.why.contains(
        &"which endpoint gets it depends on the source port: say it (--from IP:PORT) to see the one".to_owned()
    ));
    assert!(got.why.iter().any(|line| {
        line == "scheduler sh, by the source-address-and-port; weights 10.244.0.5:8080=2 10.244.1.5:8080=1"
    }));
    let weights: [(SocketAddr, u16); 2] =
        [("10.244.0.5:8080".parse().unwrap(), 2), ("10.244.1.5:8080".parse().unwrap(), 1)];
    assert_eq!(got.weights, weights);
    // Of 3 slots, two in three ports go to the one with weight 2.
    let here =
        (0..3_000_u16).filter(|port| trace(&both, POD, Some(30_000 + port), CLUSTER_IP).outcome == to(&[HERE], false));
    let here = here.count();
    assert!((1_850..2_150).contains(&here), "{here} of 3000");
}

/// A cluster that changes, and a clock.
struct World {
    state: State,
    desired: Desired,
}

impl World {
    fn new(scheduling: Scheduling) -> Self {
        let mut state = State::default();
        state.apply(Event::Service(asking(scheduling)));
        let mut world = Self { state, desired: Desired::new(view(&counting(), "zone-a")) };
        world.set(&[HERE], 0);
        world
    }

    /// These endpoints are ready at this time.
    fn set(&mut self, endpoints: &[&str], now: u64) -> Touched {
        let endpoints = endpoints.iter().map(|address| endpoint(address, "there")).collect();
        self.state.apply(Event::Slice(slice("web-1", 8080, endpoints)));
        let changes = self.state.take_changes();
        self.desired.tick(Duration::from_secs(now));
        self.desired.update(&self.state, &changes, view(&counting(), "zone-a"))
    }

    fn at(&mut self, now: u64) -> Vec<u16> {
        let due = self.desired.tick(Duration::from_secs(now));
        self.desired.step(&self.state, &due);
        cluster(&self.desired).1
    }
}

#[test]
fn a_new_endpoint_starts_slowly() {
    for scheduler in [Scheduler::Wrr, Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
        let mut world = World::new(Scheduling { slow_start: Some(SLOW), ..asks(scheduler, "") });
        assert_eq!((world.at(5), world.desired.next_tick()), (vec![], None), "who is there at the start is not new");
        assert!(!world.set(&[HERE, THERE], 20).frontends.is_empty());
        assert_eq!(cluster(&world.desired).1, [100, 1], "{scheduler}");
        assert!(world.desired.next_tick().is_some());
        assert_eq!(world.at(25), [100, 50]);
        assert_eq!(world.desired.next_tick(), Some(Duration::from_secs(26)));
        assert_eq!(world.at(29), [100, 90]);
        assert_eq!((world.at(30), world.desired.next_tick()), (vec![], None));
    }
}

#[test]
fn weights_and_slow_start_multiply() {
    let scheduling = |weights: &str| Scheduling { slow_start: Some(SLOW), ..asks(Scheduler::Wlc, weights) };
    let mut world = World::new(scheduling("10.244.1.5=3"));
    world.set(&[HERE, THERE], 20);
    assert_eq!(world.at(25), [100, 150]);
    assert_eq!(world.at(30), [1, 3]);
    let mut world = World::new(scheduling("10.244.1.5=40000"));
    world.set(&[HERE, THERE], 20);
    assert_eq!(world.at(25), [1, 20_000], "as near as the size of weights allows");
}

#[test]
fn slow_start_is_told_where_it_has_no_effect() {
    let scheduling = Scheduling { slow_start: Some(SLOW), ..asks(Scheduler::Mh, "") };
    let mut world = World::new(scheduling);
    world.set(&[HERE, THERE], 20);
    assert_eq!((cluster(&world.desired).1, world.desired.next_tick()), (vec![], None));
    let told = faults(&world.desired);
    assert_eq!(
        told,
        [
            "Service default/web: annotation kubeferry.dev/slow-start ignored: mh has no slow start, wrr, lc, wlc, sed, nq have"
        ]
    );
    world.state.apply(Event::ServiceGone(service().name));
    let changes = world.state.take_changes();
    world.desired.update(&world.state, &changes, view(&counting(), "zone-a"));
    assert!(faults(&world.desired).is_empty());
}

#[test]
fn with_affinity_a_hash_is_for_clients_that_are_not_known() {
    let sticky = Service { affinity: Some(Duration::from_secs(60)), ..asking(asks(Scheduler::Sh, "")) };
    let got = desired(&with_detector(), sticky, two());
    let told = trace(&got, POD, None, CLUSTER_IP);
    let Outcome::Endpoints { endpoints, .. } = &told.outcome else { panic!("{told:?}") };
    let mut all = [endpoints.clone(), told.also.clone()].concat();
    all.sort();
    let both: Vec<SocketAddr> = [HERE, THERE].map(|ip| SocketAddr::new(ip.parse().unwrap(), 8080)).into();
    assert_eq!((endpoints.len(), all), (1, both), "{told:?}");
    assert!(told.why.iter().any(|why| why.contains("a known client keeps its endpoint for 60 s")), "{told:?}");
    assert!(told.why.iter().any(|why| why.ends_with(", to a client that is not known")), "{told:?}");
    let without = trace(&desired(&with_detector(), asking(asks(Scheduler::Sh, "")), two()), POD, None, CLUSTER_IP);
    assert!(without.also.is_empty() && !without.why.iter().any(|why| why.contains("known")), "{without:?}");
}

#[test]
fn of_a_socket_without_a_source_nothing_is_said_that_depends_on_it() {
    for scheduler in [Scheduler::Random, Scheduler::Sh, Scheduler::Mh] {
        let got = desired(&with_detector(), asking(asks(scheduler, "")), two());
        let told = trace(&got, "0.0.0.0", None, CLUSTER_IP);
        assert_eq!(told.outcome, to(&[HERE, THERE], false), "{told:?}");
        assert!(told.sourceless && !told.why.iter().any(|why| why.contains("the source ")), "{told:?}");
        // From elsewhere it would be masqueraded, and from a pod not.
        let masquerades =
            |from| matches!(trace(&got, from, None, CLUSTER_IP).outcome, Outcome::Endpoints { masquerade: true, .. });
        assert_eq!((masquerades(OUTSIDE), masquerades(POD)), (true, false));
    }
}
