//! Where no Events are posted for a while, as the API server refused one or was away.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// How long nothing is posted after the API server has refused an Event or was away; doubled each time.
pub const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Where so many namespaces refuse, one after the other, and none takes any, all do.
const ALL: usize = 3;

/// What is closed.
#[derive(Debug, Default)]
pub(super) struct Closed {
    everywhere: Pause,
    namespaces: HashMap<String, Pause>,
    /// Namespaces that refused since one was taken, up to [`ALL`].
    refusing: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Pause {
    until: Option<Instant>,
    failures: u32,
}

impl Closed {
    /// Whether nothing is to be posted in this namespace now.
    pub(super) fn is(&self, now: Instant, namespace: &str) -> bool {
        self.everywhere.is_on(now) || self.namespaces.get(namespace).is_some_and(|pause| pause.is_on(now))
    }

    /// The API server took an Event in this namespace.
    pub(super) fn succeeded(&mut self, namespace: &str) {
        self.everywhere = Pause::default();
        self.refusing.clear();
        self.namespaces.remove(namespace);
    }

    /// The API server takes none; the answer is until when none is posted.
    pub(super) fn failed(&mut self, now: Instant) -> Instant {
        self.everywhere.failed(now)
    }

    /// The API server forbids one in this namespace; the answer is until when none is posted there.
    pub(super) fn refused(&mut self, now: Instant, namespace: &str) -> Instant {
        // Also of namespaces that are gone.
        self.namespaces.retain(|_, pause| pause.until.is_some_and(|until| now < until + LONGEST_PAUSE));
        let until = self.namespaces.entry(namespace.to_owned()).or_default().failed(now);
        if self.refusing.len() < ALL {
            self.refusing.insert(namespace.to_owned());
        }
        if self.refusing.len() < ALL { until } else { self.failed(now).max(until) }
    }
}

impl Pause {
    fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    fn failed(&mut self, now: Instant) -> Instant {
        // What was on its way already fails for the same reason, and counts once.
        if let Some(until) = self.until.filter(|until| now < *until) {
            return until;
        }
        let until = now + PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.until = Some(until);
        until
    }
}
