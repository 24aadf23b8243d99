//! `v1 Service`. The rules are those of kube-proxy's `serviceport.go`, `util.go` and `ShouldSkipService`.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::sloppy::{parse_cidr, parse_ip};
use super::{Converted, Faults, annotations, object_name, port_number};
use crate::state::event::Kind;
use crate::state::objects::{Family, Service, ServicePort};
use crate::state::text::Quoted;

/// A Service with this label, whatever its value, belongs to another proxy.
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is absent.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10800);

/// Converts a Service. `None`: headless, `ExternalName`, without a usable ClusterIP, or labelled for another proxy.
///
/// A zero-length source range stays in [`Service::source_ranges`] as the only one of its family: later stages read it as
/// "no restriction".
pub fn service(object: &core::Service) -> Converted<Service> {
    let name = object_name(&object.metadata);
    let mut faults = Faults::of(Kind::Service, &name);
    let other_proxy =
        object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME_LABEL));
    let Some(spec) = object.spec.as_ref().filter(|spec| !other_proxy && is_ours(spec)) else {
        return faults.converted(None);
    };
    let cluster_ips = cluster_ips(spec, &mut faults);
    if cluster_ips.is_empty() {
        faults.add(
            "Service ignored: it has no valid ClusterIP; correct spec.clusterIP, spec.clusterIPs and spec.ipFamilies",
        );
        return faults.converted(None);
    }
    let kind = spec.type_.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("ClusterIP");
    let known = matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer");
    if !known {
        let kind = Quoted(kind);
        faults.add(format_args!("type {kind} is unknown: use ClusterIP, NodePort, LoadBalancer or ExternalName"));
    }
    let external_local = is_local(spec.external_traffic_policy.as_deref(), "externalTrafficPolicy", &mut faults)
        && is_externally_accessible(kind, spec);
    let service = Service {
        created: object.metadata.creation_timestamp.as_ref().map(|time| time.0),
        kind: if known { kind.into() } else { "unknown".into() },
        cluster_ips,
        external_ips: external_ips(spec, &mut faults),
        load_balancer_ips: load_balancer_ips(object, &mut faults),
        source_ranges: source_ranges(spec, &mut faults),
        ports: ports(spec, &mut faults),
        internal_local: is_local(spec.internal_traffic_policy.as_deref(), "internalTrafficPolicy", &mut faults),
        external_local,
        affinity: affinity(spec, &mut faults),
        health_check_node_port: health_check_node_port(kind, external_local, spec, &mut faults),
        scheduling: annotations::scheduling(object.metadata.annotations.as_ref(), &mut faults),
        name,
    };
    faults.converted(Some(service))
}

/// `ShouldSkipService`; `clusterIP` stands for the first of `clusterIPs`, as the API server would have it.
fn is_ours(spec: &core::ServiceSpec) -> bool {
    let first = spec.cluster_ips.iter().flatten().next().map(String::as_str);
    let cluster_ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty()).or(first).unwrap_or_default();
    spec.type_.as_deref() != Some("ExternalName") && !cluster_ip.is_empty() && cluster_ip != "None"
}

/// `GetClusterIPByFamily` for both families at once.
fn cluster_ips(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<IpAddr> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let texts: Vec<&str> = match single {
        Some(single) if families.is_empty() || listed.is_empty() => vec![single],
        _ => listed.iter().map(String::as_str).take(families.len().max(1)).collect(),
    };
    let mut ips: Vec<IpAddr> = Vec::new();
    for (at, text) in texts.into_iter().enumerate() {
        let Some(ip) = frontend_ip(text, "clusterIP", faults) else { continue };
        match families.get(at) {
            Some(family) if family != Family::of(ip).as_str() => {
                faults.add(format_args!("clusterIP {ip} ignored: ipFamilies[{at}] says {}", Quoted(family)));
            }
            _ if ips.iter().any(|other| Family::of(*other) == Family::of(ip)) => {
                faults.add(format_args!("clusterIP {ip} ignored: there is another of its family before it"));
            }
            _ => ips.push(ip),
        }
    }
    ips
}

/// An address that a Service answers at. One that no packet may carry, or that is this machine's own, is refused.
fn frontend_ip(text: &str, field: &str, faults: &mut Faults) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        faults.add(format_args!("{field} {} ignored: not an IP address", Quoted(text)));
        return None;
    };
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    if ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || broadcast {
        faults.add(format_args!("{field} {ip} ignored: a Service cannot answer at such an address"));
        return None;
    }
    Some(ip)
}

fn external_ips(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for text in spec.external_ips.iter().flatten().filter(|text| !text.trim().is_empty()) {
        let Some(ip) = frontend_ip(text, "externalIP", faults) else { continue };
        if !is_link_local_frontend(ip, "externalIP", faults) {
            ips.push(ip);
        }
    }
    distinct(ips)
}

