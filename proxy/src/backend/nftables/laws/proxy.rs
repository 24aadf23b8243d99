//! The proxy over a kernel that fails: nothing is lost, and nothing is written too early.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::backend::nftables::chains::{Chain, Choice};
use crate::backend::nftables::fake::{Fake, Faults};
use crate::backend::nftables::kernel::Kernel;
use crate::backend::nftables::laws::World;
use crate::backend::nftables::reconciler::Reconciler;
use crate::backend::nftables::rows::{Rows, Wanted};
use crate::desired::node_view::NodePorts;
use crate::desired::target::Frontend;
use crate::desired::trace::Flow;
use crate::proxy::{NODE_WAIT, Proxy};
use crate::settings::{BackendName, DatapathSettings, DetectLocal, EbpfSettings, LogSettings, Settings, Source};
use crate::state::convert;
use crate::state::event::{Event, Kind};
use crate::state::objects::{
    EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
};

use super::cluster::{event, history, service};
use super::faults::slotless;

fn settings(detect_local: DetectLocal) -> Settings {
    Settings {
        backend: BackendName::Nftables,
        mode: crate::settings::ProxyMode::Nftables,
        ebpf: EbpfSettings::default(),
        node_name: "here".into(),
        source: Source::Manifests("manifests".into()),
        datapath: DatapathSettings { detect_local, ..DatapathSettings::default() },
        node_addresses: Vec::new(),
        sync_period: Duration::from_secs(30),
        min_sync_period: Duration::ZERO,
        healthz: None,
        metrics: None,
        bind_hard_fail: false,
        profiling: false,
        show_hidden_metrics: None,
        node: crate::settings::NodeSettings::default(),
        once: false,
        log: LogSettings::default(),
    }
}

fn held(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses.iter().map(|ip| ip.parse().unwrap()).collect()
}

pub(super) fn proxy(fake: Fake) -> Proxy<Reconciler<Fake>> {
    let settings = settings(DetectLocal::ClusterCidr(Vec::new()));
    Proxy::new(settings, Reconciler::new(fake), held(&["192.168.0.2"]))
}

/// A Service of so many ports, with a slice of so many endpoints at each, ready or not.
fn wide(number: u16, ports: u16, endpoints: u16, affinity: bool) -> [Event; 2] {
    let name = ObjectName::new(&format!("n{number}"), "web");
    let service_port =
        |n: u16| ServicePort { name: format!("p{n}").into(), protocol: Protocol::Tcp, port: n + 1, node_port: 0 };
    let slice_port = |n: u16| SlicePort { name: format!("p{n}").into(), protocol: Protocol::Tcp, port: 8080 };
    let service = Service {
        name: name.clone(),
        created: None,
        kind: "ClusterIP".into(),
        cluster_ips: vec![[10, 96, 1, number as u8].into()],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: (0..ports).map(service_port).collect(),
        internal_local: false,
        external_local: false,
        affinity: affinity.then_some(Duration::from_secs(60)),
        health_check_node_port: 0,
        scheduling: None,
    };
    let endpoint = |n: u16| SliceEndpoint {
        ip: [10, 244, (n >> 8) as u8, n as u8].into(),
        ready: affinity,
        serving: affinity,
        terminating: false,
        node: None,
        zone: None,
        pod: None,
        hints: None,
    };
    let slice = EndpointSlice {
        name: name.clone(),
        service: name,
        family: Family::V4,
        ports: (0..ports).map(slice_port).collect(),
        endpoints: (0..endpoints).map(endpoint).collect(),
        trigger_time: None,
    };
    [Event::Service(service), Event::Slice(slice)]
}

#[test]
fn endpoints_that_are_not_ready_and_long_chains_come_by_portions() {
    for (ports, endpoints, affinity) in [(30, 100, false), (2, 1500, true), (1, 2000, true)] {
        let mut proxy = proxy(Fake::default());
        let all = |endpoints: u16| (1..=3).flat_map(move |number| wide(number, ports, endpoints, affinity));
        all(endpoints).chain(wide(9, 1, 1, false)).for_each(|event| proxy.apply(event));
        proxy.sync().unwrap();
        proxy.backend_mut().chains_at_once = 20;
        // One endpoint less of each, and of a small one beside them the only one.
        all(endpoints - 1).chain(wide(9, 1, 0, false)).for_each(|event| proxy.apply(event));
        for waiting in [2, 1, 0] {
            let synced = proxy.sync().unwrap();
            let small = synced.changes.services.contains(&ObjectName::new("n9", "web"));
            assert_eq!((proxy.waiting().0, small), (waiting, waiting == 2), "the small one first");
        }
    }
}

