//! What kube-proxy's three modes leave in the kernel, and taking it out: nftables tables, iptables chains (kept by nf_tables or
//! by the older xtables), ipsets, IPVS's virtual servers and their device.
//!
//! Only what is kube-proxy's by its name: kubelet's chains, those of network plugins and their sets stay, and so does what
//! somebody else's rule leads to. Connections that its rules translated go on: connection tracking has their translation, as
//! long as some rule of the node has a use for it, see [`crate::conntrack::established`]. Those of IPVS end.
//!
//! `names` decides what is whose, `plan` what has to go for it: both are pure. The other files ask the kernel.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod ipsets;
mod ipvs;
pub mod legacy;
mod names;
mod netlink;
mod plan;
mod tables;
mod xtables;

use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::node::setup::localnet;

/// How often is looked again: a kube-proxy that ends later leaves its rules, too.
const AGAIN: Duration = Duration::from_secs(3600);

/// How soon a look is repeated where something could not be removed: others may hold the tables at that moment, and while kube-proxy's
/// rules are there they may come before ours. Each time after twice as long.
const RETRY: Duration = Duration::from_secs(30);

/// When a running proxy looks for what others left.
#[derive(Clone, Copy, Default, Debug)]
pub struct Looks {
    next: Option<Instant>,
    /// After how long the last look that failed was to be repeated.
    pause: Option<Duration>,
}

impl Looks {
    /// Whether it is time.
    pub fn due(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// A look ended; `failed`: it has not removed everything, or could not look everywhere.
    pub fn looked(&mut self, now: Instant, failed: bool) {
        self.pause = failed.then(|| self.pause.map_or(RETRY, |pause| (2 * pause).min(AGAIN)));
        self.next = Some(now + self.pause.unwrap_or(AGAIN));
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// What was removed, a phrase each: `table ip kube-proxy`.
    pub removed: Vec<String>,
    /// What an operator should know, a sentence each.
    pub notes: Vec<String>,
    /// What could not be removed, or not be looked for, and why.
    pub failed: Vec<String>,
}

impl Outcome {
    /// Adds what came of another step.
    pub fn extend(&mut self, step: Self) {
        self.removed.extend(step.removed);
        self.notes.extend(step.notes);
        self.failed.extend(step.failed);
    }

    fn add(&mut self, step: Result<Self, impl std::fmt::Display>) {
        match step {
            Ok(step) => self.extend(step),
            Err(error) => self.failed.push(error.to_string()),
        }
    }
}

/// Removes all of it from this thread's network namespace, as far as it goes: a step that fails does not keep the others.
/// Virtual servers in `excluded` stay (`ipvs.excludeCIDRs`). Blocks between its questions to the kernel.
pub async fn remove(excluded: &[IpNet]) -> Outcome {
    let mut outcome = Outcome::default();
    outcome.add(tables::remove());
    // Rules before the sets that they look into, and IPVS last: while its rules are there, it is as kube-proxy made it.
    outcome.add(xtables::remove());
    outcome.add(Ok::<_, String>(legacy::remove()));
    outcome.add(ipsets::remove());
    outcome.add(ipvs::remove(excluded).await);
    if !outcome.removed.is_empty() {
        outcome.notes.extend(localnet().map(str::to_owned));
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When it is looked, of these seconds after the start, if each look that is due fails or not.
    fn looks<const N: usize>(failed: bool, seconds: [u64; N]) -> [bool; N] {
        let (start, mut looks) = (Instant::now(), Looks::default());
        seconds.map(|after| {
            let now = start + Duration::from_secs(after);
            let due = looks.due(now);
            if due {
                looks.looked(now, failed);
            }
            due
        })
    }

    #[test]
    fn it_is_looked_at_once_and_then_every_hour() {
        let due = looks(false, [0, 2, 3599, 3600, 3602, 7199, 7200]);
        assert_eq!(due, [true, false, false, true, false, false, true]);
    }

    #[test]
    fn a_look_that_failed_is_repeated_soon_and_then_more_and_more_seldom() {
        let due = looks(true, [0, 29, 30, 89, 90, 209, 210]);
        assert_eq!(due, [true, false, true, false, true, false, true]);
        let (mut looks, now) = (Looks::default(), Instant::now());
        (0..20).for_each(|_| looks.looked(now, true));
        assert!(!looks.due(now + AGAIN - Duration::from_secs(1)) && looks.due(now + AGAIN));
        looks.looked(now, false);
        looks.looked(now, true);
        assert!(looks.due(now + RETRY), "one that succeeds begins anew");
    }
}
