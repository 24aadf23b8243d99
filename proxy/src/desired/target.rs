//! What a service port comes to on this node, and at which frontends it wants to be reached.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::scheduler::{Schedule, Scheduler};
use crate::state::objects::{EndpointSlice, Family, ObjectName, Protocol, Service, ServicePort};

use super::endpoints::{EndpointLists, SlicePorts, Uses};
use super::limits::{self, Room};
use super::node_view::NodeView;
use super::scheduling::Choice;

/// kube-proxy's `ServicePortName`: the identity of a service port, displayed `namespace/name:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name; `""` for a Service with one unnamed port.
    pub port: Arc<str>,
    /// The port's protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() { self.service.fmt(f) } else { write!(f, "{}:{}", self.service, self.port) }
    }
}

/// Where a service port can be reached.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Frontend {
    /// An address of the Service: ClusterIP, external IP or load balancer IP.
    Address {
        /// The address.
        ip: IpAddr,
        /// The protocol.
        protocol: Protocol,
        /// The service port's number.
        port: u16,
    },
    /// A port of the node, at the addresses that [`NodeView::answers_node_ports`] tells.
    NodePort {
        /// The family.
        family: Family,
        /// The protocol.
        protocol: Protocol,
        /// The number.
        port: u16,
    },
}

impl Frontend {
    /// The family of the frontend.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { ip, .. } => Family::of(*ip),
            Self::NodePort { family, .. } => *family,
        }
    }

    /// The protocol of the frontend.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Address { protocol, .. } | Self::NodePort { protocol, .. } => *protocol,
        }
    }

    /// The port number of the frontend.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address { port, .. } | Self::NodePort { port, .. } => *port,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { ip, protocol, port } => write!(f, "{protocol}:{}", std::net::SocketAddr::new(*ip, *port)),
            Self::NodePort { family, protocol, port } => write!(f, "{protocol}:node port {port} ({})", family.as_str()),
        }
    }
}

/// By which field of the Service a frontend is claimed. The order decides between two claims of one service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Role {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`: the only role that source ranges apply to.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

/// The order of claims on one frontend; the least wins. A load balancer or external address never takes a ClusterIP,
/// then the older Service wins (an absent creation time counts as newest), then the name, then the port's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Rank {
    not_cluster_ip: bool,
    created: (bool, Option<Timestamp>),
    service: ObjectName,
    port: Arc<str>,
    role: Role,
}

/// One service port in one family, as this node serves it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// The service port.
    pub name: ServicePortName,
    /// The family.
    pub family: Family,
    /// When its Service was made (`metadata.creationTimestamp`).
    pub created: Option<Timestamp>,
    /// Its endpoints by use.
    pub endpoints: EndpointLists,
    /// How one of them is chosen.
    pub schedule: Schedule,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Whether it has a node port, a load balancer address or an external IP.
    pub accessible: bool,
    /// ClientIP affinity and its timeout.
    pub affinity: Option<Duration>,
    /// Sources that may reach the load balancer addresses; empty: all may.
    pub source_ranges: Arc<[IpNet]>,
    /// The load balancer addresses of the Service, where it has source ranges: see [`Target::allows_own_addresses`].
    pub ranged_ips: Arc<[IpAddr]>,
}

impl Target {
    /// What is the same for two targets of one Service if they are the same service port in the same family.
    pub(super) fn port_key(&self) -> (Family, Protocol, Arc<str>) {
        (self.family, self.name.protocol, self.name.port.clone())
    }

    /// The endpoints whose clients are remembered: with ClientIP affinity, those that are in use.
    pub fn remembered(&self) -> impl Iterator<Item = SocketAddr> {
        self.endpoints.used().filter(|_| self.affinity.is_some())
    }

    /// Whether the Service's load balancer addresses are themselves allowed sources: so if a range holds this node's
    /// primary address (the node may send from them).
    pub fn allows_own_addresses(&self, node: &NodeView) -> bool {
        self.source_ranges.iter().any(|range| node.primary.iter().any(|ip| range.contains(ip)))
    }
}

/// A target with the frontends that it claims.
pub(super) type Claiming = (Arc<Target>, Vec<(Frontend, Rank)>);

