//! Changes in steps, each a transaction of its own. The kernel changes over between two lookups of one packet: what it finds in a
//! row of before must still be there, what a new row leads to be there already, and what has it refused come last.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use crate::backend::nftables::chains::Chain;
use crate::backend::nftables::diff::{Change, is_early, is_late};
use crate::backend::nftables::kernel::{Kernel, KernelError, RowCount};
use crate::backend::nftables::maps::map_of;
use crate::backend::nftables::rows::{Chains, Key};
use crate::desired::Desired;

use super::{Reconciler, chain_of};

/// Changes that are in force.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// What deleted rows had counted.
    pub(super) counts: Vec<RowCount>,
    /// Transactions that it took.
    pub(super) transactions: u32,
}

/// Of changes as [`crate::backend::nftables::diff::diff`] orders them: what goes early, the other rows, and what goes late. A row that
/// could as well be in the second may be in another where there is none between.
fn steps(changes: &[Change]) -> [Range<usize>; 3] {
    let early = changes.iter().take_while(|change| is_early(change)).count();
    let late = changes.len() - changes[early..].iter().rev().take_while(|change| is_late(change)).count();
    [0..early, early..late, late..changes.len()]
}

impl<K: Kernel> Reconciler<K> {
    /// Commits changes. What of them is in force when one fails is known: callers need not take it in.
    ///
    /// # Errors
    /// As [`Kernel::commit`].
    pub(super) fn commit(
        &mut self,
        changes: &[Change],
        chains: &Chains,
        desired: &Desired,
    ) -> Result<Committed, KernelError> {
        let mut committed = Committed::default();
        for (number, step) in steps(changes).into_iter().enumerate().filter(|(_, step)| !step.is_empty()) {
            if number == 2 {
                self.kernel.let_packets_pass();
            }
            match self.kernel.commit(&changes[step.clone()], chains, desired.node()) {
                Ok(counts) => {
                    committed.counts.extend(counts);
                    committed.transactions += 1;
                }
                Err(error) => {
                    self.broken_off(&changes[..step.start], committed, desired);
                    self.doubtful |= !error.changed_nothing();
                    return Err(error.at(step.start));
                }
            }
        }
        Ok(committed)
    }

    /// These changes are in force, and the next are not.
    fn broken_off(&mut self, changes: &[Change], committed: Committed, desired: &Desired) {
        if changes.is_empty() {
            return;
        }
        self.counting.take(desired, &self.applied, changes, committed.counts);
        if desired.node().counts() {
            let of = |change: &Change| match change {
                Change::Add(Key::Of(of, _), _) | Change::Delete(Key::Of(of, _), _) => Some(*of),
                _ => None,
            };
            self.own(desired, changes.iter().filter_map(of).collect::<BTreeSet<_>>().into_iter());
        }
        let chains: Vec<_> = changes.iter().filter_map(|change| self.took(change)).collect();
        match self.kernel.digests(&chains) {
            Ok(digests) => self.digests.extend(digests),
            Err(error) => tracing::debug!(%error, "new chains cannot be read"),
        }
        self.follow_generation(self.generation, committed.transactions);
        self.unread.extend(chains);
    }

    /// Takes a change that is in force into what is known to be; gives the chain that was written.
    pub(super) fn took(&mut self, change: &Change) -> Option<Arc<str>> {
        match change {
            Change::AddChain(name) | Change::RewriteChain(name) => {
                self.chains.insert(name.clone());
                return Some(name.clone());
            }
            Change::Delete(key, value) => {
                self.unlinked |= chain_of(value).is_some_and(|name| Chain::is_transient(name));
                let count = self.counts.entry(map_of(key)).or_default();
                *count = count.saturating_sub(1);
                self.applied.remove(key);
            }
            Change::Add(key, value) => {
                *self.counts.entry(map_of(key)).or_default() += 1;
                self.applied.insert(*key, value.clone());
            }
        }
        None
    }
}
