//! What re-implementations of kube-proxy most often get wrong, a test for each.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::settings::{DatapathSettings, DetectLocal, NodePortAddresses};
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{
    EndpointSlice, Family, Hints, Node, ObjectName, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
};

use super::Desired;
use super::node_view::NodeView;
use super::target::Target;
use super::trace::{Flow, Outcome, Trace};

pub(super) const POD: &str = "10.244.0.7";
const NODE: &str = "172.18.0.2";
pub(super) const OUTSIDE: &str = "192.0.2.9";
const CLUSTER_IP: &str = "10.96.0.1:80";
const NODE_PORT: &str = "172.18.0.2:30080";
const BALANCER: &str = "203.0.113.1:80";
const EXTERNAL: &str = "198.51.100.1:80";
const EXTERNALS: [&str; 3] = [NODE_PORT, BALANCER, EXTERNAL];
pub(super) const HERE: &str = "10.244.0.5";
pub(super) const THERE: &str = "10.244.1.5";

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A service with every kind of frontend, TCP port 80.
pub(super) fn service() -> Service {
    Service {
        name: ObjectName::new("default", "web"),
        created: None,
        kind: "LoadBalancer".into(),
        cluster_ips: vec![ip("10.96.0.1")],
        external_ips: vec![ip("198.51.100.1")],
        load_balancer_ips: vec![ip("203.0.113.1")],
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 30080 }],
        internal_local: false,
        external_local: false,
        affinity: None,
        health_check_node_port: 0,
        scheduling: None,
    }
}

/// A ready endpoint; `node` tells where.
pub(super) fn endpoint(address: &str, node: &str) -> SliceEndpoint {
    SliceEndpoint {
        ip: ip(address),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(node.into()),
        zone: None,
        pod: None,
        hints: None,
    }
}

/// A draining endpoint.
fn draining(address: &str, node: &str) -> SliceEndpoint {
    SliceEndpoint { ready: false, terminating: true, ..endpoint(address, node) }
}

pub(super) fn slice(name: &str, port: u16, endpoints: Vec<SliceEndpoint>) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: ObjectName::new("default", "web"),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port }].into(),
        endpoints,
        trigger_time: None,
    }
}

pub(super) fn with_detector() -> DatapathSettings {
    let pods = DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]);
    DatapathSettings { detect_local: pods, ..DatapathSettings::default() }
}

pub(super) fn view(settings: &DatapathSettings, zone: &str) -> NodeView {
    let node = Node {
        name: "here".into(),
        zone: Some(zone.into()),
        primary_ips: vec![ip(NODE)],
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        deleting: false,
        to_be_deleted: false,
    };
    let held: BTreeSet<IpAddr> = [NODE, "172.19.0.2", "fd00:1::2"].map(ip).into();
    NodeView::new("here".into(), settings, Some(&node), &held)
}

pub(super) fn desired(settings: &DatapathSettings, service: Service, slices: Vec<EndpointSlice>) -> Desired {
    let mut state = State::default();
    state.apply(Event::Service(service));
    slices.into_iter().for_each(|slice| state.apply(Event::Slice(slice)));
    Desired::of(&state, view(settings, "zone-a"))
}

/// With a detector, and these endpoints at port 8080.
fn with(service: Service, endpoints: Vec<SliceEndpoint>) -> Desired {
    desired(&with_detector(), service, vec![slice("web-1", 8080, endpoints)])
}

pub(super) fn trace(desired: &Desired, from: &str, from_port: Option<u16>, to: &str) -> Trace {
    desired.trace(&Flow { from: ip(from), from_port, iif: None, protocol: Protocol::Tcp, to: to.parse().unwrap() })
}

fn go(desired: &Desired, from: &str, to: &str) -> Outcome {
    trace(desired, from, None, to).outcome
}

/// The outcome "one of these", without a hairpin.
pub(super) fn to(endpoints: &[&str], masquerade: bool) -> Outcome {
    let address = |text: &&str| match text.contains(':') {
        true => text.parse().unwrap(),
        false => SocketAddr::new(ip(text), 8080),
    };
    Outcome::Endpoints { endpoints: endpoints.iter().map(address).collect(), masquerade, hairpin: None }
}

pub(super) fn target(desired: &Desired) -> &Target {
    desired.targets().next().unwrap().1
}

