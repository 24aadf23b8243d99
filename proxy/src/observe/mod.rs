//! What others see of the run loop: health, metrics, the log's faults and the status document. Decides nothing.

mod counting;
mod looks;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backend::Backend;
use crate::conntrack::Cleaned;
use crate::events::{self, Events, Notice, Reason, Regarding};
use crate::facts::history::Done;
use crate::facts::{History, ServiceFacts, Snapshot, Watched};
use crate::health::Health;
use crate::leftovers::Outcome;
use crate::metrics::{Counts, Metrics, Policy, SyncReport};
use crate::node::{self, families};
use crate::proxy::{Proxy, Synced};
use crate::settings::{Settings, Source};
use crate::state::objects::{Family, Ignored, ObjectName};
use crate::status::{Drift, LastSync};
use crate::watch::WatchStats;

use counting::{Counting, objects};

/// How often what stays wrong is reported to the Events, which decide what is posted of it.
const REMIND: Duration = Duration::from_secs(10);

/// The eyes on one run loop.
#[derive(Debug)]
pub struct Observer {
    /// For `/healthz` and `/livez`.
    pub health: Health,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// Where Events are reported.
    pub events: Events,
    /// The families of this host, as they were at the start.
    pub families: Vec<Family>,
    reminded: Instant,
    stats: Arc<WatchStats>,
    watch_errors: [u64; WatchStats::KINDS.len()],
    started: Timestamp,
    /// Since when something waits for a sync.
    queued: Option<Instant>,
    seen: (u64, u64),
    /// How many changes of slices that wait have been seen.
    seen_triggers: usize,
    /// Services or endpoints may have changed since they were counted.
    uncounted: bool,
    ignored: BTreeSet<Ignored>,
    /// Of which [`Proxy::ignored_changes`] that is; `None`: of none that can be known again.
    ignored_at: Option<u64>,
    /// What another proxy or datapath left and could not be removed, at the last look.
    leftovers: Vec<String>,
    last_sync: Option<LastSync>,
    syncs: u64,
    failures: u64,
    drift: Drift,
    counting: Counting,
    history: History,
    counts: Counts,
    kernel: String,
    generation: Arc<AtomicU64>,
}

impl Observer {
    /// Starts counting. `metrics` and `events` are where others count and report, too; `generation` goes up whenever there is
    /// something new to tell.
    pub fn new(
        settings: &Settings,
        stats: Arc<WatchStats>,
        metrics: Arc<Metrics>,
        events: Events,
        generation: Arc<AtomicU64>,
    ) -> Self {
        // From a folder, a Node need not be there.
        let needs_node = matches!(settings.source, Source::Api { .. });
        Self {
            health: Health::new(settings.sync_period * 2, needs_node),
            metrics,
            events,
            families: families::of_this_host(),
            reminded: Instant::now(),
            stats,
            watch_errors: Default::default(),
            started: Timestamp::now(),
            queued: None,
            seen: (0, 0),
            seen_triggers: 0,
            uncounted: true,
            ignored: BTreeSet::new(),
            ignored_at: None,
            leftovers: Vec::new(),
            last_sync: None,
            syncs: 0,
            failures: 0,
            drift: Drift::default(),
            counting: Counting::new(settings.datapath.service_metrics),
            history: History::default(),
            counts: Counts::default(),
            kernel: node::kernel_release(),
            generation,
        }
    }

    /// The proxy begins to serve its Node.
    pub fn starting(&self, backend: &str) {
        let note = format!("Kubeferry {} serves this Node by {backend}", env!("CARGO_PKG_VERSION"));
        self.events.report(Notice::new(Regarding::Node, Reason::Starting, note));
    }

