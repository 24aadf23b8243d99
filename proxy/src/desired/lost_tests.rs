//! What is counted of lost claims, held against what all claims say.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::desired::Desired;
use crate::desired::tests::{HERE, endpoint, ip, service, slice, view, with_detector};
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{Service, ServicePort};

/// Of all claims, one by one.
fn plain(frontends: &Frontends) -> Vec<(ObjectName, Ignored)> {
    let (mut out, mut lost) = (Vec::new(), BTreeMap::<&ObjectName, usize>::new());
    for (frontend, claims) in &frontends.claims {
        let holder = frontends.holder(frontend);
        for (rank, target) in claims {
            if holder.is_some_and(|holder| holder.target.name == target.name) {
                continue;
            }
            let lost = lost.entry(rank.service()).or_default();
            *lost += 1;
            if *lost <= CONFLICTS_NAMED {
                out.push((rank.service().clone(), frontends.told(frontend, target)));
            }
        }
    }
    out.extend(lost.into_iter().filter(|(_, lost)| *lost > CONFLICTS_NAMED).map(|(service, lost)| {
        let (what, more) = (format!("Service {service}"), lost - CONFLICTS_NAMED);
        (service.clone(), Ignored { what, why: format!("and {more} more frontends that others serve") })
    }));
    out
}

/// A Service of a few addresses, with so many ports that some are the same, and the API server's.
fn any_service() -> impl Strategy<Value = Event> {
    let address = || select(vec!["10.96.0.1", "10.96.0.2", "203.0.113.1", "203.0.113.2", HERE]);
    let port = (select(vec![80_u16, 81, 82, 83, 84, 6443]), select(vec![0_u16, 0, 30_000, 30_001, 6443]));
    let addresses = (select(vec!["10.96.0.1", "10.96.0.2", "10.96.0.3"]), vec(address(), 0..3), vec(address(), 0..3));
    (0..4_usize, 0..3_i64, addresses, vec(port, 1..16)).prop_map(
        |(name, created, (cluster, external, balancer), ports)| {
            let port = |(at, (port, node_port)): (usize, (u16, u16))| ServicePort {
                name: format!("p{at}").into(),
                port,
                node_port,
                protocol: Protocol::Tcp,
            };
            Event::Service(Service {
                name: ObjectName::new("default", &format!("s{name}")),
                created: (created > 0).then(|| jiff::Timestamp::from_second(created).unwrap()),
                cluster_ips: vec![ip(cluster)],
                external_ips: external.into_iter().map(ip).collect(),
                load_balancer_ips: balancer.into_iter().map(ip).collect(),
                ports: ports.into_iter().enumerate().map(port).collect(),
                ..service()
            })
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    let name = |number| ObjectName::new("default", &format!("s{number}"));
    let answers = |some| {
        let at = if some { vec![endpoint(HERE, "here")] } else { vec![] };
        let (service, slice) = (ObjectName::new("default", "kubernetes"), slice("kubernetes", 6443, at));
        Event::Slice(crate::state::objects::EndpointSlice { service, ..slice })
    };
    prop_oneof![
        6 => any_service(),
        2 => (0..4_usize).prop_map(move |number| Event::ServiceGone(name(number))),
        1 => any::<bool>().prop_map(answers),
    ]
}

fn follow(desired: &mut Desired, state: &mut State, event: Event) {
    state.apply(event);
    let changes = state.take_changes();
    desired.update(state, &changes, view(&with_detector(), "zone-a"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn after_every_change_the_losers_are_told_what_all_claims_say(events in vec(any_event(), 1..12)) {
        let (mut desired, mut state) = (Desired::new(view(&with_detector(), "zone-a")), State::default());
        for event in events {
            follow(&mut desired, &mut state, event);
            prop_assert_eq!(desired.lost_claims(), plain(&desired.frontends));
        }
        for name in state.services().keys().cloned().collect::<Vec<_>>() {
            follow(&mut desired, &mut state, Event::ServiceGone(name));
        }
        prop_assert!(desired.frontends.lost.first(1).is_empty() && desired.frontends.unheld.is_empty());
    }
}

#[test]
fn only_the_frontends_that_are_named_are_gone_through() {
    let (mut desired, mut state) = (Desired::new(view(&with_detector(), "zone-a")), State::default());
    let [port] = <[_; 1]>::try_from(service().ports).unwrap();
    let numbered = |n: u16| ServicePort { name: format!("p{n}").into(), port: n + 1, node_port: 0, ..port.clone() };
    let ports: Vec<_> = (0..1000).map(numbered).collect();
    for (name, cluster) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
        let name = ObjectName::new("default", name);
        follow(
            &mut desired,
            &mut state,
            Event::Service(Service {
                name,
                cluster_ips: vec![ip(cluster)],
                load_balancer_ips: vec![],
                ports: ports.clone(),
                ..service()
            }),
        );
    }
    let told = desired.lost_claims();
    assert_eq!(told, plain(&desired.frontends));
    assert_eq!(told.len(), 2 * (CONFLICTS_NAMED + 1));
    assert!(told.last().unwrap().1.why.starts_with("and 990 more frontends"), "{told:?}");
    assert_eq!(desired.frontends.lost.first(CONFLICTS_NAMED).len(), CONFLICTS_NAMED, "of 1000 that both have lost");
}