#[test]
fn external_local_sends_pods_and_the_node_to_the_whole_cluster() {
    let local = Service { external_local: true, ..service() };
    let both = with(local.clone(), vec![endpoint(HERE, "here"), endpoint(THERE, "there")]);
    let remote = with(local.clone(), vec![endpoint(THERE, "there")]);
    for external in EXTERNALS {
        assert_eq!(go(&both, POD, external), to(&[HERE, THERE], false));
        assert_eq!(go(&both, NODE, external), to(&[HERE, THERE], true));
        assert_eq!(go(&both, OUTSIDE, external), to(&[HERE], false));
        // Also with no endpoint here.
        assert_eq!(go(&remote, POD, external), to(&[THERE], false));
        assert_eq!(go(&remote, NODE, external), to(&[THERE], true));
    }
    // Without a detector a pod is a source like any other.
    let blind = DatapathSettings::default();
    let blind =
        desired(&blind, local, vec![slice("web-1", 8080, vec![endpoint(HERE, "here"), endpoint(THERE, "there")])]);
    assert_eq!(go(&blind, POD, NODE_PORT), to(&[HERE], false));
}

#[test]
fn rejected_only_if_nothing_is_usable_anywhere_and_dropped_if_only_here() {
    let local = Service { external_local: true, internal_local: true, ..service() };
    for service in [service(), local.clone()] {
        let nothing = with(service, vec![SliceEndpoint { ready: false, serving: true, ..endpoint(HERE, "here") }]);
        for frontend in EXTERNALS.into_iter().chain([CLUSTER_IP]) {
            assert_eq!(go(&nothing, OUTSIDE, frontend), Outcome::Reject, "{frontend}");
        }
    }
    // One that is terminating and serves elsewhere is enough.
    for elsewhere in [endpoint(THERE, "there"), draining(THERE, "there")] {
        let elsewhere = with(local.clone(), vec![elsewhere]);
        for frontend in EXTERNALS.into_iter().chain([CLUSTER_IP]) {
            assert_eq!(go(&elsewhere, OUTSIDE, frontend), Outcome::Drop, "{frontend}");
        }
        assert_eq!(go(&elsewhere, POD, CLUSTER_IP), Outcome::Drop);
    }
}

#[test]
fn terminating_endpoints_serve_where_a_list_has_no_other() {
    let local = Service { external_local: true, ..service() };
    let mixed = with(local, vec![draining(HERE, "here"), endpoint(THERE, "there")]);
    assert_eq!(go(&mixed, OUTSIDE, NODE_PORT), to(&[HERE], false), "the Local list falls back");
    assert_eq!(go(&mixed, POD, CLUSTER_IP), to(&[THERE], false), "the Cluster list does not");
    assert_eq!(target(&mixed).endpoints.local_ready, 0, "and never for the health check");
    let deaf = SliceEndpoint { serving: false, ..draining(HERE, "here") };
    assert_eq!(go(&with(service(), vec![deaf]), POD, CLUSTER_IP), Outcome::Reject);
    assert_eq!(go(&with(service(), vec![draining(HERE, "here")]), POD, CLUSTER_IP), to(&[HERE], false));
}

#[test]
fn masquerading_depends_on_the_destination_the_policy_and_the_detector() {
    for internal_local in [false, true] {
        let service = Service { internal_local, ..service() };
        let slices = || vec![slice("web-1", 8080, vec![endpoint(HERE, "here")])];
        let detects = desired(&with_detector(), service.clone(), slices());
        assert_eq!(go(&detects, POD, CLUSTER_IP), to(&[HERE], false));
        assert_eq!(go(&detects, OUTSIDE, CLUSTER_IP), to(&[HERE], true));
        assert_eq!(go(&detects, NODE, CLUSTER_IP), to(&[HERE], true));
        let blind = desired(&DatapathSettings::default(), service.clone(), slices());
        assert_eq!(go(&blind, OUTSIDE, CLUSTER_IP), to(&[HERE], false));
        let all = DatapathSettings { masquerade_all: true, ..DatapathSettings::default() };
        assert_eq!(go(&desired(&all, service, slices()), POD, CLUSTER_IP), to(&[HERE], true));
        for external in EXTERNALS {
            assert_eq!(go(&detects, POD, external), to(&[HERE], true), "pods too");
            assert_eq!(go(&blind, POD, external), to(&[HERE], true));
        }
    }
}

