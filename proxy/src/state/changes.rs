//! What has changed since the last look: the work list of the next sync.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::objects::{Family, ObjectName};

/// Everything that the next sync has to look at; its size, not the cluster's, decides what the sync costs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Services whose object or slices changed, by the Service's name (which may not exist any more).
    pub services: BTreeSet<ObjectName>,
    /// Our Node changed in a way that the datapath may depend on: every service is looked at again.
    pub node: bool,
    /// The ServiceCIDRs changed.
    pub service_cidrs: bool,
    /// Services with changed slices.
    pub endpoints_of: BTreeSet<ObjectName>,
    /// How many Service events are in here.
    pub service_changes: u64,
    /// How many EndpointSlice events are in here.
    pub endpoint_changes: u64,
    /// When the changes happened in the cluster (annotation `endpoints.kubernetes.io/last-change-trigger-time`).
    pub triggers: Vec<Trigger>,
}

/// When the endpoints of a Service changed in the cluster, and in which family.
pub type Trigger = (Family, Timestamp, ObjectName);

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs
    }

    /// Adds later changes to these.
    pub fn merge(&mut self, later: Self) {
        self.services.extend(later.services);
        self.node |= later.node;
        self.service_cidrs |= later.service_cidrs;
        self.endpoints_of.extend(later.endpoints_of);
        self.service_changes += later.service_changes;
        self.endpoint_changes += later.endpoint_changes;
        self.triggers.extend(later.triggers);
    }
}
