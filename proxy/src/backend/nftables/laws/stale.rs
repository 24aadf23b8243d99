//! Whose UDP flows are looked for after a change, whatever it was of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use jiff::Timestamp;
use proptest::prelude::*;

use crate::backend::nftables::fake::{Fake, Faults};
use crate::backend::nftables::reconciler::Reconciler;
use crate::desired::target::Frontend;
use crate::proxy::Proxy;
use crate::state::event::Event;
use crate::state::objects::{
    EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort, SliceEndpoint, SlicePort,
};

use super::cluster::{event, history};
use super::proxy::proxy;

/// Where UDP goes: by held frontend, whose it is and who serves.
fn served(proxy: &Proxy<Reconciler<Fake>>) -> BTreeMap<Frontend, (ObjectName, BTreeSet<SocketAddr>)> {
    let desired = proxy.desired();
    let udp = desired.frontends().filter(|frontend| frontend.protocol() == Protocol::Udp);
    udp.map(|frontend| {
        let target = desired.holder(&frontend).unwrap().target;
        (frontend, (target.name.service.clone(), target.endpoints.serving.iter().copied().collect()))
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whoever_serves_a_udp_frontend_otherwise_than_before_is_looked_at(
        history in history(),
        next in prop::collection::vec(event(), 1..4),
        fails in any::<bool>(),
    ) {
        let mut proxy = proxy(Fake::default());
        history.into_iter().for_each(|event| proxy.apply(event));
        proxy.sync().unwrap();
        let before = served(&proxy);
        next.into_iter().for_each(|event| proxy.apply(event));
        if fails {
            proxy.backend_mut().kernel().faults = Faults { commits: 2, reads: 1, ..Faults::default() };
        }
        let synced = proxy.sync().or_else(|_| {
            proxy.backend_mut().kernel().faults = Faults::default();
            proxy.sync()
        });
        let (stale, after) = (synced.unwrap().stale, served(&proxy));
        let changed = after.iter().filter(|(frontend, now)| before.get(*frontend) != Some(*now));
        for (frontend, (service, _)) in changed {
            prop_assert!(stale.contains(service), "{frontend} of {service}: {stale:?}");
        }
        prop_assert!(stale.iter().all(|name| after.values().any(|(service, _)| service == name)), "{stale:?}");
    }
}

fn name(text: &str) -> ObjectName {
    ObjectName::new("default", text)
}

/// A Service with an external address, created in this second.
fn service(text: &str, created: i64, protocol: Protocol, external: bool) -> Event {
    Event::Service(Service {
        name: name(text),
        created: Some(Timestamp::from_second(created).unwrap()),
        kind: "ClusterIP".into(),
        cluster_ips: vec![format!("10.96.0.{created}").parse().unwrap()],
        external_ips: if external { vec!["203.0.113.1".parse().unwrap()] } else { Vec::new() },
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![ServicePort { name: "dns".into(), protocol, port: 53, node_port: 0 }],
        internal_local: false,
        external_local: false,
        affinity: None,
        health_check_node_port: 0,
        scheduling: None,
    })
}

fn slice(text: &str, protocol: Protocol) -> Event {
    let endpoint = SliceEndpoint {
        ip: "10.244.0.1".parse().unwrap(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        zone: None,
        pod: None,
        hints: None,
    };
    Event::Slice(EndpointSlice {
        name: name(text),
        service: name(text),
        family: Family::V4,
        ports: [SlicePort { name: "dns".into(), protocol, port: 5353 }].into(),
        endpoints: vec![endpoint],
        trigger_time: None,
    })
}

#[test]
fn it_need_not_be_a_change_of_endpoints() {
    const UDP: Protocol = Protocol::Udp;
    let mut proxy = proxy(Fake::default());
    let mut after = |events: Vec<Event>| {
        events.into_iter().for_each(|event| proxy.apply(event));
        let stale = proxy.sync().unwrap().stale;
        stale.iter().map(|name| name.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(after(vec![slice("a", UDP)]), [""; 0], "nobody's yet");
    assert_eq!(after(vec![service("a", 1, UDP, false)]), ["a"], "a Service that comes after its endpoints");
    assert_eq!(after(vec![service("a", 1, UDP, true)]), ["a"], "an address that a Service gets");
    assert_eq!(after(vec![service("b", 2, UDP, true), slice("b", UDP)]), ["a", "b"], "one is contested now");
    let gone = vec![Event::SliceGone(name("a")), Event::ServiceGone(name("a"))];
    assert_eq!(after(gone), ["b"], "who takes over an address");
    assert_eq!(after(vec![Event::ServiceGone(name("b"))]), [""; 0]);
    let tcp = vec![service("c", 3, Protocol::Tcp, true), slice("c", Protocol::Tcp)];
    assert_eq!(after(tcp), [""; 0], "no UDP port");
}

#[test]
fn those_of_a_failed_sync_are_kept() {
    let mut proxy = proxy(Fake::default());
    proxy.sync().unwrap();
    proxy.apply(service("a", 1, Protocol::Udp, true));
    proxy.backend_mut().kernel().faults = Faults { commits: 2, reads: 1, ..Faults::default() };
    proxy.sync().unwrap_err();
    assert!(proxy.waits(&name("a")) && !proxy.waits(&name("b")));
    proxy.backend_mut().kernel().faults = Faults::default();
    assert_eq!(proxy.check().unwrap(), None, "a sync that fails looks at the rows itself, and not every two seconds");
    assert_eq!(proxy.sync().unwrap().stale, [name("a")].into());
    assert!(!proxy.waits(&name("a")));
    proxy.apply(service("a", 1, Protocol::Udp, true));
    assert_eq!(proxy.sync().unwrap().stale, [].into(), "the same again is no change");
}
