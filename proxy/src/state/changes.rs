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

/// How many times of changes are kept, however long syncs fail: the first, as who waits longest says most.
pub const TRIGGERS: usize = 10_000;

/// When the endpoints of a Service changed in the cluster, and in which family.
pub type Trigger = (Family, Timestamp, ObjectName);

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && !self.node && !self.service_cidrs
    }

    /// The endpoints of a Service changed in the cluster then; left out where `TRIGGERS` are known.
    pub fn triggered(&mut self, trigger: Trigger) {
        if self.triggers.len() < TRIGGERS {
            self.triggers.push(trigger);
        }
    }

    /// Adds later changes to these. Of times beyond `TRIGGERS` the later are dropped, which nobody measures then.
    pub fn merge(&mut self, later: Self) {
        self.services.extend(later.services);
        self.node |= later.node;
        self.service_cidrs |= later.service_cidrs;
        self.endpoints_of.extend(later.endpoints_of);
        self.service_changes += later.service_changes;
        self.endpoint_changes += later.endpoint_changes;
        let room = TRIGGERS.saturating_sub(self.triggers.len());
        self.triggers.extend(later.triggers.into_iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_times_that_wait_the_first_are_kept() {
        let at = |second| (Family::V4, Timestamp::from_second(second).unwrap(), ObjectName::new("default", "web"));
        let mut pending = Changes::default();
        for second in 0..3 * TRIGGERS as i64 {
            let mut later = Changes::default();
            later.triggered(at(second));
            later.triggered(at(second));
            pending.merge(later);
        }
        assert_eq!(pending.triggers.len(), TRIGGERS);
        assert_eq!(pending.triggers[0], at(0));
        assert_eq!(pending.triggers.last(), Some(&at(TRIGGERS as i64 / 2 - 1)));
        (0..10).for_each(|second| pending.triggered(at(second)));
        assert_eq!(pending.triggers.len(), TRIGGERS, "nor one by one");
    }
}
