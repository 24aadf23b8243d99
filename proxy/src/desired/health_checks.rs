//! What load balancers ask of this node: for each Service with a health check node port, how many endpoints of it are here.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::state::State;
use crate::state::objects::{Family, ObjectName, Service, ServicePort};

use super::endpoints::SlicePorts;
use super::limits::{self, Room};
use super::node_view::NodeView;
use super::scheduling::Choice;

/// A Service with a health check node port (`type: LoadBalancer` with `externalTrafficPolicy: Local`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`, never 0.
    pub port: u16,
    /// For IPv4 and IPv6: distinct addresses of endpoints that are on this node, ready, and have a weight. Terminating ones
    /// do not count, also while they still get connections: so the load balancer stops first. `None`: the Service is not in
    /// this family.
    pub local: [Option<usize>; 2],
}

/// The health check of a Service, if it has one.
pub fn health_check(state: &State, node: &NodeView, name: &ObjectName) -> Option<HealthCheck> {
    let service = state.services().get(name).filter(|service| service.health_check_node_port != 0)?;
    let local = Family::BOTH.map(|family| {
        let is_in = service.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
        is_in.then(|| local_ready(state, node, service, family))
    });
    Some(HealthCheck { port: service.health_check_node_port, local })
}

/// kube-proxy's `LocalReadyEndpoints`: of every port that the slices name, whether the Service has it or not.
fn local_ready(state: &State, node: &NodeView, service: &Service, family: Family) -> usize {
    let choice = Choice::new(service, node, None);
    let ports = SlicePorts::all(state.slices_of(&service.name), family);
    let mut ips: BTreeSet<IpAddr> = BTreeSet::new();
    let mut room = Room::new();
    // In an order of their own: where there is no room for all, it is the same ones each time.
    let names: BTreeSet<_> = ports.names().collect();
    for (name, protocol) in names {
        if room.is_full() {
            break;
        }
        let port = ServicePort { name: name.into(), protocol, port: 0, node_port: 0 };
        let merged = ports.merge(&port, &node.name, (limits::ENDPOINTS, room.looks()));
        room.merged(&merged);
        let counted =
            merged.endpoints.values().filter(|candidate| candidate.is_local_ready() && choice.admits(candidate));
        ips.extend(counted.map(|candidate| candidate.endpoint.ip));
    }
    ips.len()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::settings::DatapathSettings;
    use crate::state::convert;
    use crate::state::event::Event;

    fn state(ports: Value, families: &[&str], slices: &[Value]) -> State {
        let mut state = State::default();
        let ips: Vec<_> = families.iter().map(|f| if *f == "IPv4" { "10.96.0.1" } else { "fd00::1" }).collect();
        let service = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"type": "LoadBalancer",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 31000, "clusterIP": ips[0], "clusterIPs": ips,
            "ipFamilies": families, "ports": ports}});
        let service = convert::service(&serde_json::from_value(service).unwrap()).object.unwrap();
        state.apply(Event::Service(service));
        for (number, slice) in slices.iter().enumerate() {
            let mut slice = slice.clone();
            slice["metadata"] = json!({"name": format!("web-{number}"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": "web"}});
            state.apply(Event::Slice(convert::endpoint_slice(&serde_json::from_value(slice).unwrap()).object.unwrap()));
        }
        state
    }

    fn counted(state: &State) -> Option<HealthCheck> {
        let node = NodeView::new(Arc::from("here"), &DatapathSettings::default(), None, &BTreeSet::new());
        health_check(state, &node, &ObjectName::new("default", "web"))
    }

    fn endpoint(ip: &str, node: &str, ready: bool, terminating: bool) -> Value {
        json!({"addresses": [ip], "nodeName": node,
            "conditions": {"ready": ready, "serving": true, "terminating": terminating}})
    }

    #[test]
    fn distinct_addresses_of_local_ready_endpoints_count_in_each_family() {
        let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81}]);
        let v4 = json!({"addressType": "IPv4", "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}],
            "endpoints": [endpoint("10.244.1.1", "here", true, false), endpoint("10.244.1.2", "here", false, true),
                endpoint("10.244.2.1", "there", true, false), endpoint("10.244.1.3", "here", false, false)]});
        let more = json!({"addressType": "IPv4", "ports": [{"name": "b", "port": 8081}],
            "endpoints": [endpoint("10.244.1.1", "here", true, false), endpoint("10.244.1.4", "here", true, false)]});
        let v6 = json!({"addressType": "IPv6", "ports": [{"name": "a", "port": 8080}],
            "endpoints": [endpoint("fd00:1::1", "here", true, false)]});
        let both = counted(&state(ports.clone(), &["IPv4", "IPv6"], &[v4.clone(), more.clone(), v6.clone()]));
        assert_eq!(both, Some(HealthCheck { port: 31000, local: [Some(2), Some(1)] }));
        let one = counted(&state(ports, &["IPv4"], &[v4, more, v6]));
        assert_eq!(one.unwrap().local, [Some(2), None], "the Service is in one family");
    }

    #[test]
    fn ports_of_slices_count_though_the_service_has_them_not() {
        let slice = json!({"addressType": "IPv4", "ports": [{"name": "old", "port": 8080}],
            "endpoints": [endpoint("10.244.1.1", "here", true, false)]});
        let ports = json!([{"name": "new", "port": 80}]);
        assert_eq!(counted(&state(ports, &["IPv4"], &[slice])).unwrap().local, [Some(1), None]);
    }

    #[test]
    fn a_terminating_endpoint_never_hides_the_one_that_took_its_address() {
        let slice = |terminating: bool| {
            json!({"addressType": "IPv4", "ports": [{"name": "a", "port": 8080}],
                "endpoints": [endpoint("10.244.1.1", "here", !terminating, terminating)]})
        };
        let ports = json!([{"name": "a", "port": 80}]);
        assert_eq!(counted(&state(ports, &["IPv4"], &[slice(false), slice(true)])).unwrap().local[0], Some(1));
    }
}