    /// Events were taken in; `dirty`: something waits to be brought into force.
    pub fn took_in<B: Backend>(&mut self, proxy: &Proxy<B>, dirty: bool) {
        // A start that waits for pod ranges is not ready; kube-proxy answers nobody meanwhile.
        let waits = !proxy.has_synced() && proxy.lacks_ranges();
        self.health.node(proxy.state().node().filter(|_| !waits && !proxy.state().node_is_gone()));
        let changes = proxy.state().changes();
        let (services, endpoints) = (changes.service_changes, changes.endpoint_changes);
        self.metrics.changes_seen(services.saturating_sub(self.seen.0), endpoints.saturating_sub(self.seen.1));
        self.seen = (services, endpoints);
        let (services, endpoints) = proxy.waiting();
        self.metrics.changes_pending(services, endpoints);
        if dirty && self.queued.is_none() {
            self.health.queued(&self.families);
            self.metrics.sync_queued(&Family::BOTH);
            self.queued = Some(Instant::now());
        }
        let triggers = &changes.triggers;
        for (family, trigger, _) in triggers.iter().skip(self.seen_triggers).filter(|(_, at, _)| *at >= self.started) {
            if let Ok(after) = Timestamp::now().duration_since(*trigger).try_into() {
                self.metrics.watched(*family, after);
            }
        }
        self.seen_triggers = triggers.len();
        self.faults(proxy);
        for (kind, seen) in WatchStats::KINDS.into_iter().zip(&mut self.watch_errors) {
            let now = self.stats.of(kind).errors();
            (*seen..now).for_each(|_| self.metrics.watch_error(kind.as_str()));
            *seen = now;
            let stats = self.stats.of(kind);
            self.metrics.watch(kind.as_str(), stats.events(), stats.lists(), stats.last_event());
        }
    }

    /// A sync succeeded.
    pub fn synced<B: Backend>(&mut self, proxy: &Proxy<B>, synced: &Synced) {
        let (report, now) = (&synced.report, Timestamp::now());
        tracing::info!(changed = synced.changes.services.len(), ops = report.changes, took = ?synced.took, full = report.full, "synced");
        let change_to_kernel = self.queued.take().map(|queued| queued.elapsed());
        change_to_kernel.into_iter().for_each(|after| self.metrics.in_kernel(after));
        let since = self.started;
        self.history.done(&Done { report, changes: &synced.changes, took: synced.took, change_to_kernel, since }, now);
        self.seen = (0, 0);
        self.seen_triggers = 0;
        // All of it is gone through, which is for quiet moments; but of a start nobody is to be told that there is nothing.
        self.uncounted = self.syncs > 0;
        if !self.uncounted {
            self.counts = objects(proxy);
            self.metrics.counts(&self.counts);
        }
        self.syncs += 1;
        self.health.updated(&self.families);
        self.metrics.sync_done(&SyncReport {
            full: report.full,
            took: synced.took,
            rows_written: report.changes,
            families: Family::BOTH.to_vec(),
        });
        let (services, endpoints) = proxy.waiting();
        self.metrics.changes_pending(services, endpoints);
        for (family, trigger, _) in synced.changes.triggers.iter().filter(|(_, trigger, _)| *trigger >= self.started) {
            if let Ok(after) = now.duration_since(*trigger).try_into() {
                self.metrics.programmed(*family, after);
            }
        }
        self.last_sync = Some(LastSync {
            at: now,
            took: synced.took.as_secs_f64(),
            full: report.full,
            rows_written: report.changes,
            error: None,
        });
        self.repaired(report.repaired, now);
        self.tables(proxy);
        self.changed();
    }

    /// A sync failed and will be tried again.
    pub fn failed(&mut self, error: &dyn std::fmt::Display, took: Duration, retry: Option<Instant>) {
        let retry_in = retry.map(|at| at.saturating_duration_since(Instant::now()));
        tracing::error!(%error, ?retry_in, "sync failed");
        // The sync took the changes out of the state: they are counted from 0 again.
        self.seen = (0, 0);
        self.seen_triggers = 0;
        self.failures += 1;
        self.metrics.sync_failed(&Family::BOTH);
        let now = Timestamp::now();
        self.history.failed(error.to_string(), took, now);
        self.last_sync = Some(LastSync {
            at: now,
            took: took.as_secs_f64(),
            full: true,
            rows_written: 0,
            error: Some(error.to_string()),
        });
        self.changed();
    }

    /// There is something new to tell.
    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// What another proxy or datapath left was looked for, and removed as far as that could be. What stays is said once, and an
    /// Event reminds of it.
    pub fn leftovers(&mut self, outcome: Outcome) {
        let Outcome { removed, notes, failed } = outcome;
        removed.iter().for_each(|what| tracing::info!(%what, "removed what another proxy or datapath left"));
        notes.iter().for_each(|note| tracing::warn!("{note}"));
        self.metrics.leftovers(failed.len());
        let new = failed.iter().filter(|error| !self.leftovers.contains(*error));
        new.for_each(|error| tracing::error!(%error, "cannot remove what another proxy left"));
        self.leftovers = failed;
        self.report_leftovers();
    }

