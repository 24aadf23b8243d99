//! What is too much of one Service, and where nobody's address may be.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::settings::DatapathSettings;
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{EndpointSlice, ObjectName, Service, ServicePort, SliceEndpoint, SlicePort};

use super::limits::{self, CHAINS, ENDPOINTS, FRONTENDS, LOOKS, ROWS, STICKY, STICKY_OF_PORT};
use super::target::Target;
use super::tests::{HERE, OUTSIDE, THERE, desired, endpoint, ip, service, slice, to, trace, view, with_detector};
use super::trace::Outcome;
use super::{Desired, Touched};

fn endpoints(count: u32) -> Vec<SliceEndpoint> {
    let number = |number: u32| IpAddr::from(Ipv4Addr::from_bits(0x0a80_0000 + number));
    (0..count).map(|n| SliceEndpoint { ip: number(n), ..endpoint(HERE, "there") }).collect()
}

fn ports(count: u16) -> Vec<ServicePort> {
    let [port] = <[_; 1]>::try_from(service().ports).unwrap();
    (0..count)
        .map(|n| ServicePort { name: format!("p{n}").into(), port: n + 1, node_port: 0, ..port.clone() })
        .collect()
}

fn told(desired: &Desired) -> Vec<String> {
    desired.unscheduled().map(ToString::to_string).collect()
}

fn conflicts(desired: &Desired) -> Vec<String> {
    desired.conflicts().iter().map(ToString::to_string).collect()
}

#[test]
fn ports_times_addresses_are_bounded_and_the_first_are_served() {
    let external_ips = (0..200u32).map(|n| Ipv4Addr::from_bits(0xc633_6400 + n).into()).collect();
    let many = Service { ports: ports(2000), external_ips, load_balancer_ips: vec![], ..service() };
    let desired = desired(&with_detector(), many, vec![]);
    assert_eq!(desired.frontends().count(), FRONTENDS);
    assert_eq!(trace(&desired, OUTSIDE, None, "10.96.0.1:1").outcome, Outcome::Reject, "the first is served");
    assert_eq!(told(&desired).len(), 1);
    let beyond = 2000 * 201 - FRONTENDS;
    assert!(
        told(&desired)[0].starts_with(&format!("Service default/web: {beyond} frontends ignored")),
        "{:?}",
        told(&desired)
    );
}

#[test]
fn frontends_times_endpoints_are_bounded() {
    let mut all = slice("web", 8080, endpoints(1000));
    all.ports =
        ports(500).into_iter().map(|port| SlicePort { name: port.name, protocol: port.protocol, port: 80 }).collect();
    let many = Service { ports: ports(500), external_ips: vec![], load_balancer_ips: vec![], ..service() };
    let desired = desired(&with_detector(), many, vec![all]);
    assert_eq!(desired.frontends().count(), ROWS / 1001);
    assert_eq!(desired.targets().count(), ROWS / 1001, "what has no frontend is nothing");
    assert!(told(&desired)[0].contains(&format!("{} frontends ignored", 500 - ROWS / 1001)), "{:?}", told(&desired));
}

#[test]
fn of_too_many_endpoints_the_first_are_used() {
    let half = ENDPOINTS as u32 / 2 + 1;
    let (first, second) = (slice("web-1", 8080, endpoints(half)), slice("web-2", 8081, endpoints(half)));
    let one = Service { external_ips: vec![], load_balancer_ips: vec![], ..service() };
    let desired = desired(&DatapathSettings::default(), one, vec![first, second]);
    let lists = &desired.targets().next().unwrap().1.endpoints;
    assert_eq!((lists.cluster.len(), lists.ready), (ENDPOINTS, ENDPOINTS));
    assert!(
        told(&desired)[0].contains("2 endpoints ignored: a port of a Service has room for 65536"),
        "{:?}",
        told(&desired)
    );
}