#[test]
fn known_clients_of_a_port_are_numbered_once_for_all_its_frontends() {
    let mut proxy = proxy(Fake::default());
    let [service, slice] = wide(1, 1, 3, true);
    let Event::Service(mut service) = service else { unreachable!() };
    service.ports[0].node_port = 30_000;
    service.external_ips = (0..9).map(|n| [198, 51, 100, n].into()).collect();
    [Event::Service(service), slice].into_iter().for_each(|event| proxy.apply(event));
    proxy.sync().unwrap();
    let wanted = Wanted::all(proxy.desired(), &Rows::new());
    let known = wanted.chains.values().filter_map(|chain| match chain {
        Chain::Pick(_, Choice { sticky, .. }) => sticky.as_ref(),
        _ => None,
    });
    let known: Vec<_> = known.collect();
    assert_eq!(known.len(), 2, "looked up by address, and by node port alone");
    assert!(Arc::ptr_eq(known[0], known[1]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_a_failed_sync_should_have_done_is_kept(history in history(), next in event(), new_address in any::<bool>()) {
        let mut proxy = proxy(Fake::default());
        history.into_iter().for_each(|event| proxy.apply(event));
        prop_assert!(proxy.is_dirty() && !proxy.has_synced());
        proxy.sync().unwrap();
        prop_assert!(!proxy.is_dirty() && proxy.has_synced());
        proxy.apply(next);
        if new_address {
            proxy.addresses(held(&["192.168.0.2", "172.18.0.2"]));
        }
        let (dirty, expected) = (proxy.is_dirty(), proxy.state().changes().clone());
        proxy.backend_mut().kernel().faults = Faults { commits: 2, reads: 1, ..Faults::default() };
        if proxy.sync().is_err() {
            prop_assert!(dirty && proxy.is_dirty() && proxy.has_failed());
            prop_assert_eq!(proxy.waiting(), (expected.services.len(), expected.endpoints_of.len()));
            proxy.backend_mut().kernel().faults = Faults::default();
            let synced = proxy.sync().unwrap();
            prop_assert_eq!(synced.changes, expected);
        }
        prop_assert!(!proxy.is_dirty() && !proxy.has_failed());
        prop_assert_eq!(proxy.waiting(), (0, 0));
    }

    #[test]
    fn what_a_failed_sync_was_to_bring_is_taken_as_it_is_now(first in history(), then in service(), now in service()) {
        let mut proxy = proxy(Fake::default());
        first.into_iter().for_each(|event| proxy.apply(event));
        proxy.sync().unwrap();
        proxy.backend_mut().chains_at_once = 1;
        let now = Service { name: then.name.clone(), ..now };
        proxy.apply(Event::Service(then));
        proxy.backend_mut().kernel().faults = Faults { commits: 2, reads: 1, ..Faults::default() };
        if proxy.sync().is_err() {
            proxy.apply(Event::Service(now));
            proxy.backend_mut().kernel().faults = Faults::default();
            proxy.sync().unwrap();
            prop_assert_eq!(proxy.waiting(), (0, 0));
        }
    }

    #[test]
    fn portion_by_portion_it_ends_where_a_fresh_start_would(first in history(), then in history(), at in any::<bool>()) {
        let (mut proxy, mut fresh) = (proxy(Fake::default()), proxy(Fake::default()));
        first.iter().for_each(|event| proxy.apply(event.clone()));
        proxy.sync().unwrap();
        proxy.backend_mut().chains_at_once = 1;
        for event in &then {
            proxy.apply(event.clone());
            if at {
                proxy.sync().unwrap();
            }
        }
        let mut waiting = proxy.waiting().0;
        while proxy.is_dirty() {
            proxy.sync().unwrap();
            // Who is late has nothing that is for others now.
            prop_assert!(!proxy.state().services().values().any(|service| proxy.desired().gives_up(service)));
            let left = proxy.waiting().0;
            prop_assert!(left < waiting || left == 0, "{} of {} wait", left, waiting);
            waiting = left;
        }
        first.into_iter().chain(then).for_each(|event| fresh.apply(event));
        fresh.sync().unwrap();
        let [rows, expected] = [&mut proxy, &mut fresh].map(|proxy| slotless(&proxy.backend_mut().kernel().rows()));
        prop_assert_eq!(rows, expected);
    }

    #[test]
    fn stale_udp_flows_are_held_to_every_held_address_and_serving_endpoint(history in history()) {
        let mut proxy = proxy(Fake::default());
        history.into_iter().for_each(|event| proxy.apply(event));
        let changed = proxy.sync().unwrap().stale;
        let services = proxy.udp_services(&changed);
        let mut addresses = BTreeSet::new();
        for service in proxy.state().services().values() {
            for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
                let served = |ip: &&IpAddr| service.cluster_ips.iter().any(|other| Family::of(*other) == Family::of(**ip));
                let ips = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
                // What another Service won is none of ours.
                let held = |ip: &&IpAddr| {
                    let frontend = Frontend::Address { ip: **ip, protocol: Protocol::Udp, port: port.port };
                    proxy.desired().holder(&frontend).is_some_and(|claim| {
                        claim.target.name.service == service.name && claim.target.name.port == port.name
                    })
                };
                addresses.extend(ips.filter(served).filter(held).map(|ip| (*ip, port.port)));
            }
        }
        let found = services.iter().flat_map(|service| &service.addresses).map(|address| (address.ip(), address.port()));
        prop_assert_eq!(found.collect::<BTreeSet<_>>(), addresses);
        for service in &services {
            let of_slices = changed.iter().flat_map(|name| proxy.state().slices_of(name)).flat_map(|slice| &slice.endpoints);
            let serving: BTreeSet<IpAddr> =
                of_slices.filter(|endpoint| endpoint.serving || endpoint.ready).map(|endpoint| endpoint.ip).collect();
            prop_assert!(service.serving.iter().all(|endpoint| serving.contains(&endpoint.ip())));
        }
    }
}

#[test]
fn nothing_is_written_before_everything_is_listed() {
    let mut proxy = proxy(Fake::default());
    let mut known = |kind: Option<Kind>, waited: Duration| {
        kind.into_iter().for_each(|kind| proxy.apply(Event::Listed(kind)));
        proxy.is_ready(waited)
    };
    assert!(!known(None, NODE_WAIT));
    assert!(!known(Some(Kind::Service), NODE_WAIT), "half of it is worse than the rules of before");
    assert!(!known(Some(Kind::EndpointSlice), Duration::ZERO));
    assert!(known(None, NODE_WAIT), "the Node does not keep us waiting for good");
    assert!(!known(Some(Kind::Node), Duration::ZERO));
    assert!(known(Some(Kind::ServiceCidr), Duration::ZERO));
    let mut by_node_ranges =
        Proxy::new(settings(DetectLocal::NodeCidr), Reconciler::new(Fake::default()), BTreeSet::new());
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr] {
        by_node_ranges.apply(Event::Listed(kind));
    }
    assert!(!by_node_ranges.is_ready(NODE_WAIT), "pods could not be told apart");
}

