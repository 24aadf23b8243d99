//! The compact form of every object that Kubeferry reads. A watch turns each Kubernetes object into one of these and
//! drops the original, so memory follows what is needed and not what the API sends.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use super::text::{Quoted, is_name, tame};
use crate::scheduler::weights::Weights;
use crate::scheduler::{HashKey, Scheduler};

/// `namespace/name` of an object; `namespace` is empty for cluster-wide objects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ObjectName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Builds the name from its two parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The Service by which pods reach the API server.
    pub fn api_server() -> Self {
        Self::new("default", "kubernetes")
    }

    /// Whether Kubernetes could have an object of this name, in a namespace or cluster-wide.
    pub fn is_proper(&self, namespaced: bool) -> bool {
        is_name(&self.name) && if namespaced { is_name(&self.namespace) } else { self.namespace.is_empty() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// `spec.ports[].protocol` of a Service, `ports[].protocol` of an EndpointSlice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
    /// IP protocol 132.
    Sctp,
}

impl Protocol {
    /// All that Services have.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The IP protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The name as nft, `--to` and log lines write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(format!("unknown protocol {}: use TCP, UDP or SCTP", Quoted(text))),
        }
    }
}

/// One of the two IP families; a dual-stack proxy handles both at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order that output uses.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`, as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A Service, reduced to what a proxy reads. Semantics of each field: kube-proxy's `serviceport.go`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Service {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// `metadata.creationTimestamp`; absent counts as newest.
    pub created: Option<Timestamp>,
    /// `spec.type`, kept for display only; no rule of the datapath depends on it but [`Service::external_local`].
    pub kind: Arc<str>,
    /// The ClusterIP of each family the Service has (`spec.clusterIPs` paired with `spec.ipFamilies`).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP or absent, both families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, both families, aggregated (none contains another).
    pub source_ranges: Vec<IpNet>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is `Local` and the Service is externally accessible by its type or external IPs.
    pub external_local: bool,
    /// `spec.sessionAffinityConfig.clientIP.timeoutSeconds` where `spec.sessionAffinity` is `ClientIP`.
    pub affinity: Option<Duration>,
    /// `spec.healthCheckNodePort`, 0 when there is none to serve.
    pub health_check_node_port: u16,
    /// Kubeferry's annotations about schedulers; `None`: there are none.
    pub scheduling: Option<Box<Scheduling>>,
}

/// What the annotations `kubeferry.dev/...` of a Service ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Scheduling {
    /// `scheduler`; `None`: the node's.
    pub scheduler: Option<Scheduler>,
    /// `hash-key`.
    pub hash_key: Option<HashKey>,
    /// `weights`.
    pub weights: Weights,
    /// `slow-start`, longer than zero.
    pub slow_start: Option<Duration>,
}

/// One entry of a Service's `spec.ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePort {
    /// `name`; `""` is a valid name.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, never 0.
    pub port: u16,
    /// `nodePort`, 0 when there is none.
    pub node_port: u16,
}

/// An EndpointSlice, reduced to what a proxy reads.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct EndpointSlice {
    /// `metadata.namespace` and `metadata.name`.
    pub name: ObjectName,
    /// The Service it belongs to: label `kubernetes.io/service-name` in the same namespace.
    pub service: ObjectName,
    /// `addressType`; FQDN slices never get here.
    pub family: Family,
    /// `ports`, without those whose name or number is null or 0.
    pub ports: Arc<[SlicePort]>,
    /// `endpoints`, without those that have no address.
    pub endpoints: Vec<SliceEndpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`.
    pub trigger_time: Option<Timestamp>,
}

impl EndpointSlice {
    /// Whether two versions of a slice say the same of its endpoints.
    pub fn same_endpoints(&self, other: &Self) -> bool {
        self.family == other.family && self.ports == other.ports && self.endpoints == other.endpoints
    }
}

/// One entry of a slice's `ports`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlicePort {
    /// `name`, joined with the Service port's name.
    pub name: Arc<str>,
    /// `protocol`, joined with the Service port's protocol.
    pub protocol: Protocol,
    /// `port`: where the endpoint listens.
    pub port: u16,
}

/// One entry of a slice's `endpoints`. A tenant may make a million of them: what few have takes little room where it is not.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SliceEndpoint {
    /// `addresses[0]`.
    pub ip: IpAddr,
    /// `conditions.ready`, null counts as true.
    pub ready: bool,
    /// `conditions.serving`, null counts as true.
    pub serving: bool,
    /// `conditions.terminating`, null counts as false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `targetRef.name` where the `kind` is Pod.
    pub pod: Option<PodName>,
    /// `hints`, where it has any; `None` for most.
    pub hints: Option<Arc<Hints>>,
}

/// For whom an endpoint is, if everybody has such hints.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: Vec<Arc<str>>,
    /// `forNodes[].name`.
    pub nodes: Vec<Arc<str>>,
}

impl SliceEndpoint {
    /// The zones that it is hinted for.
    pub fn zone_hints(&self) -> &[Arc<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.zones)
    }

    /// The nodes that it is hinted for.
    pub fn node_hints(&self) -> &[Arc<str>] {
        self.hints.as_deref().map_or(&[], |hints| &hints.nodes)
    }
}

/// Stands for the name of a Pod: 64 bits of a hash of it. Names are only compared, and those of 100,000 endpoints would be
/// the larger part of what is kept of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PodName(NonZeroU64);

impl PodName {
    /// Stands for this name.
    pub fn of(name: &str) -> Self {
        // The same in all of this process: what keys it has is fixed.
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        Self(NonZeroU64::new(hasher.finish()).unwrap_or(NonZeroU64::MAX))
    }
}

/// The Node that this proxy runs on.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// Label `topology.kubernetes.io/zone`, `None` when absent or empty.
    pub zone: Option<Arc<str>>,
    /// The primary address of each family: the first InternalIP, else the first ExternalIP of `status.addresses`.
    pub primary_ips: Vec<IpAddr>,
    /// Every address in `status.addresses` (InternalIP and ExternalIP).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, both families.
    pub pod_cidrs: Vec<IpNet>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// The Node has the taint `ToBeDeletedByClusterAutoscaler`.
    pub to_be_deleted: bool,
}

/// A ServiceCIDR: ranges that ClusterIPs are allocated from.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ServiceCidr {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

/// What was left out of an object, and why; shown as a log line, a metric and an Event. A bad object is a value:
/// it never stops the proxy or its neighbours.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ignored {
    /// The object: `Service default/web`, `EndpointSlice default/web-abc`, or a file with its line.
    pub what: String,
    /// What is wrong with it and what to do about it.
    pub why: String,
}

impl Ignored {
    /// The same, fit to be shown wherever it goes: see [`tame`].
    #[must_use]
    pub fn tamed(self) -> Self {
        Self { what: tame(&self.what, 700), why: tame(&self.why, 1000) }
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}
