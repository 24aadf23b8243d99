//! `discovery.k8s.io/v1 EndpointSlice`. The rules are those of kube-proxy's `endpointslicecache.go`.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;

use super::service::is_link_local;
use super::sloppy::parse_ip;
use super::{Converted, Faults, object_name, port_number};
use crate::state::event::Kind;
use crate::state::objects::{EndpointSlice, Family, Hints, Ignored, ObjectName, PodName, SliceEndpoint, SlicePort};
use crate::state::text::{Quoted, is_label, is_name};

/// Names the Service that a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// A slice with this label, whatever its value, belongs to a headless Service.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// The most ports that an API server takes of a slice (`maxPorts` in `pkg/apis/discovery/validation`).
const PORTS: usize = 20_000;
const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Converts an EndpointSlice. `None`: of a headless Service, of FQDNs, or (a fault) without a Service's name.
pub fn endpoint_slice(object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    SliceInParts::begin(object).map_or_else(
        |faults| Converted { object: None, faults },
        |mut parts| {
            object.endpoints.iter().flatten().for_each(|endpoint| parts.endpoint(endpoint));
            parts.end()
        },
    )
}

/// A slice whose endpoints come one at a time: they need not all be there in the form that the API has them in, which is many
/// times as large.
#[derive(Debug)]
pub struct SliceInParts {
    slice: EndpointSlice,
    words: Words,
    faults: Faults,
}

impl SliceInParts {
    /// Converts all but the endpoints.
    ///
    /// # Errors
    /// There is no slice, see [`endpoint_slice`]: the faults, if that is one.
    pub fn begin(object: &discovery::EndpointSlice) -> Result<Self, Vec<Ignored>> {
        let name = object_name(&object.metadata);
        let mut faults = Faults::of(Kind::EndpointSlice, &name);
        let label = |key: &str| object.metadata.labels.as_ref().and_then(|labels| labels.get(key));
        if label(HEADLESS_LABEL).is_some() {
            return Err(faults.into_vec());
        }
        let family = match object.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => return Err(faults.into_vec()),
            other => {
                faults.add(format_args!("slice ignored: addressType {} is unknown: use IPv4 or IPv6", Quoted(other)));
                return Err(faults.into_vec());
            }
        };
        let Some(service) = label(SERVICE_NAME_LABEL).filter(|service| !service.is_empty()) else {
            faults.add(format_args!("slice ignored: it names no Service; set the label {SERVICE_NAME_LABEL}"));
            return Err(faults.into_vec());
        };
        if !is_label(service) {
            faults.add(format_args!("slice ignored: no Service can be called {}", Quoted(service)));
            return Err(faults.into_vec());
        }
        let trigger_time = object.metadata.annotations.as_ref().and_then(|all| all.get(TRIGGER_TIME_ANNOTATION));
        let slice = EndpointSlice {
            service: ObjectName { namespace: name.namespace.clone(), name: service.as_str().into() },
            family,
            ports: ports(object, &mut faults),
            endpoints: Vec::with_capacity(object.endpoints.as_ref().map_or(0, Vec::len)),
            trigger_time: trigger_time.and_then(|time| time.parse().ok()),
            name,
        };
        Ok(Self { slice, words: Words::default(), faults })
    }

    /// The next endpoint.
    pub fn endpoint(&mut self, entry: &discovery::Endpoint) {
        let Some(text) = entry.addresses.first() else { return };
        let Some(ip) = endpoint_ip(text, self.slice.family, &mut self.faults) else { return };
        let conditions = entry.conditions.as_ref();
        let words = &mut self.words;
        self.slice.endpoints.push(SliceEndpoint {
            ip,
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
            node: entry.node_name.as_deref().filter(|node| !node.is_empty()).map(|node| words.get(node)),
            zone: entry.zone.as_deref().filter(|zone| !zone.is_empty()).map(|zone| words.get(zone)),
            pod: pod(entry),
            hints: words.hints(entry),
        });
    }

    /// The slice.
    pub fn end(mut self) -> Converted<EndpointSlice> {
        self.slice.endpoints.shrink_to_fit();
        self.faults.converted(Some(self.slice))
    }
}

