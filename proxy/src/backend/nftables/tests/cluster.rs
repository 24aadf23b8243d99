//! Services of every shape.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::desired::node_view::NodeView;
use crate::scheduler::{HashKey, Scheduler};
use crate::settings::{DatapathSettings, DetectLocal};
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{
    EndpointSlice, Family, ObjectName, Protocol, Scheduling, Service, ServiceCidr, ServicePort, SliceEndpoint,
    SlicePort,
};

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn service(name: &str, cluster_ips: &[&str]) -> Service {
    let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    Service {
        name: ObjectName::new("default", name),
        created: None,
        kind: "ClusterIP".into(),
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![port("http", Protocol::Tcp, 80, 0), port("dns", Protocol::Udp, 53, 0)],
        internal_local: false,
        external_local: false,
        affinity: None,
        health_check_node_port: 0,
        scheduling: None,
    }
}

pub(super) fn slice(service: &str, family: Family, ips: &[&str]) -> EndpointSlice {
    let port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
    let endpoint = |(index, text): (usize, &&str)| SliceEndpoint {
        ip: ip(text),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(if index % 2 == 0 { "here".into() } else { "there".into() }),
        zone: None,
        pod: None,
        hints: None,
    };
    EndpointSlice {
        name: ObjectName::new("default", &format!("{service}-{}", family.as_str())),
        service: ObjectName::new("default", service),
        family,
        ports: [port("http", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 5353)].into(),
        endpoints: ips.iter().enumerate().map(endpoint).collect(),
        trigger_time: None,
    }
}

pub(super) fn view(detect: &[&str]) -> NodeView {
    let nets = detect.iter().map(|net| net.parse().unwrap()).collect();
    let settings = DatapathSettings { detect_local: DetectLocal::ClusterCidr(nets), ..DatapathSettings::default() };
    let node = crate::state::objects::Node {
        name: "here".into(),
        zone: None,
        primary_ips: vec![ip("192.168.0.2")],
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        deleting: false,
        to_be_deleted: false,
    };
    let held: BTreeSet<IpAddr> = ["192.168.0.2", "fd00:1::2"].map(ip).into();
    NodeView::new("here".into(), &settings, Some(&node), &held)
}

/// Services of every shape, so that every kind of chain and every map is in use.
pub(super) fn cluster() -> State {
    let mut state = State::default();
    let v4 = ["10.244.0.1", "10.244.1.2", "10.244.1.3"];
    let v6 = ["fd00:244::1", "fd00:244::2", "fd00:244::3"];
    let dual = |name: &str, number: u8| {
        let mut service = service(name, &[&format!("10.96.0.{number}"), &format!("fd00:96::{number}")]);
        service.load_balancer_ips = vec![ip(&format!("203.0.113.{number}")), ip(&format!("2001:db8::{number}"))];
        service.external_ips = vec![ip(&format!("198.51.100.{number}"))];
        service.ports[0].node_port = 30000 + u16::from(number);
        service
    };
    let plain = dual("plain", 1);
    let local = Service { external_local: true, internal_local: true, ..dual("local", 2) };
    let sticky = Service { affinity: Some(Duration::from_secs(60)), external_local: true, ..dual("sticky", 3) };
    let mut ranged = dual("ranged", 4);
    ranged.source_ranges =
        ["192.168.0.0/16", "172.16.4.0/22", "2001:db8:1::/47"].map(|net| net.parse().unwrap()).to_vec();
    let asked = |scheduler, hash_key| {
        Some(Box::new(Scheduling { scheduler: Some(scheduler), hash_key: Some(hash_key), ..Scheduling::default() }))
    };
    let source = HashKey::Source;
    let sh = Service { scheduling: asked(Scheduler::Sh, source), ..dual("sh", 6) };
    let dh = Service { scheduling: asked(Scheduler::Dh, source), external_local: true, ..dual("dh", 7) };
    let scheduling = asked(Scheduler::Sh, HashKey::SourceAndPort);
    let by_port = Service { scheduling, affinity: Some(Duration::from_secs(60)), ..dual("by-port", 8) };
    let rr = Service { scheduling: asked(Scheduler::Rr, source), external_local: true, ..dual("rr", 9) };
    let affinity = Some(Duration::from_secs(60));
    let wrr = Service { scheduling: asked(Scheduler::Wrr, source), affinity, ..dual("wrr", 10) };
    for service in [plain, local, sticky, ranged, sh, dh, by_port, rr, wrr] {
        let (name, service_asks) = (service.name.name.to_string(), service.scheduling.is_some());
        state.apply(Event::Service(service));
        state.apply(Event::Slice(slice(&name, Family::V4, &v4)));
        // Of more than two, so that two are local.
        let v6 = if service_asks { &v6[..] } else { &v6[..2] };
        state.apply(Event::Slice(slice(&name, Family::V6, v6)));
    }
    state.apply(Event::Service(dual("empty", 5)));
    let cidrs =
        ["10.96.0.0/16", "10.97.0.0/16", "10.99.0.0/20", "fd00:96::/112"].map(|net| net.parse().unwrap()).to_vec();
    state.apply(Event::ServiceCidr(ServiceCidr { name: "kubernetes".into(), cidrs }));
    state
}
