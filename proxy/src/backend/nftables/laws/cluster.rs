//! Generated clusters: a few names, addresses and ports, so that services share and contest them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::scheduler::weights::Weights;
use crate::scheduler::{HashKey, Schedule, Scheduler};
use crate::settings::{DatapathSettings, DetectLocal, NodePortAddresses};
use crate::state::event::Event;
use crate::state::objects::{
    EndpointSlice, Family, Hints, Node, ObjectName, Protocol, Scheduling, Service, ServiceCidr, ServicePort,
    SliceEndpoint, SlicePort,
};

const SERVICES: [&str; 4] = ["a", "b", "c", "d"];
const CLUSTER_IPS: [[&str; 4]; 2] =
    [["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4"], ["fd00:96::1", "fd00:96::2", "fd00:96::3", "fd00:96::4"]];
const ADDRESSES: [&str; 6] = ["203.0.113.1", "203.0.113.2", "192.168.0.2", "10.96.0.1", "2001:db8::1", "fd00:96::1"];
const RANGES: [&str; 7] =
    ["0.0.0.0/0", "192.168.0.0/16", "10.0.0.0/9", "10.128.0.0/9", "203.0.113.1/32", "2001:db8::/32", "::/0"];
/// The last two are also the node's, and a Service's.
const PODS: [[&str; 5]; 2] = [
    ["10.244.0.1", "10.244.0.2", "10.244.1.1", "192.168.0.2", "10.96.0.2"],
    ["fd00:244::1", "fd00:244::2", "fd00:244::3", "fd00:1::2", "fd00:96::2"],
];
const CIDRS: [&str; 6] = ["10.96.0.0/16", "10.97.0.0/16", "10.1.0.0/16", "10.2.0.0/15", "fd00:96::/112", "255.0.0.0/8"];

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: Vec<&'static str>) -> Vec<T> {
    texts.into_iter().map(|text| text.parse().unwrap()).collect()
}

fn protocol() -> impl Strategy<Value = Protocol> + Clone {
    prop_oneof![3 => Just(Protocol::Tcp), 2 => Just(Protocol::Udp), 1 => Just(Protocol::Sctp)]
}

fn port_name() -> impl Strategy<Value = &'static str> + Clone {
    select(vec!["", "http", "dns"])
}

/// What a Service may ask for that this datapath can do.
fn scheduling() -> impl Strategy<Value = Option<Scheduling>> {
    let scheduler = Scheduler::ALL.into_iter().filter(|scheduler| !scheduler.counts_connections()).map(Some);
    let scheduler = select(std::iter::once(None).chain(scheduler).collect::<Vec<_>>());
    let hash_key = select(vec![None, Some(HashKey::Source), Some(HashKey::SourceAndPort)]);
    let weights = select(vec![
        "10.244.0.1=3,fd00:244::1=3",
        "node/here=2,10.244.0.2=5",
        "node/here=0",
        "node/there=4,node/here=6,fd00:244::2=0",
        "10.244.0.1=0,10.244.0.2=0,10.244.1.1=0,192.168.0.2=0",
    ]);
    let weights = prop_oneof![1 => Just(Weights::default()), 2 => weights.prop_map(|text| text.parse().unwrap())];
    let some = (scheduler, hash_key, weights)
        .prop_map(|(scheduler, hash_key, weights)| Some(Scheduling { scheduler, hash_key, weights, slow_start: None }));
    prop_oneof![1 => Just(None), 3 => some]
}

/// A Service with one to three ports.
pub(crate) fn service() -> impl Strategy<Value = Service> {
    let port = (port_name(), protocol(), select(vec![80u16, 53]), select(vec![0u16, 0, 30001, 30002]));
    let ips = (0..4usize, 0..4usize, 0..3u8);
    // With repetition: an address may be listed twice.
    let addresses = || vec(select(ADDRESSES.to_vec()), 0..3);
    (
        (select(SERVICES.to_vec()), ips, addresses(), addresses(), subsequence(RANGES.to_vec(), 0..3)),
        (vec(port, 1..4), any::<[bool; 2]>(), select(vec![None, None, Some(10), Some(60)]), 0..3i64, scheduling()),
    )
        .prop_map(
            |(
                (service, (v4, v6, families), external, balancer, ranges),
                (ports, local, affinity, created, scheduling),
            )| {
                let v4: IpAddr = CLUSTER_IPS[0][v4].parse().unwrap();
                let v6: IpAddr = CLUSTER_IPS[1][v6].parse().unwrap();
                let mut seen = std::collections::BTreeSet::new();
                let ports = ports.into_iter().filter(|(name, protocol, ..)| seen.insert((*name, *protocol))).map(
                    |(name, protocol, port, node_port)| ServicePort { name: name.into(), protocol, port, node_port },
                );
                Service {
                    name: name(service),
                    created: (created > 0).then(|| Timestamp::from_second(created).unwrap()),
                    kind: "LoadBalancer".into(),
                    cluster_ips: match families {
                        0 => vec![v4],
                        1 => vec![v6],
                        _ => vec![v4, v6],
                    },
                    external_ips: parsed(external),
                    load_balancer_ips: parsed(balancer),
                    source_ranges: parsed(ranges),
                    ports: ports.collect(),
                    internal_local: local[0],
                    external_local: local[1],
                    affinity: affinity.map(Duration::from_secs),
                    health_check_node_port: 0,
                    scheduling: scheduling.map(Box::new),
                }
            },
        )
}

