//! Faults under running traffic: clients whose every request is recorded, a small cluster for them on either datapath, and a
//! table of what they saw.
//!
//! ```text
//! let place = Place::of_server(datapath)?;                 // or of_manifests
//! place.start()?;
//! let mut report = Report::new(&place.datapath);
//! let ways = place.ways();
//! let (right, seen) = Traffic::during(&ways, patience, |traffic| {
//!     traffic.go_on()?;                                    // every client gets its answers
//!     let since = Instant::now();
//!     …                                                    // the fault
//!     traffic.go_on()?;                                    // … and again
//!     Ok(since.elapsed())
//! })?;
//! report.add("what went wrong", &seen, right);
//! seen.nothing_seen()?;
//! ```

mod exact;
mod objects;
mod place;
mod report;
mod traffic;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use exact::until_exact;
pub use objects::Objects;
pub use place::Place;
pub use report::{REPORT, Report, Row};
pub use traffic::{Failure, Recorded, Slow, Traffic};

/// Names a number that repeats the random choices of a run.
pub const SEED: &str = "KUBEFERRY_FAULTS_SEED";

/// The number that [`SEED`] names, or a new one; printed, since a failure is repeated by it.
pub fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seed = given.unwrap_or(u64::from(time.subsec_nanos()) ^ time.as_secs());
    println!("{SEED}={seed}");
    seed
}

/// Names how many minutes what is random goes on (`cargo xtask faults`).
pub const MINUTES: &str = "KUBEFERRY_FAULTS_MINUTES";

/// How long what is random goes on, by [`MINUTES`]; not at all without.
pub fn longer() -> Duration {
    let minutes = std::env::var(MINUTES).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(60 * minutes.unwrap_or(0))
}
