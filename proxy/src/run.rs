//! `kubeferry run`: the one file that names every stage. Events come in by a channel; a sync runs when something has
//! changed; what arrives meanwhile waits in the channel and is put together into the next.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::block_in_place;

use crate::args;
use crate::backend::Backend;
use crate::backend::nftables::kernel::{Kernel, Netfilter};
use crate::backend::nftables::nft::{Nft, NftError, TIMEOUT};
use crate::backend::nftables::reconciler::Reconciler;
use crate::commands::cleanup;
use crate::events::{Events, Notice, Regarding};
use crate::facts::{self, Ask};
use crate::health::node_ports::HealthCheckPorts;
use crate::health::routes::Serving;
use crate::health::{configz, server};
use crate::leftovers::Looks;
use crate::log;
use crate::metrics::Metrics;
use crate::node;
use crate::node::families::{self, Mismatches};
use crate::observe::Observer;
use crate::pacing::Pacing;
use crate::proxy::{Proxy, Synced};
use crate::settings::reload::Reload;
use crate::settings::{BackendName, DetectLocal, Loaded, ServiceMetrics, Settings, SettingsError, change};
use crate::start::Begun;
use crate::watch::{self, WatchStats};

/// How often the kernel's generation is looked at, so that a deleted table is back soon; one small question.
const GLANCE: Duration = Duration::from_secs(2);
/// How long to wait for the Node's pod ranges, as kube-proxy does.
const POD_CIDR_WAIT: Duration = Duration::from_secs(300);
/// How long an end waits for the API server to take the Event about it.
const LAST_EVENT: Duration = Duration::from_secs(3);
/// What is not as it should be where a changed file is wrong.
const CONFIGURATION: &str = "the configuration file";
/// How many events may wait for a running sync to end before the source has to.
const QUEUE: usize = 65_536;

/// Why [`run`] ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// It was told to, or everything is done.
    Done,
    /// The configuration file says something that only a start takes. The rules stay in force.
    Reconfigured,
}

