//! `v1 Node`: our own.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::sloppy::{parse_cidr, parse_ip};
use super::{Converted, Faults, object_name};
use crate::state::event::Kind;
use crate::state::objects::{Family, Node};
use crate::state::text::{Quoted, is_name};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const TO_BE_DELETED_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// Converts a Node; there is always one.
pub fn node(object: &core::Node) -> Converted<Node> {
    let mut name = object_name(&object.metadata);
    name.namespace = "".into();
    let mut faults = Faults::of(Kind::Node, &name);
    let spec = object.spec.as_ref();
    let zone = object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
    let internal = addresses(object, "InternalIP", &mut faults);
    let external = addresses(object, "ExternalIP", &mut faults);
    let mut all: Vec<IpAddr> = Vec::new();
    for ip in internal.into_iter().chain(external) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    let mut primary_ips: Vec<IpAddr> = Vec::new();
    for ip in &all {
        if !primary_ips.iter().any(|other| Family::of(*other) == Family::of(*ip)) {
            primary_ips.push(*ip);
        }
    }
    let listed = spec.and_then(|spec| spec.pod_cidrs.as_ref()).filter(|cidrs| !cidrs.is_empty());
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|cidr| !cidr.is_empty());
    let mut pod_cidrs = Vec::new();
    for text in listed.map_or_else(|| single.into_iter().collect(), |listed| listed.iter().collect::<Vec<_>>()) {
        match parse_cidr(text) {
            Some(cidr) => pod_cidrs.push(cidr),
            None => faults.add(format_args!("podCIDR {} ignored: not a CIDR such as 10.244.1.0/24", Quoted(text))),
        }
    }
    let taints = spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let node = Node {
        name: name.name,
        zone: zone.filter(|zone| is_name(zone)).map(|zone| zone.as_str().into()),
        primary_ips,
        addresses: all,
        pod_cidrs,
        deleting: object.metadata.deletion_timestamp.is_some(),
        to_be_deleted: taints.iter().any(|taint| taint.key == TO_BE_DELETED_TAINT),
    };
    faults.converted(Some(node))
}

/// The addresses of one type, in order.
fn addresses(object: &core::Node, kind: &str, faults: &mut Faults) -> Vec<IpAddr> {
    let all = object.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let mut ips = Vec::new();
    for address in all.filter(|address| address.type_ == kind) {
        match parse_ip(&address.address) {
            Some(ip) => ips.push(ip),
            None => faults.add(format_args!("{kind} {} ignored: not an IP address", Quoted(&address.address))),
        }
    }
    ips
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn convert(json: serde_json::Value) -> Converted<Node> {
        node(&serde_json::from_value(json).unwrap())
    }

    #[test]
    fn primary_is_the_first_internal_address_of_each_family_else_external() {
        let got = convert(json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}},
            "spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"],
                     "taints": [{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "ExternalIP", "address": "192.0.2.1"},
                {"type": "ExternalIP", "address": "2001:db8::1"},
                {"type": "InternalIP", "address": "10.0.0.01"},
                {"type": "InternalIP", "address": "10.0.0.2"},
                {"type": "InternalIP", "address": "nonsense"}]}
        }));
        let node = got.object.unwrap();
        assert_eq!(node.primary_ips, ["10.0.0.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]);
        assert_eq!(node.addresses.len(), 4);
        assert_eq!(node.pod_cidrs.len(), 2);
        assert_eq!(node.zone.as_deref(), Some("z1"));
        assert!(node.to_be_deleted && !node.deleting);
        assert_eq!(got.faults.len(), 1);
        assert_eq!(got.faults[0].to_string(), "Node n1: InternalIP \"nonsense\" ignored: not an IP address");
    }

    #[test]
    fn a_bare_node_converts() {
        let got = convert(json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": ""},
            "deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"podCIDR": "10.1.0.0/24"}}));
        let node = got.object.unwrap();
        assert_eq!(
            (node.zone.clone(), node.primary_ips.len(), node.pod_cidrs.len(), node.deleting),
            (None, 0, 1, true)
        );
        assert!(got.faults.is_empty());
    }
}