/// A link-local address, of which every link has its own: 169.254.169.254 is where clouds keep a node's credentials. The API
/// server refuses it as an external address, too (`ValidateNonSpecialIP`).
fn is_link_local_frontend(ip: IpAddr, field: &str, faults: &mut Faults) -> bool {
    let is = is_link_local(ip);
    if is {
        faults.add(format_args!("{field} {ip} ignored: link-local addresses are not allowed"));
    }
    is
}

/// Each once, in their order.
fn distinct(mut ips: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut seen = HashSet::new();
    ips.retain(|ip| seen.insert(*ip));
    ips
}

pub(super) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn load_balancer_ips(object: &core::Service, faults: &mut Faults) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    let ingress = object.status.iter().filter_map(|status| status.load_balancer.as_ref()).flat_map(|lb| &lb.ingress);
    for entry in ingress.flatten() {
        if entry.ip_mode.as_deref().is_some_and(|mode| mode != "VIP") {
            continue;
        }
        let Some(text) = entry.ip.as_deref().filter(|text| !text.trim().is_empty()) else { continue };
        if let Some(ip) = frontend_ip(text, "load balancer ingress", faults)
            && !is_link_local_frontend(ip, "load balancer ingress", faults)
        {
            ips.push(ip);
        }
    }
    distinct(ips)
}

fn source_ranges(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    // The API server takes blanks around these, and kube-proxy drops them (`newBaseServiceInfo`, serviceport.go).
    let texts = spec.load_balancer_source_ranges.iter().flatten().map(|text| text.trim());
    for text in texts.filter(|text| !text.is_empty()) {
        match parse_cidr(text) {
            Some(range) => ranges.push(range),
            None => faults.add(format_args!(
                "loadBalancerSourceRange {} ignored: not a CIDR such as 192.0.2.0/24; \
                 without another range of that family the load balancer address is open to all",
                Quoted(text)
            )),
        }
    }
    IpNet::aggregate(&ranges)
}

fn ports(spec: &core::ServiceSpec, faults: &mut Faults) -> Vec<ServicePort> {
    let mut ports = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in spec.ports.iter().flatten() {
        let Some(name) = faults.port_name(entry.name.as_deref().unwrap_or_default()) else { continue };
        let name: Arc<str> = name.into();
        let Some(protocol) = faults.protocol(entry.protocol.as_deref(), format_args!("port {name:?}")) else {
            continue;
        };
        let Some(port) = port_number(entry.port) else {
            faults.add(format_args!("port {name:?} ignored: {} is not a port number (1 to 65535)", entry.port));
            continue;
        };
        if !seen.insert((name.clone(), protocol)) {
            faults.add(format_args!("port {protocol}/{port} ignored: another {protocol} port is named {name:?} too"));
            continue;
        }
        let asked = entry.node_port.unwrap_or(0);
        let node_port = port_number(asked).unwrap_or(0);
        if node_port == 0 && asked != 0 {
            faults.add(format_args!("nodePort of port {name:?} ignored: {asked} is not a port number (1 to 65535)"));
        }
        ports.push(ServicePort { name, protocol, port, node_port });
    }
    ports
}

fn is_local(policy: Option<&str>, field: &str, faults: &mut Faults) -> bool {
    match policy {
        Some("Local") => true,
        None | Some("" | "Cluster") => false,
        Some(other) => {
            faults.add(format_args!("{field} {} ignored: use Cluster or Local", Quoted(other)));
            false
        }
    }
}

/// `ExternallyAccessible` of `pkg/api/v1/service/util.go`.
fn is_externally_accessible(kind: &str, spec: &core::ServiceSpec) -> bool {
    match kind {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => spec.external_ips.iter().flatten().next().is_some(),
        _ => false,
    }
}

fn affinity(spec: &core::ServiceSpec, faults: &mut Faults) -> Option<Duration> {
    match spec.session_affinity.as_deref() {
        Some("ClientIP") => {}
        None | Some("" | "None") => return None,
        Some(other) => {
            faults.add(format_args!("sessionAffinity {} ignored: use None or ClientIP", Quoted(other)));
            return None;
        }
    }
    let asked = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    match asked {
        None => Some(DEFAULT_AFFINITY),
        Some(seconds @ 1..=86400) => Some(Duration::from_secs(seconds.unsigned_abs().into())),
        Some(seconds) => {
            faults.add(format_args!(
                "session affinity timeoutSeconds {seconds} ignored: must be 1 to 86400; {} s is used",
                DEFAULT_AFFINITY.as_secs()
            ));
            Some(DEFAULT_AFFINITY)
        }
    }
}

/// `NeedsHealthCheck`: a load balancer asks only where it must know which nodes have endpoints.
fn health_check_node_port(kind: &str, external_local: bool, spec: &core::ServiceSpec, faults: &mut Faults) -> u16 {
    if kind != "LoadBalancer" || !external_local {
        return 0;
    }
    let asked = spec.health_check_node_port.unwrap_or(0);
    port_number(asked).unwrap_or_else(|| {
        faults.add(format_args!("healthCheckNodePort is {asked}: no health check is served for this Service"));
        0
    })
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