/// Serves the node until SIGTERM or SIGINT (rules stay in force), or with `--once` until everything listed is in force.
/// With `reload`, a changed configuration file is taken over, or ends it.
///
/// # Errors
/// A missing tool or right, or a source that cannot be used; with `--once`, any failure to bring the rows into force.
pub async fn run(settings: Settings, reload: Option<Reload>, begun: Begun) -> anyhow::Result<Ended> {
    let unset = begun.unset;
    let stop = Stop { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
    // One that came before is none to the two.
    if begun.end.load(Ordering::Relaxed) {
        return Ok(Ended::Done);
    }
    let _lock = begun.lock.hold().context("the lock that keeps two proxies apart")?;
    match settings.backend {
        BackendName::Nftables => nftables(settings, reload, stop, unset).await,
        BackendName::Ebpf => ebpf(settings, reload, stop, unset).await,
    }
}

/// What of the node only others may set: see [`Begun`].
type Unset = Vec<(String, String)>;

/// What tells us to end.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

async fn nftables(settings: Settings, reload: Option<Reload>, stop: Stop, unset: Unset) -> anyhow::Result<Ended> {
    let nft = Nft::new("nft", TIMEOUT).ended_by_signals();
    let any_kernel = std::env::var_os("KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK").is_some();
    let version = match nft.check_versions(any_kernel).await {
        Err(NftError::Ended) => return Ok(Ended::Done),
        version => version?,
    };
    tracing::info!(node = %settings.node_name, nft = %version, "starting");
    let mut kernel = Netfilter::new(nft, Handle::current());
    block_in_place(|| kernel.read()).context("cannot read the kernel's tables")?;
    if settings.datapath.service_metrics == ServiceMetrics::Full {
        kernel.follow_connections().context("cannot follow connections, which --service-metrics full asks for")?;
    }
    serve(settings, reload, stop, unset, Reconciler::new(kernel)).await
}

#[cfg(feature = "ebpf")]
async fn ebpf(settings: Settings, reload: Option<Reload>, stop: Stop, unset: Unset) -> anyhow::Result<Ended> {
    tracing::info!(node = %settings.node_name, backend = "ebpf", "starting");
    let backend = block_in_place(|| crate::backend::ebpf::reconciler::Ebpf::open(&settings, Handle::current()))?;
    serve(settings, reload, stop, unset, backend).await
}

#[cfg(not(feature = "ebpf"))]
async fn ebpf(_: Settings, _: Option<Reload>, _: Stop, _: Unset) -> anyhow::Result<Ended> {
    anyhow::bail!("this binary was built without the eBPF datapath")
}

/// Serves by this backend.
async fn serve(
    settings: Settings,
    mut reload: Option<Reload>,
    mut stop: Stop,
    unset: Unset,
    backend: impl Backend,
) -> anyhow::Result<Ended> {
    let mut addresses = node::watch_addresses().await.context("cannot watch the node's addresses")?;
    let held: BTreeSet<IpAddr> = addresses.borrow_and_update().iter().copied().collect();
    let stats = Arc::new(WatchStats::default());
    let (events_in, mut events) = mpsc::channel(QUEUE);
    let once = if settings.once { watch::load_once(&settings).await? } else { Vec::new() };
    // With --once the channel stays open and silent: what was listed is all there is.
    let _watching = match settings.once {
        true => Err(events_in),
        false => Ok(watch::start(&settings, events_in, stats.clone()).await?),
    };
    let metrics = Arc::new(Metrics::with(stats.requests()));
    let events_to = match watch::client(&settings, &stats).await? {
        // What syncs once tells whoever started it.
        Some(client) if !settings.once => Events::to_api(client, &settings.node_name, metrics.clone()),
        _ => Events::to_log(metrics.clone()),
    };
    let (facts, mut asks, generation) = facts::channel();
    let observer = Observer::new(&settings, stats, metrics, events_to.clone(), generation);
    let configz = Arc::new(RwLock::new(configz::document(&settings)));
    let serving = Serving {
        health: observer.health.clone(),
        metrics: observer.metrics.clone(),
        facts,
        mode: backend.name(),
        flags: Arc::new(args::flags(std::env::args_os())),
        config: configz.clone(),
        guards_metrics: settings.datapath.service_metrics != ServiceMetrics::Off
            && settings.metrics.is_some_and(|address| address.ip().is_loopback()),
        started: Timestamp::now(),
        profiling: settings.profiling,
    };
    let served = settings.clone();
    let once_only = settings.once;
    let mut server = tokio::spawn(async move {
        match once_only {
            true => std::future::pending().await,
            false => server::serve(&served, serving).await,
        }
    });
    let mut runner = Runner::new(Proxy::new(settings.clone(), backend, held), settings, observer);
    unset.into_iter().for_each(|(what, why)| runner.proxy.limit(&what, Some(why)));
    once.into_iter().for_each(|event| runner.proxy.apply(event));
    if runner.settings.once {
        return block_in_place(|| runner.turn()).and_then(|done| {
            anyhow::ensure!(
                done,
                "nothing was synced: the Node {} is not among the objects, or has no spec.podCIDRs, which \
                 --detect-local-mode NodeCIDR needs",
                runner.settings.node_name
            );
            Ok(Ended::Done)
        });
    }
    runner.observer.starting(runner.proxy.backend().name());
    loop {
        let wake = runner.wake_after();
        tokio::select! {
            // In this order: an end is not put off by a source that never falls silent.
            biased;
            _ = stop.terminate.recv() => break,
            _ = stop.interrupt.recv() => break,
            ended = &mut server => return Err(match ended {
                Ok(Err(error)) => {
                    events_to.report(Notice::new(Regarding::Node, error.reason(), error.to_string()));
                    events_to.flush(LAST_EVENT).await;
                    error.into()
                }
                Ok(Ok(never)) => match never {},
                Err(panic) => panic.into(),
            }),
            Some(ask) = asks.recv() => {
                block_in_place(|| runner.answer(ask));
                // However many ask, what has come meanwhile is taken in.
                if events.is_empty() {
                    continue;
                }
                while let Ok(event) = events.try_recv() {
                    runner.proxy.apply(event);
                }
            }
            changed = changed(reload.as_mut()) => {
                if runner.reconfigure(changed) == Some(Ended::Reconfigured) {
                    return Ok(Ended::Reconfigured);
                }
                *configz.write().unwrap_or_else(PoisonError::into_inner) = configz::document(&runner.settings);
            }
            changed = addresses.changed() => {
                changed.context("the watch of the node's addresses ended")?;
                runner.proxy.addresses(addresses.borrow_and_update().iter().copied().collect());
            }
            event = events.recv() => {
                runner.proxy.apply(event.context("the source of objects ended")?);
                while let Ok(event) = events.try_recv() {
                    runner.proxy.apply(event);
                }
            }
            () = tokio::time::sleep(wake) => {}
        }
        if block_in_place(|| runner.turn())? {
            return Ok(Ended::Done);
        }
    }
    tracing::info!("ending; the rules stay in force");
    Ok(Ended::Done)
}

/// Waits for a changed configuration file, if there is one.
async fn changed(reload: Option<&mut Reload>) -> Result<Loaded, SettingsError> {
    match reload {
        Some(reload) => reload.next().await,
        None => std::future::pending().await,
    }
}

/// The proxy and its sense of time.
struct Runner<B> {
    proxy: Proxy<B>,
    settings: Settings,
    observer: Observer,
    started: Instant,
    pacing: Pacing,
    glanced: Instant,
    health_checks: HealthCheckPorts,
    /// When health check node ports that cannot be opened were last tried.
    tried: Instant,
    /// Whether the settings have been held against the Node's families.
    fits: bool,
    /// Another datapath or kube-proxy may have left something, which goes once ours is in force.
    others: Looks,
}

impl<B: Backend> Runner<B> {
    fn new(proxy: Proxy<B>, settings: Settings, observer: Observer) -> Self {
        let now = Instant::now();
        let pacing = Pacing::new(settings.min_sync_period, settings.sync_period);
        let (health, events, metrics) = (&observer.health, &observer.events, &observer.metrics);
        let families = observer.families.clone();
        let health_checks = HealthCheckPorts::new(health.clone(), events.clone(), metrics.clone(), families);
        let (started, glanced, tried) = (now, now, now);
        let (fits, others) = (false, Looks::default());
        Self { proxy, settings, observer, started, pacing, glanced, health_checks, tried, fits, others }
    }

    /// Answers one who serves; whoever asked may have gone.
    fn answer(&mut self, ask: Ask) {
        let Self { proxy, settings, observer, .. } = self;
        match ask {
            Ask::Snapshot(reply) => drop(reply.send(Arc::new(observer.snapshot(proxy, settings)))),
            Ask::Service(name, reply) => drop(reply.send(observer.service(proxy, &name))),
            Ask::Trace(flow, reply) => drop(reply.send(proxy.desired().trace(&flow))),
            Ask::Count(reply) => {
                observer.look(proxy);
                let _ = reply.send(());
            }
        }
    }

    /// How long nothing needs to be done unless something happens.
    fn wake_after(&self) -> Duration {
        let now = Instant::now();
        let glance = (self.glanced + GLANCE).saturating_duration_since(now);
        match self.pacing.next() {
            Some(next) if self.proxy.is_dirty() => glance.min(next.saturating_duration_since(now)),
            _ => self.proxy.next_tick().map_or(glance, |tick| glance.min(tick)),
        }
    }

    /// Syncs if something changed and the pace allows it, glances at the kernel if it is time. True: `--once` is done.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let now = Instant::now();
        let waited = now - self.started;
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
        if glance && !self.proxy.has_failed() {
            let start = Instant::now();
            match self.proxy.check() {
                Ok(repair) => {
                    self.observer.checked(&mut self.proxy, repair.as_ref(), start.elapsed());
                    self.remove_leftovers();
                }
                Err(error) => self.observer.check_failed(&error),
            }
            if now - self.tried >= self.settings.sync_period {
                self.tried = now;
                Handle::current().block_on(self.health_checks.retry(self.proxy.desired().node()));
            }
        }
        Ok(false)
    }

    /// What of these settings is of a family that the node has not, or not first. What is not fatal is logged.
    fn mismatches(&self, settings: &Settings) -> Mismatches {
        let found = families::mismatches(settings, self.proxy.state().node(), &self.observer.families);
        found.other.iter().for_each(|what| tracing::warn!("{what}"));
        found
    }

    /// Takes over what a changed configuration file says. `Some`: only a start can. A file that is wrong changes nothing.
    fn reconfigure(&mut self, loaded: Result<Loaded, SettingsError>) -> Option<Ended> {
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
        tracing::info!(settings = %change.live.join(", "), "the configuration file changed: taken over");
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

    fn remove_leftovers(&mut self) {
        if self.others.due(Instant::now()) {
            self.observer.leftovers(Handle::current().block_on(cleanup::others(&self.settings)));
        }
    }

    fn synced(&mut self, synced: &Synced) {
        self.observer.synced(&self.proxy, synced);
        if !self.settings.once {
            let (state, node) = (self.proxy.state(), self.proxy.desired().node());
            Handle::current().block_on(self.health_checks.synced(state, node, &synced.changes.services));
        }
        self.remove_leftovers();
        if synced.report.full {
            release_memory();
        }
        let start = Instant::now();
        match self.proxy.clean_udp(&synced.changes.endpoints_of) {
            Ok(cleaned) => self.observer.cleaned(cleaned, start.elapsed()),
            Err(error) => tracing::error!(%error, "cannot delete stale UDP flows"),
        }
    }
}

/// Gives the memory of a full sync's temporary lists back to the system; glibc would keep it.
#[allow(unsafe_code)]
fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; glibc documents it as safe to call at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
