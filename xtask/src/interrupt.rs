//! Ctrl-C and SIGTERM: running commands are ended, the command in hand fails at its next [`check`], and its guards clean up.

use std::collections::BTreeMap;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context as _, bail};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

static ASKED_TO_STOP: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU64 = AtomicU64::new(0);
/// Handles of the commands that we wait for: a pidfd cannot hit a process that took over the number.
static WAITED_FOR: Mutex<BTreeMap<u64, OwnedFd>> = Mutex::new(BTreeMap::new());

/// Starts listening for signals. The first one asks to stop, the second ends xtask at once and may leave things behind.
pub fn watch() -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot listen for signals")?;
    std::thread::spawn(move || {
        for signal in &mut signals {
            if ASKED_TO_STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(128 + signal);
            }
            eprintln!("\n==> stopping and cleaning up (once more to stop at once)");
            for process in WAITED_FOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).values() {
                let _ = pidfd_send_signal(process, Signal::TERM);
            }
        }
    });
    Ok(())
}

/// Whether a stop was asked for.
pub fn asked() -> bool {
    ASKED_TO_STOP.load(Ordering::SeqCst)
}

/// Fails once a stop was asked for: called between the steps and inside long loops.
pub fn check() -> anyhow::Result<()> {
    if asked() {
        bail!("interrupted");
    }
    Ok(())
}

/// Waits for a command, which is ended when a stop is asked for.
pub fn wait(child: &mut Child) -> anyhow::Result<ExitStatus> {
    let key = NEXT.fetch_add(1, Ordering::Relaxed);
    let handle = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("pidfd_open")?;
    let waited_for = || WAITED_FOR.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    waited_for().insert(key, handle);
    if asked() {
        let _ = child.kill();
    }
    let status = child.wait();
    waited_for().remove(&key);
    let status = status.context("waiting for a command")?;
    check()?;
    Ok(status)
}
