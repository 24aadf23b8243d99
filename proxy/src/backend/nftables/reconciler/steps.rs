//! Changes in steps, each a transaction of its own. The kernel changes over between two lookups of one packet: what it finds in a
//! row of before must still be there, and what a new row leads to be there already.

use std::ops::Range;
use std::sync::Arc;

use crate::backend::nftables::diff::{Change, is_late};
use crate::backend::nftables::kernel::{Kernel, KernelError, RowCount};
use crate::backend::nftables::rows::Chains;
use crate::desired::node_view::NodeView;

use super::Reconciler;

/// Changes that are in force.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// What deleted rows had counted.
    pub(super) counts: Vec<RowCount>,
    /// Transactions that it took.
    pub(super) transactions: u32,
}

/// Of changes as [`crate::backend::nftables::diff::diff`] orders them: chains, then rows, then rows that go late.
fn steps(changes: &[Change]) -> [Range<usize>; 3] {
    let chains = changes.iter().take_while(|change| chain_of(change).is_some()).count();
    let late = changes.iter().rev().take_while(|change| matches!(change, Change::Delete(key, _) if is_late(key)));
    let late = changes.len() - late.count();
    [0..chains, chains..late, late..changes.len()]
}

fn chain_of(change: &Change) -> Option<&Arc<str>> {
    match change {
        Change::AddChain(name) | Change::RewriteChain(name) => Some(name),
        Change::Add(..) | Change::Delete(..) => None,
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Commits changes. After a failure chains that are there are known, and rows may be in force: then `doubtful` says so.
    ///
    /// # Errors
    /// As [`Kernel::commit`].
    pub(super) fn commit(
        &mut self,
        changes: &[Change],
        chains: &Chains,
        node: &NodeView,
    ) -> Result<Committed, KernelError> {
        let mut committed = Committed::default();
        for step in steps(changes).into_iter().filter(|step| !step.is_empty()) {
            let (before, now) = (&changes[..step.start], &changes[step.clone()]);
            match self.kernel.commit(now, chains, node) {
                Ok(counts) => {
                    committed.counts.extend(counts);
                    committed.transactions += 1;
                }
                Err(error) => {
                    self.broken_off(before.iter().filter_map(chain_of).cloned().collect());
                    self.doubtful |= before.iter().any(|change| chain_of(change).is_none()) || !error.changed_nothing();
                    return Err(error.at(step.start));
                }
            }
        }
        Ok(committed)
    }

    /// These chains have been written, and no row goes to them yet.
    fn broken_off(&mut self, written: Vec<Arc<str>>) {
        if written.is_empty() {
            return;
        }
        match self.kernel.digests(&written) {
            Ok(digests) => self.digests.extend(digests),
            Err(error) => tracing::debug!(%error, "new chains cannot be read"),
        }
        self.follow_generation(self.generation, 1);
        self.unread.extend(written.iter().cloned());
        self.chains.extend(written);
    }
}
