//! Faults of the process and of the API server under running traffic, on both datapaths: every request of every client is
//! checked, and after each fault the kernel has to have what is wanted. Each test prints what clients saw and how long it took
//! until all was right again (`cargo xtask test faults_process -- --nocapture`).
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod answers;
mod away;
mod clock;
mod commit;
mod disk;
mod files;
mod flap;
mod kill;
mod outage;
mod signals;
mod watch;

use std::time::Duration;

/// How long a client waits for an answer: with less, a busy machine would be a fault.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long anything may take until it is right again: seven times and more what was measured on an overloaded machine (0 to 4.3 s,
/// `docs/reliability.md`). It is there to find what takes ten times as long as it did, and is no measure.
const RIGHT: Duration = Duration::from_secs(30);
/// The same where somebody is asked or something is read again and again, with pauses that grow: up to 18.2 s, and one pause has 30 s
/// at most.
const RIGHT_BY_TRIES: Duration = Duration::from_secs(60);
/// How long a test may take for what is no recovery.
const STEP: Duration = Duration::from_secs(90);
