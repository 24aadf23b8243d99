//! Endpoints that start slowly: their steps are changes of their Service like others.

use std::time::Duration;

use serde_json::{Value, json};

use crate::backend::nftables::fake::Fake;
use crate::backend::nftables::reconciler::Reconciler;
use crate::proxy::Proxy;
use crate::state::convert;
use crate::state::event::Event;
use crate::state::objects::ObjectName;

use super::proxy::proxy;

/// Longer than between two steps, shorter than the whole.
const LATER: Duration = Duration::from_secs(5);

fn service(name: &str, created: &str, spec: Value) -> Event {
    let mut object = json!({"metadata": {"name": name, "namespace": "default", "creationTimestamp": created,
        "annotations": {"kubeferry.dev/scheduler": "wrr", "kubeferry.dev/slow-start": "30s"}},
        "spec": {"type": "ClusterIP", "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]}});
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    Event::Service(convert::service(&serde_json::from_value(object).unwrap()).object.unwrap())
}

fn slice(service: &str, endpoints: &[&str]) -> Event {
    let endpoints: Vec<_> = endpoints.iter().map(|ip| json!({"addresses": [ip], "nodeName": "there"})).collect();
    let object = json!({"addressType": "IPv4", "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}],
        "metadata": {"name": service, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints});
    Event::Slice(convert::endpoint_slice(&serde_json::from_value(object).unwrap()).object.unwrap())
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

/// So many Services, each with an endpoint that has just come to another, all in force.
fn starting(services: &[(&str, Event)]) -> Proxy<Reconciler<Fake>> {
    let mut proxy = proxy(Fake::default());
    for (name, service) in services {
        proxy.apply(service.clone());
        proxy.apply(slice(name, &["10.244.1.1"]));
    }
    proxy.sync().unwrap();
    services.iter().for_each(|(name, _)| proxy.apply(slice(name, &["10.244.1.1", "10.244.1.2"])));
    proxy.sync().unwrap();
    proxy
}

#[test]
fn steps_of_costly_services_come_by_portions() {
    let services = ["a", "b", "c"].map(|name| {
        let ip = format!("10.96.7.{}", name.as_bytes()[0]);
        (name, service(name, "2026-01-01T00:00:00Z", json!({"clusterIP": ip, "clusterIPs": [ip]})))
    });
    let mut proxy = starting(&services);
    proxy.backend_mut().chains_at_once = 1;
    proxy.pass(LATER);
    assert!(proxy.is_dirty(), "steps are due");
    for left in [2, 1, 0] {
        let synced = proxy.sync().unwrap();
        assert!(synced.report.changes > 0);
        assert_eq!(proxy.waiting().0, left);
        // One that was put off is a change like any.
        assert!(left < 2 || synced.stale.is_empty(), "{:?}", synced.stale);
    }
    assert!(!proxy.is_dirty());
}

#[test]
fn who_takes_over_while_a_step_is_due_has_its_udp_flows_looked_at() {
    let external = |ip: &str| json!({"clusterIP": ip, "clusterIPs": [ip], "externalIPs": ["198.51.100.7"]});
    let older = service("older", "2026-01-01T00:00:00Z", external("10.96.7.1"));
    let mut proxy =
        starting(&[("older", older), ("younger", service("younger", "2026-01-02T00:00:00Z", external("10.96.7.2")))]);
    proxy.pass(LATER);
    proxy.apply(Event::ServiceGone(name("older")));
    let stale = proxy.sync().unwrap().stale;
    assert!(stale.contains(&name("younger")), "{stale:?}");
}
