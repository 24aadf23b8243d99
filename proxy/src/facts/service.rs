//! One Service whole.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::endpoint_facts::endpoints;
use super::snapshot::{EndpointCounts, HealthFacts, Policies};
use super::{EndpointFacts, IgnoredFacts};
use crate::backend::Backend;
use crate::desired::target::{Frontend, Role, Target};
use crate::desired::{Desired, members};
use crate::proxy::Proxy;
use crate::state::objects::{ObjectName, Service};
use crate::traffic::{Counting, Seen};

/// Endpoints of a Service that are told at most, all of its ports together.
const MOST_ENDPOINTS: usize = 5_000;
/// Ports and families of a Service that are told at most.
const MOST_PORTS: usize = 1_000;

/// The answer of `/api/v1/services/{namespace}/{name}`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// How it is.
    pub health: HealthFacts,
    /// Its policies.
    pub policies: Policies,
    /// `spec.loadBalancerSourceRanges`; empty: everybody may come.
    pub source_ranges: Vec<String>,
    /// Where health checks of load balancers are answered; absent: nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_check_node_port: Option<u16>,
    /// Over how many seconds a new endpoint comes to its weight; absent: at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start_seconds: Option<u64>,
    /// Its ports, each in each of its families.
    pub ports: Vec<PortFacts>,
    /// Ports and families, or endpoints, that are not told because they are too many: more than 1,000 or 5,000.
    pub truncated: bool,
    /// What of it is left out.
    pub ignored: Vec<IgnoredFacts>,
}

/// A port of a Service in one family. Numbers of traffic are absent where they are not counted.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortFacts {
    /// Its name, may be empty.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How an endpoint is chosen.
    pub scheduler: String,
    /// What `sh` and `mh` hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_key: Option<String>,
    /// Slots of the table of `mh`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_size: Option<u32>,
    /// Where it wants to be reached.
    pub frontends: Vec<FrontendFacts>,
    /// Its endpoints by number.
    pub counts: EndpointCounts,
    /// Its endpoints, by address.
    pub endpoints: Vec<EndpointFacts>,
    /// New connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// New connections a second, over the last one to two seconds, or since the last time before that the counters were read; absent
    /// until they have been read twice, or if that was more than 30 s ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<f64>,
    /// Connections that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// Packets, both ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Their bytes, from the IP header on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// Where a service port wants to be reached.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FrontendFacts {
    /// `10.96.0.10:80`; `*:30080` for a node port.
    pub address: String,
    /// Why.
    pub role: FrontendRole,
    /// Whether it is.
    pub state: FrontendState,
    /// The service port that has it, `namespace/name:port`, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// Why it is not served, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// By which field of the Service it is to be reached there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FrontendRole {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

impl From<Role> for FrontendRole {
    fn from(role: Role) -> Self {
        match role {
            Role::ClusterIp => Self::ClusterIp,
            Role::LoadBalancer => Self::LoadBalancer,
            Role::ExternalIp => Self::ExternalIp,
            Role::NodePort => Self::NodePort,
        }
    }
}

/// What becomes of a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum FrontendState {
    /// It is served.
    Served,
    /// Another service port has it.
    Contested,
    /// The kernel refuses it.
    LeftOut,
}

/// A Service whole; `seen` is what was counted of a service port. `None`: there is none of this name.
pub(super) fn service<'a, B: Backend>(
    proxy: &'a Proxy<B>,
    name: &ObjectName,
    health: HealthFacts,
    ignored: Vec<IgnoredFacts>,
    counting: Counting,
    seen: &dyn Fn(&Target) -> Option<&'a Seen>,
) -> Option<ServiceFacts> {
    let service = proxy.state().services().get(name)?;
    let left_out = proxy.backend().left_out();
    let (mut ports, mut told, mut truncated, mut policies) = (Vec::new(), 0, false, None);
    for (_, target, frontends) in proxy.desired().targets_of(name) {
        policies.get_or_insert_with(|| Policies::of(target));
        if ports.len() == MOST_PORTS {
            truncated = true;
            break;
        }
        let seen = seen(target);
        let mut endpoints = endpoints_of(proxy, service, target, seen, counting);
        truncated |= endpoints.len() > MOST_ENDPOINTS - told;
        endpoints.truncate(MOST_ENDPOINTS - told);
        told += endpoints.len();
        let frontends = frontends
            .iter()
            .map(|frontend| FrontendFacts::of(proxy.desired(), service, target, frontend, left_out.get(frontend)));
        ports.push(PortFacts { frontends: frontends.collect(), endpoints, ..PortFacts::of(target, seen, counting) });
    }
    Some(ServiceFacts {
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        kind: service.kind.to_string(),
        health,
        policies: policies.unwrap_or_default(),
        source_ranges: service.source_ranges.iter().map(ToString::to_string).collect(),
        health_check_node_port: Some(service.health_check_node_port).filter(|port| *port != 0),
        slow_start_seconds: service
            .scheduling
            .as_ref()
            .and_then(|scheduling| scheduling.slow_start)
            .map(|over| over.as_secs()),
        ports,
        truncated,
        ignored,
    })
}

