//! Everything read, everything compared: at the start, after a failed commit, and to repair.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::backend::nftables::chains::Chain;
use crate::backend::nftables::diff::{Change, diff};
use crate::backend::nftables::kernel::{ChainDigest, Found, Kernel, KernelError};
use crate::backend::nftables::nft::NftError;
use crate::backend::nftables::rows::{Chains, Key, Rows, Wanted};
use crate::backend::nftables::{skeleton, text};
use crate::desired::node_view::NodeView;
use crate::desired::{Desired, Touched};

use super::refused::blamed;
use super::steps::Committed;
use super::{Reconciler, Report};

/// How many frontends may be left out of one sync because the kernel refuses their rows.
pub(super) const MAX_REFUSED: usize = 16;

/// What a sync would do.
#[derive(Debug)]
pub enum Preview {
    /// There is no table, or one of another version or other settings, or somebody changed it.
    Replace,
    /// Changes of rows and chains; none if the kernel holds what is wanted.
    Changes(Vec<Change>),
}

impl<K: Kernel> Reconciler<K> {
    pub(super) fn full(&mut self, desired: &Desired) -> Result<Report, KernelError> {
        self.known = false;
        let before = self.kernel.generation()?;
        let program = skeleton::comment(desired.node());
        let mut report = Report { full: true, ..Report::default() };
        self.refused.clear();
        self.untried = 0;
        let found = self.kernel.read()?;
        // Not at the start: there what differs is what the objects have become since.
        let is_ours = self.program.is_some() && !std::mem::replace(&mut self.doubtful, true);
        if is_ours {
            self.unreported = self.drift(found.as_ref());
        }
        // A chain that is called as ours are passes the seal.
        let has_foreign = is_ours && found.as_ref().is_some_and(|found| self.foreign_in(&found.structure) > 0);
        if desired.node().counts() {
            // The same rows in another table are others.
            let is_other = self.table.is_some() && self.kernel.table()?.is_some_and(|table| Some(table) != self.table);
            let rows = found.as_ref().filter(|_| !is_other).map(|found| &found.rows);
            self.counting.found(desired, &self.applied, rows);
        }
        let (transactions, replace) = match found {
            Some(found) if !has_foreign && is_intact(&found, &program) => {
                self.applied = found.rows;
                self.count_rows();
                self.chains = found.structure.chains.into_keys().collect();
                (0, false)
            }
            Some(found) => {
                if found.comment.as_deref() == Some(&program) {
                    report.repaired = found.strange + usize::from(!found.structure.is_sealed());
                }
                (0, true)
            }
            None => {
                // Nothing to replace: the rows follow by netlink, which is faster than text.
                self.kernel.load(&skeleton::text(desired.node()))?;
                report.loaded = true;
                self.applied = Rows::new();
                self.count_rows();
                (1 + self.seal(desired.node())?, false)
            }
        };
        let committed = match replace {
            true => None,
            false => match self.commit_all(desired, &mut report, MAX_REFUSED) {
                Ok((rewritten, transactions)) => {
                    report.repaired = rewritten;
                    Some(transactions)
                }
                Err(KernelError::Refused { change, message }) => {
                    tracing::error!(?change, %message, "the kernel refuses the changes; replacing the table");
                    None
                }
                Err(error) => return Err(error),
            },
        };
        let transactions = transactions
            + match committed {
                Some(committed) => committed,
                None => self.replace(desired, &mut report)?,
            };
        self.program = Some(program);
        self.unlinked = true;
        self.pending = Touched::default();
        (self.known, self.doubtful) = (true, false);
        report.repaired = report.repaired.max(std::mem::take(&mut self.unreported));
        // Filled in order, a BTreeMap's nodes are half empty: build it again.
        self.applied = std::mem::take(&mut self.applied).into_iter().collect();
        self.count_rows();
        self.table = self.kernel.table()?;
        self.digests = self.kernel.structure()?.chains;
        self.follow_generation(Some(before), transactions);
        if self.generation.is_none() {
            let wanted = Wanted::without(desired, &self.applied, &self.refused);
            self.doubt_chains(&wanted.chains, desired.node())?;
        }
        report.refused = self.refused.clone();
        Ok(report)
    }

    /// Notes in the table what the kernel makes of its chains and sets just loaded. Gives the number of transactions.
    fn seal(&mut self, node: &NodeView) -> Result<u32, KernelError> {
        let structure = self.kernel.structure()?;
        let seal = structure.seal();
        self.kernel.commit(&[Change::AddChain(seal.clone())], &Chains::new(), node)?;
        self.chains = structure.chains.into_keys().chain([seal]).collect();
        Ok(1)
    }

