//! Taking a snapshot: what the run loop and those who watch it know, put together.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::services::Made;
use super::{
    Counts, HealthFacts, HealthState, History, IgnoredPage, NodeFacts, PortEntry, ServiceEntry, ServiceFacts, Snapshot,
    SyncSummary, TrafficSummary,
};
use crate::backend::Backend;
use crate::desired::target::Target;
use crate::metrics;
use crate::proxy::Proxy;
use crate::settings::{ServiceMetrics, Settings};
use crate::state::event::Kind;
use crate::state::objects::ObjectName;
use crate::status::{Drift, LastSync};
use crate::traffic::{Seen, Total, Totals};

/// What is known beside the proxy itself.
#[derive(Debug)]
pub struct Watched<'a> {
    /// When the process started.
    pub started: Timestamp,
    /// The kernel's release.
    pub kernel: &'a str,
    /// No change has waited too long.
    pub healthy: bool,
    /// The node may get new traffic.
    pub node_eligible: bool,
    /// The last sync.
    pub last_sync: Option<&'a LastSync>,
    /// Syncs that succeeded, and that failed.
    pub syncs: (u64, u64),
    /// The last ones.
    pub history: &'a History,
    /// What was found in the kernel.
    pub drift: &'a Drift,
    /// How many objects there are.
    pub counts: &'a metrics::Counts,
    /// `--service-metrics`.
    pub level: ServiceMetrics,
    /// What went by.
    pub traffic: &'a Totals,
    /// When the counters were read, and how long that took.
    pub read: Option<(Timestamp, Duration)>,
}

impl Watched<'_> {
    /// Everything as it is now.
    pub fn snapshot<B: Backend>(&self, proxy: &Proxy<B>, settings: &Settings) -> Snapshot {
        let (ignored, faults) = IgnoredPage::take(proxy);
        let services: Vec<ServiceEntry> = proxy
            .state()
            .services()
            .values()
            .map(|service| {
                let ports = proxy.desired().targets_of(&service.name).map(|(_, target, frontends)| PortEntry {
                    target: target.clone(),
                    frontends: frontends.to_vec(),
                    seen: self.seen(proxy, target).cloned(),
                });
                let ports: Vec<PortEntry> = ports.collect();
                let targets: Vec<&Target> = ports.iter().map(|port| &*port.target).collect();
                let health = health(&targets, faults.get(&service.name));
                ServiceEntry { name: service.name.clone(), kind: service.kind.clone(), ports, health }
            })
            .collect();
        let node = self.node(proxy, settings, &services, ignored.total);
        Snapshot { number: 0, node, services, history: self.history.all(), ignored, made: Made::default() }
    }

    /// One Service as it is now; `None`: there is none of this name.
    pub fn service<B: Backend>(&self, proxy: &Proxy<B>, name: &ObjectName) -> Option<ServiceFacts> {
        let (ignored, fault) = super::ignored::of_service(proxy, name);
        let targets: Vec<&Target> = proxy.desired().targets_of(name).map(|(_, target, _)| &**target).collect();
        let health = health(&targets, fault.as_ref());
        let seen = |target: &Target| self.seen(proxy, target);
        super::service::service(proxy, name, health, ignored, proxy.counting(), &seen)
    }

    fn seen<B: Backend>(&self, proxy: &Proxy<B>, target: &Target) -> Option<&Seen> {
        if !proxy.counting().connections {
            return None;
        }
        self.traffic.of(&(target.name.clone(), target.family))
    }

    fn node<B: Backend>(
        &self,
        proxy: &Proxy<B>,
        settings: &Settings,
        services: &[ServiceEntry],
        ignored: usize,
    ) -> NodeFacts {
        let at = Timestamp::now();
        let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];
        let waiting = kinds.into_iter().filter(|kind| !proxy.state().is_listed(*kind));
        let (took, change_to_kernel) = self.history.latencies();
        let backend = proxy.backend();
        let in_state = |state| services.iter().filter(|service| service.health.state == state).count();
        let both = |numbers: [usize; 2]| numbers.iter().sum();
        NodeFacts {
            version: crate::version::TEXT.to_owned(),
            node: settings.node_name.to_string(),
            backend: backend.name().to_owned(),
            scheduler: settings.datapath.schedule.scheduler.to_string(),
            kernel: self.kernel.to_owned(),
            at,
            started: self.started,
            uptime_seconds: u64::try_from(at.duration_since(self.started).as_secs()).unwrap_or_default(),
            healthy: self.healthy,
            node_eligible: self.node_eligible,
            problem: None,
            waiting_for: waiting.map(|kind| kind.as_str().to_owned()).collect(),
            sync: SyncSummary {
                last: self.last_sync.cloned(),
                succeeded: self.syncs.0,
                failures: self.syncs.1,
                pending: proxy.waiting().0,
                took,
                change_to_kernel,
            },
            drift: self.drift.clone(),
            counts: Counts {
                services: services.len(),
                ports: both(self.counts.ports),
                ready: both(self.counts.ready),
                serving: both(self.counts.serving),
                local: both(self.counts.local),
                degraded: in_state(HealthState::Degraded),
                down: in_state(HealthState::Down),
                ignored,
            },
            rows: proxy.rows().iter().map(|(map, rows)| ((*map).to_owned(), *rows)).collect(),
            datapath: backend.facts().into_iter().chain(backend.costs(proxy.desired())).collect(),
            traffic: self.traffic(proxy),
            settings: settings.describe(),
        }
        .with_problem()
    }

    fn traffic<B: Backend>(&self, proxy: &Proxy<B>) -> TrafficSummary {
        let counting = proxy.counting();
        let start = (Total::default(), Some(0.0));
        let (total, rate) = self.traffic.all().fold(start, |(total, rate), (_, seen)| {
            // A port that is new has no rate yet: the others have.
            (total.plus(seen.total), rate.map(|rate| rate + seen.rate.unwrap_or_default()))
        });
        let twice = self.traffic.all().any(|(_, seen)| seen.rate.is_some());
        TrafficSummary {
            level: self.level.as_str().to_owned(),
            counts_connections: counting.connections,
            counts_active: counting.active,
            counts_packets: counting.packets,
            read: self.read.filter(|_| counting.connections).map(|(at, _)| at),
            read_took_seconds: self.read.filter(|_| counting.connections).map(|(_, took)| took.as_secs_f64()),
            connections: counting.connections.then_some(total.connections),
            connections_per_second: rate.filter(|_| counting.connections && twice),
            active: counting.active.then_some(total.active),
        }
    }
}

