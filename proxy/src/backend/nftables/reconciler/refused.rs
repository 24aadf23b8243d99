//! Frontends that the kernel refuses: which ones a refusal is about, and trying them again.

use std::collections::{BTreeMap, BTreeSet};

use crate::backend::nftables::diff::Change;
use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::kernel::{Kernel, KernelError};
use crate::backend::nftables::rows::{Key, Wanted};
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};

use super::full::MAX_REFUSED;
use super::steps::Committed;
use super::{Reconciler, Report};

/// How many calls of [`Reconciler::check`] pass before refused frontends are tried again: with one every two seconds,
/// two minutes.
pub(in crate::backend::nftables) const RETRY: u32 = 60;

/// The frontends that need a refused change; none if it cannot be left out.
pub(super) fn blamed(change: Option<&Change>, wanted: &Wanted) -> BTreeSet<Frontend> {
    match change {
        Some(Change::Add(Key::Of(frontend, _), _)) => BTreeSet::from([*frontend]),
        Some(Change::Add(Key::Turn(turn, slot), _)) => wanted.frontends_of_turn(*turn, Turn::list(*slot)),
        Some(Change::AddChain(name) | Change::RewriteChain(name)) => wanted.frontends_through(name),
        _ => BTreeSet::new(),
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Once in a while, tries the refused frontends again: what the kernel lacked (memory, room in a map) may be there
    /// now. Gives a report if it took any; a refusal changes nothing that a packet meets.
    ///
    /// # Errors
    /// The socket failed; whether the rows are in force is not known.
    pub(super) fn retry_refused(&mut self, desired: &Desired) -> Result<Option<Report>, KernelError> {
        self.untried += 1;
        if self.refused.is_empty() || self.untried < RETRY {
            return Ok(None);
        }
        self.untried = 0;
        let mut still: BTreeMap<Frontend, String> = BTreeMap::new();
        for _ in 0..MAX_REFUSED {
            let frontends: BTreeSet<Frontend> =
                self.refused.keys().filter(|frontend| !still.contains_key(frontend)).copied().collect();
            if frontends.is_empty() {
                return Ok(None);
            }
            let touched = Touched { frontends: frontends.clone(), ..Touched::default() };
            let (wanted, changes) = self.compare(desired, &touched)?;
            self.known = false;
            match self.commit(&changes, &wanted.chains, desired) {
                Ok(Committed { counts, transactions }) => {
                    self.known = true;
                    self.counting.take(desired, &self.applied, &changes, counts);
                    if desired.node().counts() {
                        self.own(desired, frontends.iter().copied());
                    }
                    let mut report = Report::default();
                    report.note(&changes);
                    self.remember(&wanted.chains, changes, transactions, desired.node());
                    self.refused.retain(|frontend, _| !frontends.contains(frontend));
                    return Ok(Some(Report { refused: self.refused.clone(), ..report }));
                }
                Err(KernelError::Refused { change, message }) => {
                    self.known = true;
                    let blamed = blamed(change.and_then(|index| changes.get(index)), &wanted);
                    tracing::debug!(?blamed, %message, "the kernel still refuses a row");
                    if blamed.is_empty() {
                        return Ok(None);
                    }
                    still.extend(blamed.into_iter().map(|frontend| (frontend, message.clone())));
                }
                Err(KernelError::Short { message }) => {
                    self.known = true;
                    tracing::debug!(%message, "no room to try refused rows again");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
