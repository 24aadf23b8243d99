//! One turn of the loop: a sync where something changed and the pace allows it, a glance at the kernel where it is time; and
//! what a changed configuration file means for both.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::Ended;
use super::stale::Stale;
use crate::backend::Backend;
use crate::commands::cleanup;
use crate::facts::{Ask, Told};
use crate::health::node_ports::HealthCheckPorts;
use crate::leftovers::Looks;
use crate::log;
use crate::memory;
use crate::node::families::{self, Mismatches};
use crate::observe::Observer;
use crate::pacing::Pacing;
use crate::proxy::{Proxy, Synced};
use crate::settings::{DetectLocal, Loaded, Settings, SettingsError, change};
use crate::state::objects::ObjectName;

/// How often the kernel's generation is looked at, so that a deleted table is back soon; one small question.
const GLANCE: Duration = Duration::from_secs(2);
/// How long to wait for the Node's pod ranges, as kube-proxy does.
const POD_CIDR_WAIT: Duration = Duration::from_secs(300);
/// What is not as it should be where a changed file is wrong.
const CONFIGURATION: &str = "the configuration file";

/// The proxy and its sense of time.
pub(super) struct Runner<B> {
    pub proxy: Proxy<B>,
    pub settings: Settings,
    pub observer: Observer,
    /// By tokio's clock, which tests put on.
    started: tokio::time::Instant,
    pacing: Pacing,
    glanced: Instant,
    health_checks: HealthCheckPorts,
    /// When health check node ports that cannot be opened were last tried.
    tried: Instant,
    /// Whether the settings have been held against the Node's families.
    fits: bool,
    /// What a start waits for is told.
    told_of_missing_ranges: bool,
    /// Another datapath or kube-proxy may have left something, which goes once ours is in force.
    others: Looks,
    /// Whose stale UDP flows are looked for once more.
    stale: Stale,
}

impl<B: Backend> Runner<B> {
    pub(super) fn new(proxy: Proxy<B>, settings: Settings, observer: Observer) -> Self {
        let now = Instant::now();
        let pacing = Pacing::new(settings.min_sync_period, settings.sync_period);
        let (health, events, metrics) = (&observer.health, &observer.events, &observer.metrics);
        let families = observer.families.clone();
        let health_checks = HealthCheckPorts::new(health.clone(), events.clone(), metrics.clone(), families);
        let (started, glanced, tried) = (tokio::time::Instant::now(), now, now);
        let (fits, told_of_missing_ranges, others, stale) = (false, false, Looks::default(), Stale::default());
        Self {
            proxy,
            settings,
            observer,
            started,
            pacing,
            glanced,
            health_checks,
            tried,
            fits,
            told_of_missing_ranges,
            others,
            stale,
        }
    }

    /// Answers one who serves; whoever asked may have gone.
    pub(super) fn answer(&mut self, ask: Ask) {
        let Self { proxy, settings, observer, .. } = self;
        match ask {
            Ask::Snapshot(reply) => drop(reply.send(Arc::new(observer.snapshot(proxy, settings)))),
            Ask::Service(name, reply) => drop(reply.send(Told::by(|| observer.service(proxy, &name)))),
            Ask::Trace(flow, reply) => drop(reply.send(Told::by(|| proxy.trace(&flow)))),
            Ask::Count(reply) => {
                observer.look(proxy);
                let _ = reply.send(());
            }
        }
    }

    /// How long nothing needs to be done unless something happens.
    pub(super) fn wake_after(&self) -> Duration {
        let now = Instant::now();
        let mut glance = (self.glanced + GLANCE).saturating_duration_since(now);
        if let Some(stale) = self.stale.next() {
            glance = glance.min(stale.saturating_duration_since(now));
        }
        match self.pacing.next() {
            Some(next) if self.proxy.is_dirty() => glance.min(next.saturating_duration_since(now)),
            _ => self.proxy.next_tick().map_or(glance, |tick| glance.min(tick)),
        }
    }

