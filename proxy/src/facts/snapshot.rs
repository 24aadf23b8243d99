//! Everything that is told, as it was at one moment.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::services::Made;
use super::{IgnoredPage, NodeFacts, SyncFacts};
use crate::desired::target::{Frontend, Target};
use crate::state::objects::ObjectName;
use crate::traffic::Seen;

/// Everything, at one moment. Shares what it can with the run loop.
#[derive(Debug)]
pub struct Snapshot {
    /// Another number: something has changed.
    pub number: u64,
    /// The node and the proxy on it.
    pub node: NodeFacts,
    /// The Services that are served, by name.
    pub services: Vec<ServiceEntry>,
    /// The last syncs, the oldest first.
    pub history: Vec<Arc<SyncFacts>>,
    /// What is left out.
    pub ignored: IgnoredPage,
    /// Orders and texts that somebody asked for.
    pub(super) made: Made,
}

/// A Service.
#[derive(Debug)]
pub struct ServiceEntry {
    /// Its name.
    pub name: ObjectName,
    /// `spec.type`.
    pub kind: Arc<str>,
    /// Its ports, each in each of its families.
    pub ports: Vec<PortEntry>,
    /// How it is.
    pub health: HealthFacts,
}

/// A port of a Service in one family.
#[derive(Debug)]
pub struct PortEntry {
    /// As this node serves it.
    pub target: Arc<Target>,
    /// Where it wants to be reached.
    pub frontends: Vec<Frontend>,
    /// What it got; `None`: nobody counts.
    pub seen: Option<Seen>,
}

/// Endpoints by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointCounts {
    /// Those that are ready.
    pub ready: usize,
    /// Those that serve: ready ones, and terminating ones that still do.
    pub serving: usize,
    /// Terminating ones that still serve.
    pub terminating: usize,
    /// Those that neither are ready nor terminate while they still serve: they get nothing.
    pub unusable: usize,
    /// Ready ones on this node.
    pub local: usize,
}

impl EndpointCounts {
    /// Of a service port.
    pub fn of(target: &Target) -> Self {
        let lists = &target.endpoints;
        Self {
            ready: lists.ready,
            serving: lists.serving.len(),
            terminating: lists.terminating,
            unusable: lists.unusable,
            local: lists.local_ready,
        }
    }

    /// The larger of both, number by number: the ports of a Service have the same endpoints most often.
    pub(super) fn or_more(self, other: Self) -> Self {
        Self {
            ready: self.ready.max(other.ready),
            serving: self.serving.max(other.serving),
            terminating: self.terminating.max(other.terminating),
            unusable: self.unusable.max(other.unusable),
            local: self.local.max(other.local),
        }
    }
}

/// How a Service is, at a glance.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthFacts {
    /// In one word.
    pub state: HealthState,
    /// Why it is not `ok`, as a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How a Service is, in one word. The order is that of weight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum HealthState {
    /// Every port has endpoints, all of them usable, and is served at all of its addresses.
    Ok,
    /// It answers, but something of it does not: an endpoint, an address, one of its families, or the internal policy Local that finds nobody here.
    Degraded,
    /// New connections to a port of it are refused in every family that it has: no endpoint is usable.
    Down,
}

impl HealthState {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// The policies of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policies {
    /// `spec.internalTrafficPolicy`: `Cluster` or `Local`.
    pub internal: String,
    /// `spec.externalTrafficPolicy` where it counts: `Cluster` or `Local`.
    pub external: String,
    /// `spec.sessionAffinity`: `None` or `ClientIP`.
    pub session_affinity: String,
    /// For how long a client is remembered, in seconds; absent without affinity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u64>,
}

impl Default for Policies {
    fn default() -> Self {
        let cluster = || "Cluster".to_owned();
        Self { internal: cluster(), external: cluster(), session_affinity: "None".to_owned(), affinity_seconds: None }
    }
}

impl Policies {
    /// Of a service port.
    pub fn of(target: &Target) -> Self {
        let policy = |local: bool| if local { "Local" } else { "Cluster" }.to_owned();
        Self {
            internal: policy(target.internal_local),
            external: policy(target.external_local),
            session_affinity: if target.affinity.is_some() { "ClientIP" } else { "None" }.to_owned(),
            affinity_seconds: target.affinity.map(|timeout| timeout.as_secs()),
        }
    }
}
