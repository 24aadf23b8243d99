//! The look at the kernel every few seconds: drift, refused frontends, chains of no use any more.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::nftables::chains::Chain;
use crate::backend::nftables::kernel::{ChainDigest, Found, Kernel, KernelError};
use crate::backend::nftables::rows::Rows;
use crate::backend::nftables::seal::Structure;
use crate::desired::Desired;
use crate::pacing::cpu_time;

use super::{Reconciler, Report, chain_of};

/// While other programs keep committing, reading our rows takes at most one part in so many of a CPU's time, and reading what
/// is not rows as much, …
const SHARE: u32 = 50;
/// … but both are read once in this time. That the table is there at all is looked at each time.
const SELDOM: Duration = Duration::from_secs(60);
/// Chains of no use that are deleted at one look: what changes meanwhile waits.
const DROPPED_AT_ONCE: usize = 10_000;

impl<K: Kernel> Reconciler<K> {
    /// Looks whether somebody changed our table, and repairs it. Costs one question to the kernel if nobody changed
    /// any table since the last look. Once in a while tries frontends again that the kernel refused; a report without
    /// repairs says that it took some.
    ///
    /// # Errors
    /// As for [`Reconciler::sync`].
    pub fn check(&mut self, desired: &Desired) -> Result<Option<Report>, KernelError> {
        if self.known
            && let Some(report) = self.retry_refused(desired)?
        {
            return Ok(Some(report));
        }
        let generation = self.kernel.generation()?;
        if self.known && self.generation == Some(generation) {
            self.drop_unused_chains();
            return Ok(None);
        }
        // Somebody committed something, most often elsewhere. Programs that do so all the time must not make us read all
        // rows all the time.
        let (now, start) = (Instant::now(), cpu_time());
        if self.known && self.next_read.is_some_and(|next| now < next) && self.stands(now)? {
            return Ok(None);
        }
        let found = self.kernel.read()?;
        // Where it is not known what is in force, what differs may be our own.
        let whole = if self.doubtful { 0 } else { self.drift(found.as_ref()) };
        if self.known && whole == 0 {
            let table = self.kernel.table()?;
            if table != self.table && desired.node().counts() {
                self.counting.found(desired, &self.applied, None);
            }
            self.table = table;
            self.generation = Some(generation);
            self.next_read = Some(pause_after(start));
            return Ok(None);
        }
        (self.next_read, self.next_look) = (None, None);
        let mut report = self.full(desired)?;
        report.repaired = report.repaired.max(whole);
        Ok(Some(report))
    }

    /// Whether our table is there and, but for its rows, as we left it. What is not rows is little in most clusters, and what
    /// somebody adds to it may concern every packet: it is looked at more often.
    fn stands(&mut self, now: Instant) -> Result<bool, KernelError> {
        if self.kernel.table()? != self.table {
            return Ok(false);
        }
        if self.next_look.is_some_and(|next| now < next) {
            return Ok(true);
        }
        let start = cpu_time();
        let structure = self.kernel.structure()?;
        self.next_look = Some(pause_after(start));
        Ok(self.altered_in(&structure) == 0)
    }

    /// In how many rows, or else chains, what was found differs from what we have left.
    pub(super) fn drift(&self, found: Option<&Found>) -> usize {
        let Some(found) = found else { return self.applied.len().max(1) };
        let rows = count_differences(&self.applied, &found.rows) + found.strange;
        rows + self.altered_in(&found.structure).max(usize::from(found.comment != self.program))
    }

    /// How many chains are others than we have left, or are not ours at all; 1 for whatever else of the table is not as it was.
    fn altered_in(&self, structure: &Structure) -> usize {
        let changed = |(name, digest): &(&Arc<str>, &ChainDigest)| structure.chains.get(*name) != Some(*digest);
        let changed = self.digests.iter().filter(changed).count();
        (changed + self.foreign_in(structure)).max(usize::from(!structure.is_sealed()))
    }

    /// How many chains somebody has added. While we run, every chain that is there is one that we know of.
    pub(super) fn foreign_in(&self, structure: &Structure) -> usize {
        structure.chains.keys().filter(|name| !self.chains.contains(*name)).count()
    }

    /// Deletes chains of single services that no row goes to any more, and no packet on its way, either. Not in the commit that freed them:
    /// before Linux 6.2 a chain cannot be deleted in the same breath as the row that went to it.
    fn drop_unused_chains(&mut self) {
        if !self.unlinked {
            return;
        }
        let mut used: BTreeSet<Cow<'_, str>> = BTreeSet::new();
        for name in self.applied.values().filter_map(chain_of).filter(|name| Chain::is_transient(name)) {
            let mut through = vec![Cow::Borrowed(&**name)];
            while let Some(name) = through.pop() {
                through.extend(Chain::goes_to(&name).into_iter().map(Cow::Owned));
                used.insert(name);
            }
        }
        let is_unused = |name: &&Arc<str>| Chain::is_transient(name) && !used.contains(&***name);
        let mut unused: Vec<Arc<str>> = self.chains.iter().filter(is_unused).cloned().collect();
        // Those that go to others first.
        unused.sort_by_cached_key(|name| std::cmp::Reverse(Chain::height(name)));
        // Half of them at least: so they cannot come faster than they go.
        let at_once = DROPPED_AT_ONCE.max(unused.len() / 2);
        let is_all = unused.len() <= at_once;
        unused.truncate(at_once);
        if !unused.is_empty() {
            self.kernel.let_packets_pass();
        }
        match if unused.is_empty() { Ok(()) } else { self.kernel.delete_chains(&unused) } {
            Ok(()) => {
                self.unlinked = !is_all;
                for name in &unused {
                    self.chains.remove(name);
                    self.digests.remove(name);
                    self.unread.remove(name);
                }
                self.follow_generation(self.generation, u32::from(!unused.is_empty()));
            }
            Err(error) => tracing::debug!(%error, "unused chains stay until the next check"),
        }
    }
}

/// When to read again what took from `start` until now, in CPU time.
fn pause_after(start: Duration) -> Instant {
    Instant::now() + ((cpu_time() - start) * SHARE).min(SELDOM)
}

fn count_differences(ours: &Rows, theirs: &Rows) -> usize {
    let missing = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(*value)).count();
    missing + theirs.keys().filter(|key| !ours.contains_key(*key)).count()
}