/// The targets of a Service and the frontends that each of them claims, as far as there is `room`.
pub(super) fn targets<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeView,
    choice: &Choice<'_>,
    room: &mut Room,
) -> Vec<Claiming> {
    let mut out = Vec::new();
    for family in Family::BOTH {
        let Some(cluster_ip) = service.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family) else {
            continue;
        };
        let of_family = |ips: &[IpAddr]| ips.iter().copied().filter(|ip| Family::of(*ip) == family).collect::<Vec<_>>();
        let (external, balancer) = (of_family(&service.external_ips), of_family(&service.load_balancer_ips));
        let ranges = source_ranges(&service.source_ranges, family);
        let slice_ports = SlicePorts::of(slices.clone(), family, &service.ports);
        for port in &service.ports {
            let accessible = port.node_port != 0 || !external.is_empty() || !balancer.is_empty();
            let uses = Uses {
                cluster: !service.internal_local || accessible,
                local: service.internal_local || (service.external_local && accessible),
            };
            let own_port = port.protocol == Protocol::Tcp && node.own_ports.contains(&port.node_port);
            if own_port {
                room.own_port(port.node_port);
            }
            let node_port = port.node_port != 0 && !own_port;
            if room.is_full() {
                room.skipped(1 + balancer.len() + external.len() + usize::from(node_port));
                continue;
            }
            let merged = slice_ports.merge(port, &node.name, (limits::ENDPOINTS, room.looks()));
            room.merged(&merged);
            let name =
                ServicePortName { service: service.name.clone(), port: port.name.clone(), protocol: port.protocol };
            let takes_turns = limits::takes_turns(choice.schedule.scheduler);
            let endpoints = EndpointLists::new(&merged.endpoints, uses, node, choice);
            let sticks = |room: &mut Room| room.take_sticky(limits::sticky_rules(&endpoints, node_port));
            let affinity = service.affinity.filter(|_| sticks(room));
            let keeps = !(takes_turns || affinity.is_some()) || room.take_chain();
            let scheduler = if takes_turns && !keeps { Scheduler::Random } else { choice.schedule.scheduler };
            let target = Arc::new(Target {
                name,
                family,
                created: service.created,
                endpoints,
                schedule: Schedule { scheduler, ..choice.schedule },
                internal_local: service.internal_local,
                external_local: service.external_local,
                accessible,
                affinity: affinity.filter(|_| keeps),
                source_ranges: ranges.clone(),
                ranged_ips: if ranges.is_empty() { Arc::default() } else { balancer.as_slice().into() },
            });
            let address = |ip, role| {
                (Frontend::Address { ip, protocol: port.protocol, port: port.port }, rank(service, port, role))
            };
            let mut claims = Vec::new();
            for (role, ips) in
                [(Role::ClusterIp, &[cluster_ip][..]), (Role::LoadBalancer, &balancer), (Role::ExternalIp, &external)]
            {
                let rows = limits::rows(&target, role);
                claims.extend(ips.iter().filter(|_| room.take(rows)).map(|ip| address(*ip, role)));
            }
            if node_port && room.take(limits::rows(&target, Role::NodePort)) {
                let frontend = Frontend::NodePort { family, protocol: port.protocol, port: port.node_port };
                claims.push((frontend, rank(service, port, Role::NodePort)));
            }
            if !claims.is_empty() {
                out.push((target, claims));
            }
        }
    }
    out
}

/// The ranges that count for a family: those of the other do not, and a /0 means that there is no restriction.
fn source_ranges(all: &[IpNet], family: Family) -> Arc<[IpNet]> {
    let ranges: Vec<_> = all.iter().copied().filter(|net| Family::of(net.addr()) == family).collect();
    if ranges.iter().any(|net| net.prefix_len() == 0) { Arc::default() } else { IpNet::aggregate(&ranges).into() }
}

fn rank(service: &Service, port: &ServicePort, role: Role) -> Rank {
    Rank {
        not_cluster_ip: role != Role::ClusterIp,
        created: (service.created.is_none(), service.created),
        service: service.name.clone(),
        port: port.name.clone(),
        role,
    }
}

impl Rank {
    /// The role of the claim.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Whether the claim is by a ClusterIP.
    pub fn is_cluster_ip(&self) -> bool {
        !self.not_cluster_ip
    }

    /// The claiming Service.
    pub fn service(&self) -> &ObjectName {
        &self.service
    }
}