    /// Syncs if something changed and the pace allows it, glances at the kernel if it is time. True: `--once` is done.
    pub(super) fn turn(&mut self) -> anyhow::Result<bool> {
        let now = Instant::now();
        self.observer.health.beat();
        let waited = self.started.elapsed();
        let dirty = self.proxy.is_dirty();
        self.observer.took_in(&self.proxy, dirty);
        let glance = now - self.glanced >= GLANCE;
        if glance {
            self.glanced = now;
        }
        if !self.proxy.has_synced() && !self.proxy.is_ready(waited) {
            anyhow::ensure!(
                self.settings.datapath.detect_local != DetectLocal::NodeCidr || waited < POD_CIDR_WAIT,
                "the Node {} has no spec.podCIDRs after {} s: give it some, or choose another --detect-local-mode",
                self.settings.node_name,
                POD_CIDR_WAIT.as_secs()
            );
            self.tell_of_missing_ranges();
            return Ok(false);
        }
        if !self.fits {
            let settings = &self.settings;
            let found = self.mismatches(settings);
            anyhow::ensure!(found.fatal.is_empty(), "the settings do not fit this node: {}", found.fatal.join("; "));
            let primary = families::primary(settings, self.proxy.state().node());
            tracing::info!(?primary, dual_stack = self.observer.families.len() > 1, "the node's IP families");
            self.fits = true;
        }
        if dirty && self.pacing.may_start(now) {
            match self.proxy.sync() {
                Ok(synced) => {
                    self.pacing.succeeded(Instant::now());
                    self.synced(&synced);
                    if self.settings.once {
                        let refused = &synced.report.refused;
                        let each: Vec<_> = refused.iter().map(|(what, why)| format!("{what}: {why}")).collect();
                        anyhow::ensure!(each.is_empty(), "{} frontends are left out: {}", each.len(), each.join("; "));
                        return Ok(true);
                    }
                }
                Err(error) if self.settings.once => return Err(error.into()),
                Err(error) => {
                    self.pacing.failed(Instant::now());
                    self.observer.failed(&error, now.elapsed(), self.pacing.next());
                }
            }
        }
        let mut due = self.stale.take_due(now);
        // What is wanted and not in force would be taken for what is: the sync that brings it looks at these.
        due.retain(|name| !self.proxy.waits(name));
        if !due.is_empty() && !self.clean(&due) {
            self.stale.changed(&due, Instant::now());
        }
        if self.stale.take_unanswered(now) {
            self.forget_unanswered();
        }
        if glance {
            self.check();
            if now - self.tried >= self.settings.sync_period {
                self.tried = now;
                Handle::current().block_on(self.health_checks.retry(self.proxy.desired().node()));
            }
        }
        Ok(false)
    }

    /// Looks whether the kernel has what it was given, as far as it can be known.
    fn check(&mut self) {
        let start = Instant::now();
        let checked = self.proxy.check();
        if matches!(checked, Ok(Some(_))) {
            self.repaired();
        }
        match checked {
            // While syncs fail, no row was looked at.
            Ok(repair) if self.proxy.has_failed() => {
                if let Some(repair) = repair {
                    self.observer.mended(&self.proxy, &repair, start.elapsed());
                }
            }
            Ok(repair) => {
                self.observer.checked(&mut self.proxy, repair.as_ref(), start.elapsed());
                self.remove_leftovers();
            }
            Err(error) => self.observer.check_failed(&error),
        }
    }

    /// What of these settings is of a family that the node has not, or not first. What is not fatal is logged.
    fn mismatches(&self, settings: &Settings) -> Mismatches {
        let found = families::mismatches(settings, self.proxy.state().node(), &self.observer.families);
        found.other.iter().for_each(|what| tracing::warn!("{what}"));
        found
    }

