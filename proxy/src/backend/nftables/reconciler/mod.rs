//! Keeps the kernel's rows equal to the wanted ones: what is in force, what has to be looked at, and what to do when a
//! commit fails. The same diff serves start-up (rows read from the kernel), the steady state (rows remembered) and repair.

mod check;
mod counting;
mod full;
mod incremental;
mod past;
mod refused;
mod steps;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::backend::ChangesByMap;
use crate::desired::target::{Frontend, ServicePortName};
use crate::desired::{Desired, Touched};

use super::diff::Change;
use super::kernel::{ChainDigest, Kernel, KernelError};
use super::maps::{MAPS, map_of};
use super::rows::{Rows, Value, Wanted};
use super::skeleton;

pub use full::Preview;
#[cfg(test)]
pub(super) use refused::RETRY;

/// Service ports with chains of their own in one sync. Each comes to three chains, or more where it has a node port or an external
/// address, too: in an unoptimized build a second's work, in which nobody else's changes come into force.
const CHAINS_AT_ONCE: usize = 2000;

/// The state of the kernel's table as this process knows it.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    /// How many service ports with chains of their own one sync is to bring.
    pub(super) chains_at_once: usize,
    applied: Rows,
    chains: BTreeSet<Arc<str>>,
    /// Chains that were there when no row needed them: what they say was not looked at.
    unread: BTreeSet<Arc<str>>,
    digests: BTreeMap<Arc<str>, ChainDigest>,
    program: Option<String>,
    pending: Touched,
    left: BTreeSet<(ServicePortName, SocketAddr)>,
    known: bool,
    /// Whether the last commit is in force is not known: what differs may be our own.
    doubtful: bool,
    /// What others have changed, in rows or chains, while it could not be repaired.
    unreported: usize,
    generation: Option<u32>,
    /// The kernel's number of our table.
    table: Option<u64>,
    /// While others commit: when our rows are read again, …
    next_read: Option<Instant>,
    /// … and what is not rows.
    next_look: Option<Instant>,
    refused: BTreeMap<Frontend, String>,
    /// How many calls of [`Reconciler::check`] have passed since refused frontends were tried.
    untried: u32,
    counts: BTreeMap<&'static str, usize>,
    /// Some row went from a chain of a single service: the chain may be of no use any more.
    unlinked: bool,
    counting: counting::Counting,
}

/// What a sync did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Every row was compared, not only those of changed objects.
    pub full: bool,
    /// Rows and chains written or deleted.
    pub changes: usize,
    /// The same by map.
    pub by_map: ChangesByMap,
    /// The table was loaded anew.
    pub loaded: bool,
    /// The kernel differed from what we (or the process before us) had written, in so many rows or chains.
    pub repaired: usize,
    /// Frontends that the kernel refuses, and why; everything else is in force.
    pub refused: BTreeMap<Frontend, String>,
}

impl Report {
    /// Adds changes that are in force.
    fn note(&mut self, changes: &[Change]) {
        self.changes += changes.len();
        for change in changes {
            let (map, added) = match change {
                Change::AddChain(_) | Change::RewriteChain(_) => ("chains", true),
                Change::Add(key, _) => (map_of(key), true),
                Change::Delete(key, _) => (map_of(key), false),
            };
            let rows = self.by_map.entry(map).or_default();
            rows.added += usize::from(added);
            rows.deleted += usize::from(!added);
        }
    }

    /// Everything was written anew.
    fn note_all(&mut self, wanted: &Wanted) {
        self.changes = wanted.rows.len() + wanted.chains.len();
        self.by_map.clear();
        let maps = wanted.rows.keys().map(map_of).chain(wanted.chains.keys().map(|_| "chains"));
        maps.for_each(|map| self.by_map.entry(map).or_default().added += 1);
    }
}

impl<K: Kernel> Reconciler<K> {
    /// Knows nothing of the kernel yet: the first sync reads it.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            chains_at_once: CHAINS_AT_ONCE,
            applied: Rows::new(),
            chains: BTreeSet::new(),
            unread: BTreeSet::new(),
            digests: BTreeMap::new(),
            program: None,
            pending: Touched::default(),
            left: BTreeSet::new(),
            known: false,
            doubtful: false,
            unreported: 0,
            generation: None,
            table: None,
            next_read: None,
            next_look: None,
            refused: BTreeMap::new(),
            untried: 0,
            counts: BTreeMap::new(),
            unlinked: false,
            counting: counting::Counting::default(),
        }
    }

    /// Brings the kernel to the wanted rows. After a failure the next call compares everything.
    ///
    /// # Errors
    /// The kernel or `nft` failed as a whole; a row that the kernel refuses only costs its own frontend.
    pub fn sync(&mut self, desired: &Desired, touched: Touched) -> Result<Report, KernelError> {
        self.pending.merge(touched);
        self.left.append(&mut self.pending.left);
        let report = self.sync_rows(desired)?;
        self.forget_clients(desired);
        Ok(report)
    }

    fn sync_rows(&mut self, desired: &Desired) -> Result<Report, KernelError> {
        if self.known && self.program.as_deref() == Some(skeleton::comment(desired.node()).as_str()) {
            let touched = std::mem::take(&mut self.pending);
            match self.incremental(desired, &touched) {
                Ok(report) => return Ok(report),
                Err(error) => {
                    tracing::warn!(%error, "a commit failed; comparing every row with the kernel");
                    self.pending.merge(touched);
                }
            }
        }
        self.full(desired)
    }

    /// After so many transactions of ours, takes the generation as seen if there was no other's: only then is there
    /// nothing else to see.
    fn follow_generation(&mut self, from: Option<u32>, transactions: u32) {
        let expected = from.map(|generation| generation.wrapping_add(transactions));
        self.generation = self.kernel.generation().ok().filter(|now| Some(*now) == expected);
    }

    /// The number of rows in force, by map.
    pub fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
    }

    /// The rows in force.
    pub(super) fn applied(&self) -> &Rows {
        &self.applied
    }

    fn count_rows(&mut self) {
        self.counts = MAPS.iter().flatten().map(|map| (*map, 0)).collect();
        for key in self.applied.keys() {
            *self.counts.entry(map_of(key)).or_default() += 1;
        }
    }

    /// Frontends that the kernel refuses, and why.
    pub fn refused(&self) -> &BTreeMap<Frontend, String> {
        &self.refused
    }

    /// How many connections ended without what they carried being counted.
    pub(super) fn uncounted(&self) -> u64 {
        self.kernel.uncounted()
    }

    /// The kernel.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }
}

fn chain_of(value: &Value) -> Option<&Arc<str>> {
    match value {
        Value::Chain(name) => Some(name),
        _ => None,
    }
}