fn endpoints_of<B: Backend>(
    proxy: &Proxy<B>,
    service: &Service,
    target: &Target,
    seen: Option<&Seen>,
    counting: Counting,
) -> Vec<EndpointFacts> {
    let node = &proxy.desired().node().name;
    let port = |port: &&crate::state::objects::ServicePort| {
        port.name == target.name.port && port.protocol == target.name.protocol
    };
    let members: BTreeMap<SocketAddr, _> = match service.ports.iter().find(port) {
        Some(port) => members(proxy.state().slices_of(&service.name), target.family, port, node),
        None => BTreeMap::new(),
    };
    endpoints(
        target,
        service.scheduling.as_ref().map(|of| &of.weights),
        &members,
        seen.map_or(&[], |seen| &seen.endpoints),
        counting,
    )
}

impl PortFacts {
    fn of(target: &Target, seen: Option<&Seen>, counting: Counting) -> Self {
        use crate::scheduler::Scheduler;
        let schedule = target.schedule;
        let takes_key = matches!(schedule.scheduler, Scheduler::Sh | Scheduler::Mh);
        let total = seen.map(|seen| seen.total);
        Self {
            name: target.name.port.to_string(),
            protocol: target.name.protocol.to_string(),
            family: target.family.as_str().to_owned(),
            scheduler: schedule.scheduler.to_string(),
            hash_key: takes_key.then(|| schedule.hash_key.to_string()),
            table_size: (schedule.scheduler == Scheduler::Mh).then_some(schedule.table_size),
            frontends: Vec::new(),
            counts: EndpointCounts::of(target),
            endpoints: Vec::new(),
            connections: total.filter(|_| counting.connections).map(|total| total.connections),
            connections_per_second: seen.filter(|_| counting.connections).and_then(|seen| seen.rate),
            active: total.filter(|_| counting.active).map(|total| total.active),
            packets: total.filter(|_| counting.packets).map(|total| total.packets),
            bytes: total.filter(|_| counting.packets).map(|total| total.bytes),
        }
    }
}

impl FrontendFacts {
    fn of(
        desired: &Desired,
        service: &Service,
        target: &Target,
        frontend: &Frontend,
        left_out: Option<&String>,
    ) -> Self {
        let (address, role) = match frontend {
            Frontend::NodePort { port, .. } => (format!("*:{port}"), Role::NodePort),
            Frontend::Address { ip, port, .. } => {
                let role = if service.cluster_ips.contains(ip) {
                    Role::ClusterIp
                } else if service.load_balancer_ips.contains(ip) {
                    Role::LoadBalancer
                } else {
                    Role::ExternalIp
                };
                (SocketAddr::new(*ip, *port).to_string(), role)
            }
        };
        let holder = desired.holder(frontend);
        let ours = holder.is_some_and(|claim| claim.target.name == target.name);
        let other = holder.filter(|_| !ours).map(|claim| claim.target.name.to_string());
        let (state, why) = match (ours, left_out) {
            (true, None) => (FrontendState::Served, None),
            (true, Some(why)) => (FrontendState::LeftOut, Some(why.clone())),
            (false, _) => match &other {
                Some(other) => (FrontendState::Contested, Some(format!("{other} has it"))),
                None => (FrontendState::Contested, Some("it is the ClusterIP of another Service".to_owned())),
            },
        };
        Self { address, role: role.into(), state, held_by: other, why }
    }
}
