//! `kubeferry run`: the one file that names every stage. Events come in by a channel; a sync runs when something has
//! changed; what arrives meanwhile waits in the channel and is put together into the next.

mod runner;
mod stale;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::block_in_place;

use runner::Runner;

use crate::args;
use crate::backend::Backend;
use crate::backend::nftables::kernel::Kernel;
use crate::backend::nftables::netfilter::Netfilter;
use crate::backend::nftables::nft::{Nft, NftError, TIMEOUT};
use crate::backend::nftables::reconciler::Reconciler;
use crate::events::{Events, Notice, Regarding};
use crate::facts;
use crate::health::routes::Serving;
use crate::health::{configz, server};
use crate::metrics::Metrics;
use crate::node;
use crate::observe::Observer;
use crate::proxy::Proxy;
use crate::settings::reload::Reload;
use crate::settings::{BackendName, Loaded, ServiceMetrics, Settings, SettingsError};
use crate::start::Begun;
use crate::watch::{self, WatchStats};

/// How long an end waits for the API server to take the Event about it.
const LAST_EVENT: Duration = Duration::from_secs(3);
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