    /// Writes the table anew, in one transaction; another one seals it. Where `nft` refuses that for a row, which it
    /// does not name, the table is emptied and the rows follow by netlink: new connections fail for that moment, and
    /// not until somebody mends the row. Gives the number of transactions.
    fn replace(&mut self, desired: &Desired, report: &mut Report) -> Result<u32, KernelError> {
        self.refused.clear();
        let wanted = Wanted::all(desired, &Rows::new());
        report.loaded = true;
        // What goes by until the table is replaced is not counted. Of a table that does not count there is nothing.
        let counts = if desired.node().counts() { self.kernel.counters().unwrap_or_default() } else { Vec::new() };
        let rows = match self.kernel.load(&text::replacement(&wanted, desired.node())) {
            Ok(()) => {
                report.note_all(&wanted);
                wanted.rows
            }
            Err(KernelError::Nft(NftError::Refused { complaint })) => {
                tracing::error!(%complaint, "nft refuses the table; loading it without rows");
                self.kernel.load(&text::replacement(&Wanted::default(), desired.node()))?;
                Rows::new()
            }
            Err(error) => return Err(error),
        };
        // Where nothing was replaced, the rows go on counting.
        self.counting.take(desired, &self.applied, &[], counts);
        self.counting.found(desired, &self.applied, None);
        self.applied = rows;
        self.count_rows();
        let transactions = 1 + self.seal(desired.node())?;
        // The rows that are not there yet, and chains that another version of nft has put in other expressions than
        // ours: the next process would take them for changed.
        let (_, more) = self.commit_all(desired, report, usize::MAX)?;
        Ok(transactions + more)
    }

    /// Compares every row and chain and commits the difference; frontends whose row or chain is refused are left out,
    /// `most` of them, and the rest tried again. Gives how many chains said something else, and the number of transactions.
    fn commit_all(&mut self, desired: &Desired, report: &mut Report, most: usize) -> Result<(usize, u32), KernelError> {
        let mut altered = None;
        loop {
            let wanted = Wanted::without(desired, &self.applied, &self.refused);
            let altered = match &mut altered {
                Some(altered) => altered,
                none => none.insert(self.altered(&wanted.chains, desired.node())?),
            };
            let anew = |key: &Key| self.counting.changes_hands(desired, key);
            let changes = diff(self.applied.iter(), &wanted.rows, &wanted.chains, &self.chains, altered, &anew);
            match self.commit(&changes, &wanted.chains, desired) {
                Ok(Committed { counts, transactions }) => {
                    report.note(&changes);
                    if desired.node().counts() {
                        self.counting.take(desired, &self.applied, &changes, counts);
                        let before: BTreeSet<_> = self.counting.frontends().chain(desired.frontends()).collect();
                        self.own(desired, before.into_iter());
                    }
                    let is_unread = |name: &&Arc<str>| Chain::is_dynamic(name) && !wanted.chains.contains_key(*name);
                    self.unread = self.chains.iter().filter(is_unread).cloned().collect();
                    self.chains.extend(wanted.chains.into_keys());
                    self.applied = wanted.rows;
                    let rewritten = changes.iter().filter(|change| matches!(change, Change::RewriteChain(_))).count();
                    return Ok((rewritten, transactions));
                }
                Err(KernelError::Refused { change: Some(index), message }) => {
                    let blamed = blamed(changes.get(index), &wanted);
                    if blamed.is_empty() || self.refused.len().saturating_add(blamed.len()) > most {
                        return Err(KernelError::Refused { change: Some(index), message });
                    }
                    for frontend in blamed {
                        tracing::error!(%frontend, %message, "the kernel refuses a row; its frontend is left out");
                        self.refused.insert(frontend, message.clone());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Those of `chains` that are there and say something else than we would write.
    fn altered(&mut self, chains: &Chains, node: &NodeView) -> Result<BTreeSet<Arc<str>>, KernelError> {
        if !chains.keys().any(|name| self.chains.contains(name)) {
            return Ok(BTreeSet::new());
        }
        let mut altered = self.kernel.altered(chains, node)?;
        altered.retain(|name| self.chains.contains(name));
        Ok(altered)
    }

    /// Where somebody has committed between our writing chains and reading them back, what was read may be theirs: the next look is
    /// to find that.
    pub(super) fn doubt_chains(&mut self, chains: &Chains, node: &NodeView) -> Result<(), KernelError> {
        for name in self.kernel.altered(chains, node)? {
            self.digests.insert(name, ChainDigest::default());
        }
        Ok(())
    }

    /// What the kernel would be told now, without telling it: a replaced table, or the changes of its rows.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn preview(&mut self, desired: &Desired) -> Result<Preview, KernelError> {
        let program = skeleton::comment(desired.node());
        let Some(found) = self.kernel.read()?.filter(|found| is_intact(found, &program)) else {
            return Ok(Preview::Replace);
        };
        let wanted = Wanted::all(desired, &found.rows);
        let chains = found.structure.chains.into_keys().collect();
        let altered = self.kernel.altered(&wanted.chains, desired.node())?;
        Ok(Preview::Changes(diff(found.rows.iter(), &wanted.rows, &wanted.chains, &chains, &altered, &|_| false)))
    }
}

/// Whether the table is the one of this version and these settings, and as it was left but for rows and dynamic chains.
fn is_intact(found: &Found, program: &str) -> bool {
    found.comment.as_deref() == Some(program) && found.strange == 0 && found.structure.is_sealed()
}