#[test]
fn chains_of_single_ports_are_bounded() {
    let hour = Some(std::time::Duration::from_secs(3600));
    let many =
        Service { ports: ports(1500), affinity: hour, external_ips: vec![], load_balancer_ips: vec![], ..service() };
    let few = Service { ports: ports(3), ..many.clone() };
    let none = Service { affinity: None, ..many.clone() };
    let desired = desired(&with_detector(), many.clone(), vec![]);
    assert_eq!([&many, &few, &none].map(|service| desired.chains(service, 0)), [CHAINS, 3, 0]);
    let kept = desired.targets().filter(|(_, target, _)| target.affinity == hour).count();
    assert_eq!((desired.targets().count(), kept), (1500, CHAINS));
    assert!(told(&desired)[0].contains("500 ports have no ClientIP affinity and no turn"), "{:?}", told(&desired));
}

/// So many ports of so many endpoints each, in slices of a thousand, which have all ports.
fn wide(count: u16, ends: u32) -> (Service, Vec<EndpointSlice>) {
    let ports = ports(count);
    let one =
        Service { ports: ports.clone(), external_ips: vec![], load_balancer_ips: vec![], kind: "".into(), ..service() };
    let of = |port: &ServicePort| SlicePort { name: port.name.clone(), protocol: port.protocol, port: 80 };
    let all = endpoints(ends);
    let slices = all.chunks(1000).enumerate().map(|(number, some)| EndpointSlice {
        ports: ports.iter().map(of).collect(),
        ..slice(&format!("web-{number:03}"), 80, some.to_vec())
    });
    (one, slices.collect())
}

#[test]
fn rules_of_affinity_are_bounded() {
    let hour = Some(std::time::Duration::from_secs(3600));
    let sticky = |ports: u16, ends: u32, node_port: bool| {
        let (mut one, slices) = wide(ports, ends);
        one.affinity = hour;
        one.ports.iter_mut().filter(|_| node_port).for_each(|port| port.node_port = 30_000 + port.port);
        let desired = desired(&with_detector(), one, slices);
        let used = |target: &Target| target.endpoints.cluster.len() as u32;
        assert!(desired.targets().all(|(_, target, _)| used(target) == ends), "all of them are served");
        let kept = desired.targets().filter(|(_, target, _)| target.affinity == hour).count();
        (kept, told(&desired))
    };
    assert_eq!(sticky(5, 500, true), (5, vec![]), "as large as anybody has them");
    let (kept, told) = sticky(1, 60_000, false);
    assert_eq!(kept, 0);
    assert!(told[0].contains("1 ports have no ClientIP affinity: a port has room for 4096 rules"), "{told:?}");
    let most = STICKY_OF_PORT as u32;
    assert_eq!((sticky(1, most / 2, false).0, sticky(1, most / 2 + 1, false).0), (1, 0));
    assert_eq!((sticky(1, most / 3, true).0, sticky(1, most / 3 + 1, true).0), (1, 0), "looked up in two ways");
    let (kept, told) = sticky(20, 1000, false);
    assert_eq!(kept, STICKY / 2000, "ports × endpoints");
    assert!(told[0].contains(&format!("{} ports have no ClientIP affinity", 20 - kept)), "{told:?}");
}

#[test]
fn a_port_with_too_many_endpoints_for_affinity_takes_it_from_no_other() {
    let (mut one, mut slices) = wide(2, 5000);
    one.affinity = Some(std::time::Duration::from_secs(3600));
    slices.iter_mut().skip(1).for_each(|slice| slice.ports = slice.ports[..1].into());
    let desired = desired(&with_detector(), one, slices);
    let kept = desired.targets().map(|(_, target, _)| target.affinity.is_some());
    assert_eq!(kept.collect::<Vec<_>>(), [false, true]);
}