fn ports(object: &discovery::EndpointSlice, faults: &mut Faults) -> Arc<[SlicePort]> {
    let all = object.ports.as_deref().unwrap_or_default();
    if all.len() > PORTS {
        faults.add(format_args!("{} ports ignored: a slice has room for {PORTS}", all.len() - PORTS));
    }
    let mut ports: Vec<SlicePort> = Vec::new();
    let mut seen = HashSet::new();
    for entry in all.iter().take(PORTS) {
        // Null means "all ports", which kube-proxy does not implement either; port 0 counts as null.
        let (Some(name), Some(number)) = (entry.name.as_deref(), entry.port.filter(|port| *port != 0)) else {
            continue;
        };
        let Some(name) = faults.port_name(name) else { continue };
        let Some(protocol) = faults.protocol(entry.protocol.as_deref(), format_args!("port {name:?}")) else {
            continue;
        };
        let Some(port) = port_number(number) else {
            faults.add(format_args!("port {name:?} ignored: {number} is not a port number (1 to 65535)"));
            continue;
        };
        if !seen.insert((name, protocol)) {
            faults.add(format_args!("port {protocol}/{port} ignored: another {protocol} port is named {name:?} too"));
            continue;
        }
        ports.push(SlicePort { name: name.into(), protocol, port });
    }
    ports.into()
}

fn pod(endpoint: &discovery::Endpoint) -> Option<PodName> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"))?;
    target.name.as_deref().filter(|name| !name.is_empty()).map(PodName::of)
}

/// `None` with a fault for what DNAT cannot or must not send to. A loopback address cannot be the target of a packet from
/// elsewhere; the API server refuses the others as well (`ValidateEndpointIP`), but a slice may be older than the check.
fn endpoint_ip(text: &str, family: Family, faults: &mut Faults) -> Option<IpAddr> {
    let Some(ip) = parse_ip(text) else {
        faults.add(format_args!("endpoint {} ignored: not an IP address", Quoted(text)));
        return None;
    };
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    let why = if Family::of(ip) != family {
        "the slice's addressType is of the other family"
    } else if ip.is_loopback() {
        "a loopback address cannot be reached through a Service"
    } else if ip.is_unspecified() || ip.is_multicast() || broadcast || is_link_local(ip) {
        "unspecified, link-local, multicast and broadcast addresses are not allowed"
    } else {
        return Some(ip);
    };
    faults.add(format_args!("endpoint {ip} ignored: {why}"));
    None
}

/// What endpoints of a slice have in common, each kept once: names of nodes and zones, and hints. What can be no name is kept as
/// the empty one, which no node and no zone has: whether there is a hint at all counts, too.
#[derive(Debug, Default)]
struct Words {
    names: BTreeSet<Arc<str>>,
    hints: BTreeSet<Arc<Hints>>,
}

impl Words {
    fn get(&mut self, word: &str) -> Arc<str> {
        let word = if is_name(word) { word } else { "" };
        if let Some(known) = self.names.get(word) {
            return known.clone();
        }
        let word: Arc<str> = word.into();
        self.names.insert(word.clone());
        word
    }

    fn hints(&mut self, endpoint: &discovery::Endpoint) -> Option<Arc<Hints>> {
        let all = endpoint.hints.as_ref()?;
        let hints = Hints {
            zones: all.for_zones.iter().flatten().map(|zone| self.get(&zone.name)).collect(),
            nodes: all.for_nodes.iter().flatten().map(|node| self.get(&node.name)).collect(),
        };
        if hints == Hints::default() {
            return None;
        }
        if let Some(known) = self.hints.get(&hints) {
            return Some(known.clone());
        }
        let hints = Arc::new(hints);
        self.hints.insert(hints.clone());
        Some(hints)
    }
}

#[cfg(test)]
#[path = "slice_tests.rs"]
mod tests;