#[test]
fn a_node_that_is_gone_changes_nothing_and_one_that_is_not_there_is_waited_for() {
    let api = Source::Api { kubeconfig: None, server: Some("127.0.0.1:6443".into()) };
    let settings = Settings { source: api, ..settings(DetectLocal::ClusterCidr(Vec::new())) };
    let mut proxy = Proxy::new(settings, Reconciler::new(Fake::default()), held(&["192.168.0.2", "203.0.113.7"]));
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr] {
        proxy.apply(Event::Listed(kind));
    }
    assert!(!proxy.is_ready(Duration::ZERO), "node ports would answer at every address");
    assert!(proxy.is_ready(NODE_WAIT));
    let node = serde_json::json!({"metadata": {"name": "here"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]}});
    proxy.apply(Event::Node(convert::node(&serde_json::from_value(node).unwrap()).object.unwrap()));
    assert!(proxy.is_ready(Duration::ZERO));
    proxy.sync().unwrap();
    let view = proxy.desired().node().clone();
    assert_ne!(view.node_ports[0], NodePorts::All);
    proxy.apply(Event::NodeGone);
    assert!(proxy.state().node_is_gone() && !proxy.is_dirty());
    assert_eq!(proxy.sync().unwrap().report.changes, 0);
    assert_eq!(*proxy.desired().node(), view);
}

#[test]
fn a_check_before_the_first_sync_leaves_old_rules_alone() {
    let mut fake = Fake::default();
    fake.load("table inet kubeferry {\n comment \"an earlier run\"\n }\n").unwrap();
    let generation = fake.generation().unwrap();
    let mut proxy = proxy(fake);
    assert_eq!(proxy.check().unwrap(), None);
    let (from, to) = ("10.244.1.7".parse().unwrap(), "10.96.0.1:80".parse().unwrap());
    let flow = Flow { from, from_port: None, iif: None, protocol: Protocol::Tcp, to };
    assert!(proxy.trace(&flow).changed.is_some(), "packets meet rules that the model does not know");
    assert_eq!(proxy.backend_mut().kernel().generation().unwrap(), generation);
}

#[test]
fn an_address_that_comes_or_goes_looks_at_no_service_again() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let history = proptest::strategy::ValueTree::current(&history().new_tree(&mut runner).unwrap());
    let mut world = World::new(DatapathSettings::default());
    for event in history {
        world.step(event).unwrap();
    }
    world.held.insert("fe80::1".parse().unwrap());
    let touched = world.desired.update(&world.state, &Default::default(), world.view());
    assert!(touched.node && touched.frontends.is_empty(), "{touched:?}");
    assert!(!world.reconciler.sync(&world.desired, touched).unwrap().full);
    world.assert_in_force();
}