    /// Takes over what a changed configuration file says. `Some`: only a start can. A file that is wrong changes nothing.
    pub(super) fn reconfigure(&mut self, loaded: Result<Loaded, SettingsError>) -> Option<Ended> {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                tracing::error!(%error, "the changed configuration file is not taken over: the settings in force stay");
                self.refuse(&error.to_string());
                return None;
            }
        };
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let change = change::between(&self.settings, &loaded.settings);
        if !change.restart.is_empty() {
            let settings = change.restart.join(", ");
            tracing::warn!(%settings, "the configuration file changed settings that only a start takes: ending, to be started again; the rules stay in force");
            return Some(Ended::Reconfigured);
        }
        // Before the Node is known, the first sync looks.
        let fatal = if self.fits { self.mismatches(&loaded.settings).fatal } else { Vec::new() };
        if !fatal.is_empty() {
            let error = fatal.join("; ");
            tracing::error!(%error, "the changed configuration file does not fit this node and is not taken over: the settings in force stay");
            self.refuse(&error);
            return None;
        }
        self.proxy.limit(CONFIGURATION, None);
        if change.live.is_empty() {
            tracing::info!("the configuration file comes to the settings that are in force");
        } else {
            tracing::info!(settings = %change.live.join(", "), "the configuration file changed: taken over");
        }
        // Unchanged, it stays as `/debug/flags/v` may have set it.
        if loaded.settings.log.filter != self.settings.log.filter {
            log::change(&loaded.settings.log);
        }
        tracing::debug!(filter = %loaded.settings.log.filter, "what is logged");
        self.pacing.change(loaded.settings.min_sync_period, loaded.settings.sync_period);
        self.observer.health.change(loaded.settings.sync_period * 2);
        self.proxy.reconfigure(loaded.settings.clone());
        self.settings = loaded.settings;
        None
    }

    /// Has everybody told that a changed configuration file is wrong, until it is right.
    fn refuse(&mut self, error: &str) {
        let why = format!("the settings in force stay, and the next start will fail: {error}");
        self.proxy.limit(CONFIGURATION, Some(why));
    }

    /// Says once what a start waits for that the API server cannot be blamed for.
    fn tell_of_missing_ranges(&mut self) {
        let waits = self.proxy.lacks_ranges() && self.proxy.state().node().is_some();
        if waits && !std::mem::replace(&mut self.told_of_missing_ranges, true) {
            tracing::warn!(
                node = %self.settings.node_name,
                seconds = POD_CIDR_WAIT.as_secs(),
                "the Node has no spec.podCIDRs yet, which detectLocalMode NodeCIDR asks for: nothing is served before it has, and the \
                 proxy ends when it has none for so long"
            );
        }
    }

    fn remove_leftovers(&mut self) {
        if self.others.due(Instant::now()) {
            let outcome = Handle::current().block_on(cleanup::others(&self.settings));
            self.others.looked(Instant::now(), !outcome.failed.is_empty());
            self.observer.leftovers(outcome);
        }
    }

    fn synced(&mut self, synced: &Synced) {
        self.observer.synced(&self.proxy, synced);
        if !self.settings.once {
            let (state, node) = (self.proxy.state(), self.proxy.desired().node());
            Handle::current().block_on(self.health_checks.synced(state, node, &synced.changes.services));
        }
        if synced.report.full {
            memory::release();
        }
        self.clean(&synced.stale);
        self.remove_leftovers();
        if !self.settings.once {
            self.stale.changed(&synced.stale, Instant::now());
            let report = &synced.report;
            // A start cannot always tell what was lost from what is new.
            if report.repaired > 0 || (report.full && report.changes > 0) {
                self.repaired();
            }
        }
    }

    /// What others did to the tables is put right: what clients sent meanwhile is looked for.
    fn repaired(&mut self) {
        let now = Instant::now();
        self.stale.changed(&self.proxy.after_repair(), now);
        self.stale.repaired(now);
    }

    /// Has connections begin anew whose first packet went by while rows were missing.
    fn forget_unanswered(&mut self) {
        match self.proxy.forget_unanswered() {
            Ok(0) => self.stale.succeeded(),
            Ok(entries) => {
                self.stale.succeeded();
                tracing::info!(entries, "connections that had passed by missing rules can begin anew");
            }
            Err(error) => {
                self.stale.failed(&error);
                self.stale.repaired(Instant::now());
            }
        }
    }

    /// Deletes the stale UDP flows of these Services. Whether all that were there have been looked at.
    fn clean(&mut self, names: &BTreeSet<ObjectName>) -> bool {
        let start = Instant::now();
        match self.proxy.clean_udp(names) {
            Ok(cleaned) => {
                self.observer.cleaned(cleaned, start.elapsed());
                self.stale.succeeded();
                !cleaned.partial
            }
            Err(error) => {
                self.stale.failed(&error);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
