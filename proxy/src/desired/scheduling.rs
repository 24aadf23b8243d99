//! How the endpoints of a Service are chosen on this node: its own scheduler where the datapath can do it, otherwise the
//! node's; and the weights of its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::scheduler::slots::are_rounded;
use crate::scheduler::slow_start::Ramps;
use crate::scheduler::{Schedule, Scheduler};
use crate::state::convert::annotations::{SCHEDULER, SLOW_START};
use crate::state::objects::{Ignored, Scheduling, Service};

use super::endpoints::Candidate;
use super::node_view::NodeView;
use super::target::Claiming;

/// What a Service's lists of endpoints are made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    /// What is in force.
    pub(super) schedule: Schedule,
    /// What the Service asks for.
    scheduling: Option<&'a Scheduling>,
    /// Endpoints that are not at their whole weight, as of the time.
    ramps: Option<(&'a Ramps, Duration)>,
}

/// The schedule of a Service: what it asks for, or the node's.
pub(super) fn schedule(scheduling: Option<&Scheduling>, node: &NodeView) -> Schedule {
    let Some(scheduling) = scheduling else { return node.schedule };
    let possible = |scheduler: &Scheduler| node.counts_connections || !scheduler.counts_connections();
    Schedule {
        scheduler: scheduling.scheduler.filter(possible).unwrap_or(node.schedule.scheduler),
        hash_key: scheduling.hash_key.unwrap_or(node.schedule.hash_key),
        ..node.schedule
    }
}

impl<'a> Choice<'a> {
    pub(super) fn new(service: &'a Service, node: &NodeView, ramps: Option<(&'a Ramps, Duration)>) -> Self {
        let scheduling = service.scheduling.as_deref();
        Self { schedule: schedule(scheduling, node), scheduling, ramps }
    }

    /// Whether the candidate may get new connections at all.
    pub(super) fn admits(&self, candidate: &Candidate<'_>) -> bool {
        self.scheduling.is_none_or(|scheduling| scheduling.weights.of(candidate.endpoint) > 0)
    }

    /// Those of the list that have a weight, with their weights as the scheduler is to use them (empty: all are 1).
    pub(super) fn weigh(
        &self,
        list: Arc<[SocketAddr]>,
        merged: &BTreeMap<SocketAddr, Candidate<'_>>,
    ) -> (Arc<[SocketAddr]>, Arc<[u16]>) {
        let Some(scheduling) = self.scheduling else { return (list, Arc::default()) };
        let of = |endpoint: &SocketAddr| {
            merged.get(endpoint).map_or(1, |candidate| scheduling.weights.of(candidate.endpoint))
        };
        let weighted = list.iter().map(|endpoint| (*endpoint, of(endpoint))).filter(|(_, weight)| *weight > 0);
        let (kept, mut weights): (Vec<_>, Vec<_>) = weighted.unzip();
        let list = if kept.len() == list.len() { list } else { kept.into() };
        if !self.schedule.scheduler.uses_weights() {
            weights.fill(1);
        }
        self.ramp(&list, &mut weights);
        let even = weights.windows(2).all(|pair| pair[0] == pair[1]);
        (list, if even { Arc::default() } else { weights.into() })
    }

    /// While an endpoint is on its way, all weights are given in percent, or as near to it as their size allows.
    fn ramp(&self, list: &[SocketAddr], weights: &mut [u16]) {
        let Some((ramps, now)) = self.ramps else { return };
        let percents: Vec<u16> = list.iter().map(|endpoint| ramps.percent(endpoint.ip(), now)).collect();
        if percents.iter().all(|percent| *percent == 100) {
            return;
        }
        let scale = 100.min(u16::MAX / weights.iter().copied().max().unwrap_or(1));
        for (weight, percent) in weights.iter_mut().zip(percents) {
            let part = u32::from(*weight) * u32::from(scale) * u32::from(percent) / 100;
            *weight = u16::try_from(part).unwrap_or(u16::MAX).max(1);
        }
    }

    /// What of the Service's wishes is not done, and tables that are too small for it.
    pub(super) fn faults(&self, service: &Service, targets: &[Claiming]) -> Vec<Ignored> {
        let Schedule { scheduler, table_size, .. } = self.schedule;
        let may_be_coarse = scheduler == Scheduler::Mh || (self.scheduling.is_some() && self.ramps.is_none());
        let mut faults = Vec::new();
        let mut fault = |port: Option<&str>, why: String| {
            let port = port.map(|port| format!(" port {port:?}")).unwrap_or_default();
            faults.push(Ignored { what: format!("Service {}{port}", service.name), why });
        };
        if let Some(asked) = self.scheduling.and_then(|asks| asks.scheduler).filter(|asked| *asked != scheduler) {
            let text = "asks how many connections each endpoint has, which only --backend ebpf counts";
            fault(None, format!("annotation {SCHEDULER} ignored: {asked} {text}; {scheduler}, the node's, is used"));
        }
        if self.scheduling.is_some_and(|asks| asks.slow_start.is_some()) && !scheduler.starts_slowly() {
            let able = Scheduler::ALL.into_iter().filter(|scheduler| scheduler.starts_slowly()).map(Scheduler::name);
            let able = able.collect::<Vec<_>>().join(", ");
            fault(None, format!("annotation {SLOW_START} ignored: {scheduler} has no slow start, {able} have"));
        }
        // One line for a port, whatever its families and lists.
        let mut told = BTreeSet::new();
        for (target, _) in targets.iter().filter(|_| may_be_coarse) {
            let lists = &target.endpoints;
            for (list, weights) in [(&lists.cluster, &lists.cluster_weights), (&lists.local, &lists.local_weights)] {
                let few = scheduler == Scheduler::Mh && list.len() > table_size as usize / 100;
                let rounded = are_rounded(scheduler, weights);
                if (few || rounded) && told.insert((target.name.clone(), few)) {
                    fault(Some(&target.name.port), coarse(few, list.len(), table_size));
                }
            }
        }
        faults
    }
}

fn coarse(table: bool, endpoints: usize, table_size: u32) -> String {
    if table {
        format!(
            "{endpoints} endpoints share {table_size} slots of mh: their shares differ by more than 1 %; \
             a --maglev-table-size of at least {} gives each a hundred (up to 65537)",
            endpoints * 100
        )
    } else {
        format!("its weights are rounded: they come to more than {} slots", crate::scheduler::slots::MOST)
    }
}