#[test]
fn a_hairpin_is_the_endpoint_that_is_the_source() {
    let both = with(service(), vec![endpoint(HERE, "here"), endpoint(THERE, "there")]);
    let Outcome::Endpoints { masquerade, hairpin, .. } = go(&both, HERE, CLUSTER_IP) else { panic!() };
    assert_eq!((masquerade, hairpin), (false, Some(SocketAddr::new(ip(HERE), 8080))));
    // The only one is chosen in any case.
    let alone = with(service(), vec![endpoint(HERE, "here")]);
    let Outcome::Endpoints { masquerade, hairpin, .. } = go(&alone, HERE, CLUSTER_IP) else { panic!() };
    assert_eq!((masquerade, hairpin), (true, Some(SocketAddr::new(ip(HERE), 8080))));
}

#[test]
fn the_ports_at_the_node_are_node_ports_and_those_of_its_own_addresses() {
    let ports = |service: Service| with(service, Vec::new()).ports_at_node();
    assert_eq!(ports(service()), Some((30_080, 30_080)));
    let own = Service { external_ips: vec![ip("172.18.0.2")], ..service() };
    assert_eq!(ports(own), Some((80, 30_080)), "as an external IP");
    let none = Service { ports: vec![ServicePort { node_port: 0, ..service().ports[0].clone() }], ..service() };
    assert_eq!(ports(none), None);
}

#[test]
fn ports_join_by_name_and_protocol_over_all_slices() {
    let mut udp = slice("web-3", 9090, vec![endpoint("10.244.1.6", "there")]);
    Arc::make_mut(&mut udp.ports)[0].protocol = Protocol::Udp;
    let mut other = slice("web-4", 9090, vec![endpoint("10.244.1.7", "there")]);
    Arc::make_mut(&mut other.ports)[0].name = "".into();
    let slices = vec![
        slice("web-1", 8080, vec![endpoint(HERE, "here")]),
        slice("web-2", 8081, vec![endpoint(THERE, "there")]),
        udp,
        other,
    ];
    let named = desired(&with_detector(), service(), slices.clone());
    assert_eq!(go(&named, POD, CLUSTER_IP), to(&["10.244.0.5:8080", "10.244.1.5:8081"], false));
    let mut unnamed = service();
    unnamed.ports[0].name = "".into();
    assert_eq!(go(&desired(&with_detector(), unnamed, slices), POD, CLUSTER_IP), to(&["10.244.1.7:9090"], false));
}

#[test]
fn hints_count_only_if_every_ready_endpoint_has_one_and_one_is_for_us() {
    let hinted = |address: &str, node: &str, zone: &str, hint: &str| SliceEndpoint {
        hints: Some(Arc::new(Hints {
            zones: if zone.is_empty() { vec![] } else { vec![zone.into()] },
            nodes: if hint.is_empty() { vec![] } else { vec![hint.into()] },
        })),
        ..endpoint(address, node)
    };
    let goes = |here: [&str; 2], there: [&str; 2]| {
        let endpoints = vec![hinted(HERE, "here", here[0], here[1]), hinted(THERE, "there", there[0], there[1])];
        go(&with(service(), endpoints), POD, CLUSTER_IP)
    };
    let all = to(&[HERE, THERE], false);
    assert_eq!(goes(["zone-a", ""], ["zone-b", ""]), to(&[HERE], false));
    assert_eq!(goes(["zone-a", "there"], ["zone-b", "here"]), to(&[THERE], false), "node before zone");
    assert_eq!(goes(["zone-a", "here"], ["zone-b", ""]), to(&[HERE], false), "node hints of some: zones decide");
    assert_eq!(goes(["zone-a", ""], ["", ""]), all, "one has none");
    assert_eq!(goes(["zone-b", ""], ["zone-c", ""]), all, "none for us");
    // Terminating endpoints need none, and Local lists use none.
    let endpoints =
        vec![hinted(HERE, "here", "zone-a", ""), hinted(THERE, "there", "zone-b", ""), draining("10.244.1.6", "there")];
    assert_eq!(go(&with(service(), endpoints), POD, CLUSTER_IP), to(&[HERE], false));
    let local = Service { internal_local: true, ..service() };
    let endpoints = vec![hinted(HERE, "here", "zone-b", ""), hinted(THERE, "there", "zone-a", "")];
    assert_eq!(go(&with(local, endpoints), POD, CLUSTER_IP), to(&[HERE], false));
}

