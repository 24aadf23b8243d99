//! Whose stale UDP flows are looked for, and when: at once after a change, and once more a moment later. What a first look
//! could not see is found by the second: a packet that had chosen its endpoint before the change and was recorded after the look, a
//! socket that was about to connect, an entry that a busy table did not list. A look that failed is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::state::objects::ObjectName;

/// Between a change, or a look that failed, and the next look.
const AGAIN: Duration = Duration::from_secs(1);

/// The Services that are to be looked at once more, each with the time from which on.
#[derive(Debug, Default)]
pub(super) struct Stale {
    due: BTreeMap<ObjectName, Instant>,
    /// When connections are looked for whose first packet went by while rows were missing.
    unanswered: Option<Instant>,
    failing: bool,
}

impl Stale {
    /// These have just been looked at for the first time since something of them changed, or not to the end.
    pub fn changed(&mut self, names: &BTreeSet<ObjectName>, now: Instant) {
        self.due.extend(names.iter().map(|name| (name.clone(), now + AGAIN)));
    }

    /// Rows that were missing are in force again, or the look for what had gone by meanwhile failed.
    pub fn repaired(&mut self, now: Instant) {
        self.unanswered = Some(now + AGAIN);
    }

    /// Whether it is time for that look. [`Stale::repaired`] has to be told again where it fails.
    pub fn take_unanswered(&mut self, now: Instant) -> bool {
        self.unanswered.take_if(|due| *due <= now).is_some()
    }

    /// When there is something to be done.
    pub fn next(&self) -> Option<Instant> {
        self.due.values().copied().chain(self.unanswered).min()
    }

    /// Those whose time has come. They have to be given back by [`Stale::changed`] where the look fails.
    pub fn take_due(&mut self, now: Instant) -> BTreeSet<ObjectName> {
        self.due.extract_if(.., |_, due| *due <= now).map(|(name, _)| name).collect()
    }

    /// A look failed: said once, until one succeeds.
    pub fn failed(&mut self, error: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, "cannot delete stale entries of connection tracking: tried again every second");
        }
    }

    /// A look succeeded.
    pub fn succeeded(&mut self) {
        if std::mem::replace(&mut self.failing, false) {
            tracing::info!("stale entries of connection tracking can be deleted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<ObjectName> {
        names.iter().map(|name| ObjectName::new("default", name)).collect()
    }

    #[test]
    fn each_is_looked_at_once_more_a_moment_after_its_last_change() {
        let (start, half) = (Instant::now(), AGAIN / 2);
        let mut stale = Stale::default();
        assert_eq!(stale.next(), None);
        stale.changed(&names(&["a", "b"]), start);
        stale.changed(&names(&["b", "c"]), start + half);
        assert_eq!(stale.next(), Some(start + AGAIN));
        assert_eq!(stale.take_due(start + half), names(&[]));
        assert_eq!(stale.take_due(start + AGAIN), names(&["a"]));
        assert_eq!(stale.next(), Some(start + half + AGAIN));
        assert_eq!(stale.take_due(start + 2 * AGAIN), names(&["b", "c"]));
        assert_eq!(stale.next(), None);
    }

    #[test]
    fn what_went_by_is_looked_for_once_a_moment_after_the_last_repair() {
        let (start, half) = (Instant::now(), AGAIN / 2);
        let mut stale = Stale::default();
        assert!(!stale.take_unanswered(start));
        stale.repaired(start);
        stale.repaired(start + half);
        assert_eq!(stale.next(), Some(start + half + AGAIN));
        assert!(!stale.take_unanswered(start + AGAIN));
        assert!(stale.take_unanswered(start + half + AGAIN));
        assert!(!stale.take_unanswered(start + 2 * AGAIN));
        assert_eq!(stale.next(), None);
    }
}