impl NodeFacts {
    /// Says what keeps the proxy from being well, by the other fields.
    pub fn with_problem(mut self) -> Self {
        self.problem = crate::status::problem(self.healthy, self.sync.last.as_ref(), &self.drift, &self.waiting_for);
        self
    }
}

/// How a Service with these ports is; `fault` is what else is wrong with it.
fn health(targets: &[&Target], fault: Option<&String>) -> HealthFacts {
    let mut worst: BTreeMap<HealthState, String> = BTreeMap::new();
    let mut say = |state, reason: String| {
        worst.entry(state).or_insert(reason);
    };
    for target in targets {
        let (lists, name, family) = (&target.endpoints, &target.name, target.family.as_str());
        if !lists.any {
            // Who asks by name of a Service of two families takes the one that answers.
            let answers = targets.iter().any(|other| other.name == *name && other.endpoints.any);
            let state = if answers { HealthState::Degraded } else { HealthState::Down };
            let why = match lists.ready {
                0 => format!("{name} ({family}) has no usable endpoint: connections are refused"),
                ready => format!(
                    "{name} ({family}) has {ready} ready endpoints of weight 0 and no other: connections are refused"
                ),
            };
            say(state, why);
        } else if target.internal_local && lists.local.is_empty() {
            // Of the external policy that is no fault: load balancers go to other nodes.
            let reason = format!("{name} ({family}) has internal traffic policy Local and no endpoint on this node");
            say(HealthState::Degraded, reason);
        } else if lists.ready == 0 {
            say(HealthState::Degraded, format!("{name} ({family}) has only endpoints that are terminating"));
        } else if lists.unusable > 0 {
            let all = lists.serving.len() + lists.unusable;
            say(
                HealthState::Degraded,
                format!("{} of {all} endpoints of {name} ({family}) are not ready", lists.unusable),
            );
        }
    }
    if let Some(fault) = fault {
        say(HealthState::Degraded, fault.clone());
    }
    match worst.pop_last() {
        Some((state, reason)) => HealthFacts { state, reason: Some(reason) },
        None => HealthFacts { state: HealthState::Ok, reason: None },
    }
}