#[test]
fn another_zone_of_this_node_looks_at_every_service_again() {
    let hinted = |address: &str, zone: &str| SliceEndpoint {
        hints: Some(Arc::new(Hints { zones: vec![zone.into()], nodes: vec![] })),
        ..endpoint(address, "there")
    };
    let mut desired = with(service(), vec![hinted(HERE, "zone-a"), hinted(THERE, "zone-b")]);
    assert_eq!(go(&desired, POD, CLUSTER_IP), to(&[HERE], false));
    let mut state = State::default();
    state.apply(Event::Service(service()));
    state.apply(Event::Slice(slice("web-1", 8080, vec![hinted(HERE, "zone-a"), hinted(THERE, "zone-b")])));
    let touched = desired.update(&state, &Default::default(), view(&with_detector(), "zone-b"));
    assert_eq!(go(&desired, POD, CLUSTER_IP), to(&[THERE], false));
    assert_eq!(touched.frontends.len(), 4);
}

#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() {
    let ranged = |ranges: &[&str]| {
        let source_ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        with(Service { source_ranges, ..service() }, vec![endpoint(HERE, "here")])
    };
    let narrow = ranged(&["198.18.0.0/15"]);
    for source in [OUTSIDE, POD, NODE] {
        assert_eq!(go(&narrow, source, BALANCER), Outcome::Drop, "{source}");
    }
    assert_eq!(go(&narrow, "198.18.0.1", BALANCER), to(&[HERE], true));
    assert_eq!(go(&narrow, OUTSIDE, NODE_PORT), to(&[HERE], true));
    assert_eq!(go(&narrow, OUTSIDE, EXTERNAL), to(&[HERE], true));
    assert_eq!(go(&narrow, OUTSIDE, CLUSTER_IP), to(&[HERE], true));
    // The node may send from the address itself if it may send at all.
    assert_eq!(go(&narrow, "203.0.113.1", BALANCER), Outcome::Drop);
    assert_eq!(go(&ranged(&["172.18.0.0/16"]), "203.0.113.1", BALANCER), to(&[HERE], true));
    for open in [&["0.0.0.0/0", "198.18.0.0/15"][..], &["2001:db8::/32"]] {
        assert_eq!(go(&ranged(open), OUTSIDE, BALANCER), to(&[HERE], true), "{open:?}");
    }
    // Somebody blocked is not told that nothing is there.
    let source_ranges = vec!["198.18.0.0/15".parse().unwrap()];
    let empty = with(Service { source_ranges, ..service() }, vec![]);
    assert_eq!(go(&empty, OUTSIDE, BALANCER), Outcome::Drop);
    assert_eq!(go(&empty, "198.18.0.1", BALANCER), Outcome::Reject);
}

#[test]
fn what_serves_keeps_its_udp_flows_whatever_the_policy() {
    let local = Service { internal_local: true, ..service() };
    let silent = SliceEndpoint { ready: false, ..endpoint("10.244.1.7", "there") };
    let gone = SliceEndpoint { ready: false, serving: false, ..endpoint("10.244.1.8", "there") };
    let desired = with(local, vec![endpoint(HERE, "here"), draining(THERE, "there"), silent, gone]);
    let serving = [HERE, THERE, "10.244.1.7"].map(|address| SocketAddr::new(ip(address), 8080));
    assert_eq!(*target(&desired).endpoints.serving, serving);
}

#[test]
fn the_health_check_counts_addresses_of_local_ready_endpoints() {
    let slices = vec![
        slice("web-1", 8080, vec![endpoint(HERE, "here"), draining("10.244.0.6", "here"), endpoint(THERE, "there")]),
        slice("web-2", 8081, vec![endpoint(HERE, "here")]),
    ];
    assert_eq!(target(&desired(&with_detector(), service(), slices)).endpoints.local_ready, 1);
}