fn endpoint(family: Family) -> impl Strategy<Value = SliceEndpoint> {
    // Hints count only where every endpoint has one.
    let words = |of: [&'static str; 2]| prop_oneof![1 => Just(Vec::new()), 4 => subsequence(of.to_vec(), 1..=2)];
    (
        select(PODS[family as usize].to_vec()),
        prop_oneof![4 => Just((true, true, false)), 1 => any::<(bool, bool, bool)>()],
        select(vec![None, Some("here"), Some("there")]),
        words(["zone-a", "zone-b"]),
        words(["here", "there"]),
    )
        .prop_map(|(ip, (ready, serving, terminating), node, zones, nodes)| SliceEndpoint {
            ip: ip.parse().unwrap(),
            ready,
            serving,
            terminating,
            node: node.map(Arc::from),
            zone: None,
            pod: None,
            hints: Some(Arc::new(Hints {
                zones: zones.into_iter().map(Arc::from).collect(),
                nodes: nodes.into_iter().map(Arc::from).collect(),
            })),
        })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let port = (port_name(), protocol(), select(vec![8080u16, 5353, 80, 30001]))
        .prop_map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port });
    select(Family::BOTH.to_vec()).prop_flat_map(move |family| {
        (0..5u8, select(SERVICES.to_vec()), vec(port.clone(), 1..4), vec(endpoint(family), 0..5)).prop_map(
            move |(slice, service, ports, endpoints)| EndpointSlice {
                name: name(&format!("slice-{slice}")),
                service: name(service),
                family,
                ports: ports.into(),
                endpoints,
                trigger_time: None,
            },
        )
    })
}

fn node() -> impl Strategy<Value = Node> {
    let primary = select(vec![vec![], vec!["192.168.0.2"], vec!["192.168.0.2", "fd00:1::2"]]);
    let ranges = select(vec![vec![], vec!["10.244.0.0/24"], vec!["10.244.0.0/24", "fd00:244::/64"]]);
    (select(vec![None, Some("zone-a"), Some("zone-b")]), primary, ranges).prop_map(|(zone, primary, ranges)| Node {
        name: "here".into(),
        zone: zone.map(Arc::from),
        primary_ips: parsed(primary),
        addresses: Vec::new(),
        pod_cidrs: parsed(ranges),
        deleting: false,
        to_be_deleted: false,
    })
}

/// One event about one of the few objects.
pub(crate) fn event() -> impl Strategy<Value = Event> {
    let cidr = (0..2u8, subsequence(CIDRS.to_vec(), 0..4)).prop_map(|(name, cidrs)| {
        Event::ServiceCidr(ServiceCidr { name: format!("cidr-{name}").into(), cidrs: parsed::<IpNet>(cidrs) })
    });
    prop_oneof![
        8 => service().prop_map(Event::Service),
        2 => select(SERVICES.to_vec()).prop_map(|service| Event::ServiceGone(name(service))),
        10 => slice().prop_map(Event::Slice),
        2 => (0..5u8).prop_map(|slice| Event::SliceGone(name(&format!("slice-{slice}")))),
        3 => node().prop_map(Event::Node),
        1 => cidr,
        1 => (0..2u8).prop_map(|name| Event::ServiceCidrGone(ObjectName::new("", &format!("cidr-{name}")))),
    ]
}

/// What happens to a cluster.
pub(crate) fn history() -> impl Strategy<Value = Vec<Event>> {
    vec(event(), 1..24)
}

/// Settings that decide about rows.
pub(crate) fn settings() -> impl Strategy<Value = DatapathSettings> {
    let detect = select(vec![
        DetectLocal::NodeCidr,
        DetectLocal::ClusterCidr(Vec::new()),
        DetectLocal::ClusterCidr(parsed(vec!["10.244.0.0/16"])),
        DetectLocal::BridgeInterface("cbr0".into()),
    ]);
    let addresses = select(vec![
        NodePortAddresses::Primary(Vec::new()),
        NodePortAddresses::Cidrs(parsed(vec!["192.168.0.0/16", "::/0"])),
    ]);
    let scheduler = select(vec![Scheduler::Random, Scheduler::Random, Scheduler::Rr, Scheduler::Mh]);
    (detect, addresses, any::<bool>(), scheduler).prop_map(
        |(detect_local, node_port_addresses, masquerade_all, scheduler)| {
            // A small prime, so that tables of mh are small.
            let schedule = Schedule { scheduler, table_size: 11, ..Schedule::default() };
            DatapathSettings {
                detect_local,
                node_port_addresses,
                masquerade_all,
                schedule,
                ..DatapathSettings::default()
            }
        },
    )
}

/// Which object an event is about.
pub(crate) fn object(event: &Event) -> String {
    match event {
        Event::Service(Service { name, .. }) | Event::ServiceGone(name) => format!("service {name}"),
        Event::Slice(EndpointSlice { name, .. }) | Event::SliceGone(name) => format!("slice {name}"),
        Event::ServiceCidr(ServiceCidr { name, .. }) => format!("cidr {name}"),
        Event::ServiceCidrGone(name) => format!("cidr {name}"),
        _ => "other".into(),
    }
}