    fn report_leftovers(&self) {
        if !self.leftovers.is_empty() {
            let note = format!(
                "what another proxy or datapath left may be in force beside ours; `kubeferry cleanup --kube-proxy`, or `kube-proxy \
                 --cleanup`, on the node removes it: {}",
                self.leftovers.join("; ")
            );
            self.events.report(Notice::new(Regarding::Node, Reason::LeftoversRemain, note));
        }
    }

    /// Stale entries of connection tracking were looked for.
    pub fn cleaned(&self, cleaned: Cleaned, took: Duration) {
        if cleaned.deleted > 0 {
            tracing::info!(entries = cleaned.deleted, listed = cleaned.listed, "deleted stale UDP connections");
        }
        let v6 = cleaned.deleted_v6 as u64;
        self.metrics.conntrack_cleaned(Family::V4, took, cleaned.deleted as u64 - v6);
        self.metrics.conntrack_cleaned(Family::V6, took, v6);
    }

    fn tables<B: Backend>(&mut self, proxy: &Proxy<B>) {
        for (map, rows) in proxy.rows() {
            self.metrics.rows(map, *rows);
        }
        let without = proxy.desired().without_local();
        for family in Family::BOTH {
            self.metrics.no_local_endpoints(family, Policy::Internal, without.internal[family as usize]);
            self.metrics.no_local_endpoints(family, Policy::External, without.external[family as usize]);
        }
        self.faults(proxy);
    }

    /// Says what has become wrong with the objects, or right again.
    fn faults<B: Backend>(&mut self, proxy: &Proxy<B>) {
        // Nearly every turn changes nothing of it, and it may be long. What the datapath finds by itself is seen after the next look at
        // the kernel; before the first sync there is none.
        let at = proxy.has_synced().then(|| proxy.ignored_changes());
        if std::mem::replace(&mut self.ignored_at, at) == at && at.is_some() {
            return;
        }
        let ignored: BTreeSet<Ignored> = proxy.ignored().into_iter().collect();
        if ignored == self.ignored {
            return;
        }
        for fault in ignored.difference(&self.ignored) {
            tracing::warn!(what = %fault.what, why = %fault.why, "ignored");
        }
        // What is ignored for another reason now has been told.
        let left: BTreeSet<&str> = ignored.iter().map(|fault| fault.what.as_str()).collect();
        for fault in self.ignored.iter().filter(|fault| !left.contains(fault.what.as_str())) {
            tracing::info!(what = %fault.what, "no longer ignored");
        }
        self.metrics.ignored(ignored.len());
        self.metrics.fallbacks(events::fallbacks(proxy));
        self.ignored = ignored;
        self.changed();
        self.remind(proxy);
    }

    /// Reports everything that is wrong now.
    fn remind<B: Backend>(&mut self, proxy: &Proxy<B>) {
        self.reminded = Instant::now();
        self.report_leftovers();
        if !self.ignored.is_empty() {
            events::standing(proxy).into_iter().for_each(|notice| self.events.report(notice));
        }
    }

    /// Everything as it is now.
    pub fn snapshot<B: Backend>(&mut self, proxy: &mut Proxy<B>, settings: &Settings) -> Snapshot {
        self.look(proxy);
        self.count_objects(proxy);
        self.watched().snapshot(proxy, settings)
    }

    /// One Service as it is now; `None`: there is none of this name.
    pub fn service<B: Backend>(&mut self, proxy: &mut Proxy<B>, name: &ObjectName) -> Option<ServiceFacts> {
        self.look(proxy);
        self.watched().service(proxy, name)
    }

    fn watched(&self) -> Watched<'_> {
        let health = self.health.report();
        Watched {
            started: self.started,
            kernel: &self.kernel,
            healthy: health.healthy,
            node_eligible: health.node_eligible.unwrap_or(false),
            last_sync: self.last_sync.as_ref(),
            syncs: (self.syncs, self.failures),
            history: &self.history,
            drift: &self.drift,
            counts: &self.counts,
            level: self.counting.level,
            traffic: &self.counting.totals,
            read: self.counting.read,
        }
    }
}

#[cfg(test)]
mod tests;