#[test]
fn node_ports_answer_at_the_selected_addresses_and_never_at_loopback() {
    let at = |addresses: NodePortAddresses, endpoints: Vec<SliceEndpoint>| {
        let settings = DatapathSettings { node_port_addresses: addresses, ..with_detector() };
        let desired = desired(&settings, service(), vec![slice("web-1", 8080, endpoints)]);
        ["172.18.0.2:30080", "172.19.0.2:30080", "127.0.0.1:30080"].map(|to| {
            let from = if to.starts_with("127") { "127.0.0.1" } else { OUTSIDE };
            go(&desired, from, to)
        })
    };
    let here = || vec![endpoint(HERE, "here")];
    let yes = to(&[HERE], true);
    let none = || Outcome::None;
    assert_eq!(at(NodePortAddresses::Primary(vec![]), here()), [yes.clone(), none(), none()]);
    assert_eq!(at(NodePortAddresses::Primary(vec![]), vec![]), [Outcome::Reject, none(), none()]);
    let cidrs = |text: &str| NodePortAddresses::Cidrs(vec![text.parse().unwrap()]);
    assert_eq!(at(cidrs("172.19.0.0/16"), here()), [none(), yes.clone(), none()]);
    let beside = NodePortAddresses::Primary(vec!["172.19.0.0/16".parse().unwrap()]);
    assert_eq!(at(beside, here()), [yes.clone(), yes.clone(), none()]);
    assert_eq!(at(cidrs("0.0.0.0/0"), here()), [yes.clone(), yes.clone(), none()]);
    assert_eq!(at(cidrs("fd00::/8"), here()), [yes.clone(), yes, none()], "none of the family: all");
}

#[test]
fn the_node_itself_is_treated_as_any_source() {
    let source_ranges = vec!["198.18.0.0/15".parse().unwrap()];
    let ranged = with(Service { source_ranges, ..service() }, vec![endpoint(THERE, "there")]);
    assert_eq!(go(&ranged, NODE, CLUSTER_IP), to(&[THERE], true));
    assert_eq!(go(&ranged, NODE, NODE_PORT), to(&[THERE], true));
    assert_eq!(go(&ranged, NODE, BALANCER), Outcome::Drop);
    assert_eq!(go(&with(service(), vec![]), NODE, CLUSTER_IP), Outcome::Reject);
    assert_eq!(go(&ranged, NODE, "10.96.0.1:81"), Outcome::Reject, "a port that the ClusterIP has not");
}

#[test]
fn a_client_is_known_to_the_service_port_at_all_its_addresses_and_by_the_list_in_force() {
    let sticky = Service { affinity: Some(Duration::from_secs(30)), external_local: true, ..service() };
    let desired = with(sticky, vec![endpoint(HERE, "here"), endpoint(THERE, "there")]);
    assert_eq!(desired.targets().count(), 1, "one target for every frontend");
    assert_eq!(target(&desired).affinity, Some(Duration::from_secs(30)));
    assert_eq!(go(&desired, OUTSIDE, NODE_PORT), to(&[HERE], false));
    assert_eq!(go(&desired, POD, NODE_PORT), to(&[HERE, THERE], false));
    let endpoint = |address: &str| SocketAddr::new(ip(address), 8080);
    assert!(target(&desired).remembered().all(|used| [HERE, THERE].map(endpoint).contains(&used)));
    let name = &target(&desired).name;
    let remembered = [HERE, THERE].map(|ip| (&*name.port, name.protocol, endpoint(ip)));
    assert_eq!(desired.remembered(&name.service), remembered.into());
}

#[test]
fn of_two_endpoints_with_one_address_the_one_that_does_not_terminate_counts() {
    let living = || slice("web-1", 8080, vec![endpoint(HERE, "here")]);
    for slices in [vec![living(), slice("web-2", 8080, vec![draining(HERE, "here")])], {
        let mut living = living();
        living.name = ObjectName::new("default", "web-3");
        vec![slice("web-2", 8080, vec![draining(HERE, "here")]), living]
    }] {
        let desired = desired(&with_detector(), service(), slices);
        assert_eq!((target(&desired).endpoints.ready, &*target(&desired).endpoints.local), (1, &[][..]));
        assert_eq!(go(&desired, POD, CLUSTER_IP), to(&[HERE], false));
    }
}

#[test]
fn one_address_in_several_roles_of_a_service_is_no_conflict() {
    let mut odd = service();
    odd.external_ips = vec![ip("203.0.113.1"), ip("203.0.113.1"), ip("10.96.0.1")];
    odd.load_balancer_ips.push(ip("10.96.0.1"));
    odd.source_ranges = vec!["198.18.0.0/15".parse().unwrap()];
    let desired = with(odd, vec![endpoint(HERE, "here")]);
    assert_eq!(desired.conflicts(), []);
    assert_eq!(go(&desired, OUTSIDE, CLUSTER_IP), to(&[HERE], true), "a ClusterIP first");
    assert_eq!(go(&desired, OUTSIDE, BALANCER), Outcome::Drop, "then a load balancer address, with its ranges");
}