#[test]
fn endpoints_that_are_not_ready_are_looked_at_up_to_a_limit() {
    let (one, mut slices) = wide(100, 60_000);
    let all = slices.iter_mut().flat_map(|slice| &mut slice.endpoints);
    all.for_each(|endpoint| (endpoint.ready, endpoint.serving) = (false, false));
    let desired = desired(&with_detector(), one, slices);
    let looked = desired.targets().map(|(_, target, _)| target.endpoints.unusable).collect::<Vec<_>>();
    assert_eq!(looked.iter().sum::<usize>(), LOOKS, "{looked:?}");
    let told = told(&desired);
    assert!(told[0].contains("95 frontends ignored") && told[0].contains("262144 endpoints × ports"), "{told:?}");
    assert!(told[1].contains("37856 endpoints ignored"), "{told:?}");
}

#[test]
fn what_there_is_to_look_at_costs_and_so_do_long_chains() {
    let (one, slices) = wide(100, 66_000);
    let of = |one: &Service, slices: &[EndpointSlice]| limits::work(one, slices.iter());
    assert_eq!(of(&one, &slices), ROWS, "no more than is looked at");
    let little = of(&service(), &[slice("web", 80, endpoints(1000))]);
    assert_eq!(
        [of(&one, &slices[..0]), limits::noticed(little), limits::noticed(little + 1000)],
        [0, 0, little + 1000]
    );
    let (few, slices) = wide(10, 1000);
    assert_eq!(of(&few, &slices), 2 * 10 * 1000);
    let desired = desired(&with_detector(), few.clone(), slices);
    let sticky = |one: Service| Service { affinity: Some(std::time::Duration::from_secs(3600)), ..one };
    assert_eq!(desired.chains(&few, ROWS), 0);
    assert_eq!([0, 5000, ROWS].map(|work| desired.chains(&sticky(few.clone()), work)), [10, 15_000 / 16, STICKY / 16]);
}

#[test]
fn a_change_of_endpoints_touches_nobody_elses_claims() {
    let mut state = State::default();
    let ours = Service { external_ips: vec![], load_balancer_ips: vec![], ports: ports(1), ..service() };
    let cluster_ip = ours.cluster_ips[0];
    let (name, external_ips) = (ObjectName::new("default", "other"), vec![cluster_ip]);
    state.apply(Event::Service(Service {
        ports: ports(1000),
        cluster_ips: vec![ip("10.96.0.9")],
        external_ips,
        name,
        ..ours.clone()
    }));
    state.apply(Event::Service(ours.clone()));
    let node = || view(&with_detector(), "zone-a");
    let mut desired = Desired::of(&state, node());
    state.take_changes();
    let mut follow = |event: Event| {
        state.apply(event);
        let touched = desired.update(&state, &state.changes().clone(), node());
        state.take_changes();
        assert_eq!(format!("{desired:?}"), format!("{:?}", Desired::of(&state, node())));
        (touched.frontends.len(), touched.cluster_ips.len())
    };
    let mut ends = slice("web", 8080, vec![endpoint(THERE, "there")]);
    ends.ports = [SlicePort { name: ours.ports[0].name.clone(), ..ends.ports[0].clone() }].into();
    assert_eq!(follow(Event::Slice(ends.clone())), (1, 0), "its own");
    assert_eq!(follow(Event::Slice(EndpointSlice { endpoints: vec![], ..ends })), (1, 0));
    assert_eq!(
        follow(Event::Service(Service { affinity: Some(std::time::Duration::from_secs(9)), ..ours.clone() })),
        (1, 0)
    );
    let older = Service { created: Some("2020-01-01T00:00:00Z".parse().unwrap()), ..ours.clone() };
    assert_eq!(follow(Event::Service(older)), (1000, 1), "its place among those who claim the address");
    assert_eq!(follow(Event::Service(Service { ports: ports(2), ..ours })), (1000, 1), "one more port");
}

