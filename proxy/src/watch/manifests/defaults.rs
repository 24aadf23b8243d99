//! What the API server would fill in: manifests are written by people and leave it out. What the API server would
//! *allocate* (a ClusterIP, a node port) cannot be filled in, and is a fault.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::super::object::Object;
use crate::state::convert::sloppy::parse_ip;
use crate::state::objects::Family;

/// Fills in the defaults. A slice's port without a name gets the name `""`, as from the API server; one whose name is
/// written as null (`named`: the entries that say something of it) keeps it, and is ignored as kube-proxy ignores it. Returns what is missing and cannot be.
///
/// # Errors
/// An object without a name: there is nothing to call it by.
pub(super) fn fill_in(object: &mut Object, named: &[bool]) -> Result<Vec<String>, String> {
    if object.metadata().name.as_deref().unwrap_or_default().is_empty() {
        return Err("metadata.name is missing".into());
    }
    match object {
        Object::Service(service) => {
            default_namespace(&mut service.metadata);
            Ok(service.spec.as_mut().map(default_service).unwrap_or_else(|| vec!["spec is missing".into()]))
        }
        Object::Slice(slice) => {
            default_namespace(&mut slice.metadata);
            default_slice(slice, named);
            Ok(Vec::new())
        }
        Object::Node(_) | Object::ServiceCidr(_) => Ok(Vec::new()),
    }
}

fn default_namespace(metadata: &mut ObjectMeta) {
    metadata.namespace.get_or_insert_default();
    if let Some(namespace) = metadata.namespace.as_mut().filter(|namespace| namespace.is_empty()) {
        namespace.push_str("default");
    }
}

fn default_service(spec: &mut core::ServiceSpec) -> Vec<String> {
    if spec.type_.as_deref() == Some("ExternalName") {
        return Vec::new();
    }
    let ips = spec.cluster_ips.get_or_insert_default();
    let single = spec.cluster_ip.get_or_insert_default();
    match (single.is_empty(), ips.first()) {
        (true, None) => {
            return vec!["spec.clusterIP is missing, and a folder of manifests allocates none: write one".into()];
        }
        (true, Some(first)) => single.clone_from(first),
        (false, None) => ips.push(single.clone()),
        (false, Some(_)) => {}
    }
    if single == "None" {
        return Vec::new();
    }
    let families = spec.ip_families.get_or_insert_default();
    for ip in ips.iter().skip(families.len()) {
        // What cannot be read has no family; conversion says so, and pairs it with nothing.
        families.push(parse_ip(ip).map_or_else(String::new, |ip| Family::of(ip).as_str().into()));
    }
    let unnumbered = spec.ports.iter().flatten().any(|port| port.node_port.unwrap_or(0) == 0);
    if spec.type_.as_deref() == Some("NodePort") && unnumbered {
        return vec!["a port has no nodePort, and a folder of manifests allocates none: write one".into()];
    }
    Vec::new()
}

fn default_slice(slice: &mut discovery::EndpointSlice, named: &[bool]) {
    if slice.address_type.is_empty() {
        let first = slice.endpoints.iter().flatten().find_map(|endpoint| endpoint.addresses.first());
        let family = first.and_then(|text| parse_ip(text)).map_or(Family::V4, Family::of);
        slice.address_type = family.as_str().into();
    }
    let unnamed = slice.ports.iter_mut().flatten().zip(named).filter(|(_, named)| !**named);
    for (port, _) in unnamed {
        port.name.get_or_insert_default();
    }
}
