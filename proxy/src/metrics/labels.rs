//! The labels of series, and what is told to the metrics in one piece.

use prometheus_client::encoding::EncodeLabelSet;

use crate::state::objects::Family;
use crate::traffic::Port;

/// Which traffic policy of a service port asks for local endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Policy {
    /// `internalTrafficPolicy`.
    Internal,
    /// `externalTrafficPolicy`.
    External,
}

impl Policy {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::External => "external",
        }
    }
}

/// What became of an Event that was reported.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EventResult {
    /// The API server has it.
    Posted,
    /// It was not posted, because there were too many or the API server did not take others before.
    Dropped,
    /// The API server did not take it.
    Failed,
}

impl EventResult {
    pub(super) const ALL: [Self; 3] = [Self::Posted, Self::Dropped, Self::Failed];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Posted => "posted",
            Self::Dropped => "dropped",
            Self::Failed => "failed",
        }
    }
}

/// How many Services and endpoints there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Services.
    pub services: usize,
    /// Their ports, of IPv4 and IPv6.
    pub ports: [usize; 2],
    /// Endpoints of these ports that are ready, anywhere.
    pub ready: [usize; 2],
    /// Endpoints of these ports that serve: ready ones, and terminating ones that still answer.
    pub serving: [usize; 2],
    /// Ready endpoints of these ports on this node, each address once a port.
    pub local: [usize; 2],
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct OfState {
    pub(super) ip_family: &'static str,
    pub(super) state: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct OfResult {
    pub(super) result: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct OfFamily {
    pub(super) ip_family: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct OfPolicy {
    pub(super) ip_family: &'static str,
    pub(super) traffic_policy: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct Code {
    pub(super) code: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct Map {
    pub(super) map: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct Reason {
    pub(super) reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct OfServicePort {
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) port: String,
    pub(super) protocol: String,
    pub(super) ip_family: &'static str,
}

impl From<&Port> for OfServicePort {
    fn from((name, family): &Port) -> Self {
        Self {
            namespace: name.service.namespace.to_string(),
            service: name.service.name.to_string(),
            port: name.port.to_string(),
            protocol: name.protocol.to_string(),
            ip_family: family.as_str(),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct Kind {
    pub(super) kind: String,
}

impl From<Family> for OfFamily {
    fn from(family: Family) -> Self {
        Self { ip_family: family.as_str() }
    }
}
