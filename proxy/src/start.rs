//! What `kubeferry run` does before it has a second thread: settings, the log, what needs more rights than serving does, and giving
//! those rights up, which every thread does for itself alone and those that come later have from it. While another proxy serves
//! this network namespace, none of it is done: the node is that one's.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::args::RunArgs;
use crate::commands::config;
use crate::leftovers::legacy::{self, Seen};
use crate::lock::{self, Lock};
use crate::log;
use crate::node::{privileges, setup};
use crate::settings::{Loaded, Settings};
use crate::trial;

/// What is left to do.
#[derive(Debug)]
pub enum Next {
    /// Serve.
    Serve(Box<Loaded>, Begun),
    /// Remove what is there (`--cleanup`).
    Cleanup(Box<Settings>),
    /// Nothing (`--init-only`, `--write-config-to`).
    Done,
}

/// What a start leaves to whoever serves.
#[derive(Debug)]
pub struct Begun {
    /// No other proxy writes.
    pub lock: Lock,
    /// What of the node differs from the settings and only others may set, and why.
    pub unset: Vec<(String, String)>,
    /// Set by SIGTERM and SIGINT: before there is a runtime, nobody else hears of them.
    pub end: Arc<AtomicBool>,
}

/// Reads the settings, starts the log, waits for another proxy's end, sets up the node and gives up the rights that serving does
/// not need.
///
/// # Errors
/// Wrong settings, something of the node that cannot be set, or with `--once` another proxy.
pub fn start(args: &RunArgs) -> anyhow::Result<Next> {
    let loaded = Settings::load(&args.common, &args.serve)?;
    let settings = &loaded.settings;
    log::start(&settings.log);
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = &args.serve.write_config_to {
        return config::write(&loaded, path).map(|()| Next::Done);
    }
    if settings.node.cleanup {
        return Ok(Next::Cleanup(Box::new(loaded.settings)));
    }
    if settings.node.init_only {
        // It serves nothing: who has it run beside another proxy wants it now.
        let unset = setup::set_up(settings)?;
        anyhow::ensure!(unset.is_empty(), "{}", unset.into_iter().map(|(_, why)| why).collect::<Vec<_>>().join("; "));
        setup::mount_bpffs(settings)?;
        tracing::info!("the node is set up; `kubeferry run` without --init-only needs fewer rights now");
        return Ok(Next::Done);
    }
    setup::set_oom_score(settings.node.oom_score_adj);
    setup::raise_open_files();
    let Some(mut begun) = wait_for_others(settings)? else { return Ok(Next::Done) };
    begun.unset = setup::set_up(settings)?;
    let mut needed = privileges::needed(settings);
    match legacy::look() {
        // For as long as this process runs; the next finds nothing, and does without.
        Seen::Chains => needed |= privileges::FOR_LEGACY_IPTABLES,
        Seen::Nothing => {}
        Seen::Hidden => tracing::warn!(
            "the kernel may have tables of iptables-legacy, and the rights to look into them are missing (CAP_NET_RAW, and uid 0): \
             if kube-proxy left chains there, they stay in force and send packets of Services that are deleted to their old \
             endpoints. Grant CAP_NET_RAW for one start, or run `kubeferry cleanup --kube-proxy` as root"
        ),
    }
    let kept = privileges::keep_only(needed).context("cannot give up rights")?;
    tracing::info!(kept = %privileges::names(kept), "gave up all other rights");
    Ok(Next::Serve(Box::new(loaded), begun))
}

/// Takes the lock that keeps two proxies apart, on a runtime that has no thread but this one. `None`: told to end meanwhile.
fn wait_for_others(settings: &Settings) -> anyhow::Result<Option<Begun>> {
    let end = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, end.clone())?;
    }
    let waiting = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let lock = waiting.block_on(async {
        // The one that serves answers whoever asks whether the node is well, until it is ended for this one.
        if !settings.once && lock::is_taken().await {
            trial::run(settings).await.context("this one could not serve, so the proxy that does is not waited for")?;
        }
        anyhow::Ok(lock::take(!settings.once, &end).await?)
    })?;
    Ok(lock.map(|lock| Begun { lock, end, unset: Vec::new() }))
}