#[test]
fn lost_frontends_are_named_up_to_some() {
    let mut state = State::default();
    state.apply(Event::Service(Service {
        ports: ports(100),
        created: Some("2020-01-01T00:00:00Z".parse().unwrap()),
        ..service()
    }));
    let name = ObjectName::new("default", "younger");
    state.apply(Event::Service(Service { ports: ports(100), name, cluster_ips: vec![ip("10.96.0.9")], ..service() }));
    let conflicts = conflicts(&Desired::of(&state, view(&with_detector(), "zone-a")));
    assert_eq!(conflicts.len(), 11, "{conflicts:?}");
    assert_eq!(conflicts[10], "Service default/younger: and 190 more frontends that others serve");
}

#[test]
fn where_the_api_server_answers_is_nobodys_from_the_moment_that_it_is_known() {
    let mut state = State::default();
    let mut web = service();
    web.ports[0].node_port = 6443;
    web.ports[0].port = 6443;
    state.apply(Event::Service(web));
    state.apply(Event::Slice(slice("web", 8080, vec![endpoint(THERE, "there")])));
    let node = || view(&with_detector(), "zone-a");
    let mut desired = Desired::of(&state, node());
    state.take_changes();
    let external = |desired: &Desired| trace(desired, OUTSIDE, None, "198.51.100.1:6443").outcome;
    let node_port = |desired: &Desired| trace(desired, OUTSIDE, None, "172.18.0.2:6443").outcome;
    assert_eq!((external(&desired), node_port(&desired)), (to(&[THERE], true), to(&[THERE], true)));
    let mut api = slice("kubernetes", 6443, vec![endpoint("198.51.100.1", "there")]);
    api.service = ObjectName::new("default", "kubernetes");
    state.apply(Event::Slice(api.clone()));
    let touched = desired.update(&state, &state.changes().clone(), node());
    assert_eq!(touched.frontends.len(), 2, "{touched:?}");
    assert_eq!((external(&desired), node_port(&desired)), (Outcome::None, Outcome::None));
    assert_eq!(trace(&desired, OUTSIDE, None, "203.0.113.1:6443").outcome, to(&[THERE], true), "its other address");
    assert!(
        conflicts(&desired).iter().all(|why| why.contains("where the API server answers")),
        "{:?}",
        conflicts(&desired)
    );
    assert_eq!(conflicts(&desired).len(), 2);
    state.take_changes();
    state.apply(Event::SliceGone(api.name));
    let changes = state.take_changes();
    desired.update(&state, &changes, node());
    assert_eq!((external(&desired), conflicts(&desired).len()), (to(&[THERE], true), 0));
    assert_ne!(Touched::default(), touched);
    // Where we reach it ourselves is a load balancer's address, which no object tells.
    state.apply(Event::ApiServer(["198.51.100.1:6443".parse().unwrap()].into()));
    let changes = state.take_changes();
    assert_eq!(desired.update(&state, &changes, node()).frontends.len(), 2);
    assert_eq!((external(&desired), node_port(&desired)), (Outcome::None, Outcome::None));
    state.apply(Event::ApiServer(["198.51.100.1:6443".parse().unwrap()].into()));
    assert!(state.changes().is_empty(), "nothing new");
    state.apply(Event::ApiServer(BTreeSet::new()));
    desired.update(&state, &state.changes().clone(), node());
    assert_eq!(external(&desired), to(&[THERE], true));
}

#[test]
fn our_own_ports_are_no_node_ports() {
    let settings = DatapathSettings { own_ports: [30080].into(), ..with_detector() };
    let desired = desired(&settings, service(), vec![slice("web", 8080, vec![endpoint(THERE, "there")])]);
    assert_eq!(trace(&desired, OUTSIDE, None, "172.18.0.2:30080").outcome, Outcome::None);
    assert_eq!(trace(&desired, OUTSIDE, None, "203.0.113.1:80").outcome, to(&[THERE], true));
    assert!(
        told(&desired)[0].contains("nodePort 30080 ignored: Kubeferry itself answers there"),
        "{:?}",
        told(&desired)
    );
}
