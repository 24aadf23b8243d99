//! Keeps the kernel's rows equal to the wanted ones: what is in force, what has to be looked at, and what to do when a
//! commit fails. The same diff serves start-up (rows read from the kernel), the steady state (rows remembered) and repair.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use crate::desired::target::{Frontend, ServicePortName};
use crate::desired::{Desired, Touched};

use super::chains::Chain;
use super::diff::{Change, diff};
use super::kernel::{ChainDigest, Kernel, KernelError};
use super::maps::{MAPS, map_of};
use super::nft::NftError;
use super::rows::{Key, Part, Rows, Value, Wanted, client_number};
use super::{skeleton, text};

/// How many checks may pass without a look at the rows while other programs keep committing: with one check every two
/// seconds, about a minute.
const MOST_SKIPPED: u32 = 31;
/// How many frontends may be left out of one sync because the kernel refuses their rows.
const MAX_REFUSED: usize = 16;

/// The state of the kernel's table as this process knows it.
#[derive(Debug)]
pub struct Reconciler<K> {
    kernel: K,
    applied: Rows,
    chains: BTreeSet<Arc<str>>,
    digests: BTreeMap<Arc<str>, ChainDigest>,
    program: Option<String>,
    pending: Touched,
    left: BTreeSet<(ServicePortName, SocketAddr)>,
    known: bool,
    generation: Option<u32>,
    /// How many calls of [`Reconciler::check`] pass between two looks, and how many are left, while others commit.
    quiet: u32,
    skip: u32,
    refused: BTreeMap<Frontend, String>,
    counts: BTreeMap<&'static str, usize>,
    /// Some row went from a chain of a single service: the chain may be of no use any more.
    unlinked: bool,
}

/// What a sync did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Every row was compared, not only those of changed objects.
    pub full: bool,
    /// Rows and chains written or deleted.
    pub changes: usize,
    /// The table was loaded anew.
    pub loaded: bool,
    /// The kernel differed from what we had written, in so many rows or chains.
    pub repaired: usize,
    /// Frontends that the kernel refuses, and why; everything else is in force.
    pub refused: BTreeMap<Frontend, String>,
}

impl<K: Kernel> Reconciler<K> {
    /// Knows nothing of the kernel yet: the first sync reads it.
    pub fn new(kernel: K) -> Self {
        Self {
            kernel,
            applied: Rows::new(),
            chains: BTreeSet::new(),
            digests: BTreeMap::new(),
            program: None,
            pending: Touched::default(),
            left: BTreeSet::new(),
            known: false,
            generation: None,
            quiet: 0,
            skip: 0,
            refused: BTreeMap::new(),
            counts: BTreeMap::new(),
            unlinked: false,
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

    /// Looks whether somebody changed our table, and repairs it. Costs one question to the kernel if nobody changed
    /// any table since the last look.
    ///
    /// # Errors
    /// As for [`Reconciler::sync`].
    pub fn check(&mut self, desired: &Desired) -> Result<Option<Report>, KernelError> {
        let generation = self.kernel.generation()?;
        if self.known && self.generation == Some(generation) {
            self.drop_unused_chains();
            (self.quiet, self.skip) = (self.quiet / 2, 0);
            return Ok(None);
        }
        // Somebody committed something, most often elsewhere. Programs that do so all the time must not make us read all
        // rows all the time: after each look that finds nothing, twice as many calls pass before the next.
        if self.known && self.skip > 0 {
            self.skip -= 1;
            return Ok(None);
        }
        let whole = match self.kernel.read()? {
            Some(found) => {
                let rows = count_differences(&self.applied, &found.rows) + found.strange;
                let chains =
                    self.digests.iter().filter(|(name, digest)| found.chains.get(*name) != Some(*digest)).count();
                if found.comment == self.program { rows + chains } else { rows + chains + 1 }
            }
            None => self.applied.len().max(1),
        };
        if self.known && whole == 0 {
            self.generation = Some(generation);
            self.quiet = (self.quiet * 2 + 1).min(MOST_SKIPPED);
            self.skip = self.quiet;
            return Ok(None);
        }
        self.quiet = 0;
        let mut report = self.full(desired)?;
        report.repaired = whole;
        Ok(Some(report))
    }

    fn full(&mut self, desired: &Desired) -> Result<Report, KernelError> {
        self.known = false;
        let before = self.kernel.generation()?;
        let found = self.kernel.read()?;
        let mut transactions = 0;
        let program = skeleton::comment(desired.node());
        let mut report = Report { full: true, ..Report::default() };
        self.refused.clear();
        let intact = match &found {
            Some(found) => {
                found.comment.as_deref() == Some(&program)
                    && found.strange == 0
                    && self.is_intact(desired, &found.chains)
            }
            None => {
                // Nothing to replace: the rows follow by netlink, which is faster than text.
                self.kernel.load(&skeleton::text(desired.node()))?;
                report.loaded = true;
                transactions += 1;
                true
            }
        };
        let mut replace = !intact;
        if intact {
            let found = found.unwrap_or_default();
            self.applied = found.rows;
            self.chains = found.chains.into_keys().collect();
            match self.commit_all(desired, &mut report, MAX_REFUSED) {
                Ok(()) => transactions += u32::from(report.changes > 0),
                Err(KernelError::Refused { change, message }) => {
                    tracing::error!(?change, %message, "the kernel refuses the changes; replacing the table");
                    replace = true;
                }
                Err(error) => return Err(error),
            }
        }
        if replace {
            transactions += self.replace(desired, &mut report)?;
        }
        self.program = Some(program);
        self.unlinked = true;
        self.pending = Touched::default();
        self.known = true;
        // Filled in order, a BTreeMap's nodes are half empty: build it again.
        self.applied = std::mem::take(&mut self.applied).into_iter().collect();
        self.count_rows();
        self.digests = self.kernel.chains()?;
        let expected = before.wrapping_add(transactions);
        self.generation = self.kernel.generation().ok().filter(|now| *now == expected);
        report.refused = self.refused.clone();
        Ok(report)
    }

    /// Writes the table anew, in one transaction. Where `nft` refuses that for a row, which it does not name, the table
    /// is emptied and the rows follow by netlink: new connections fail for that moment, and not until somebody mends
    /// the row. Gives the number of transactions.
    fn replace(&mut self, desired: &Desired, report: &mut Report) -> Result<u32, KernelError> {
        self.refused.clear();
        let wanted = Wanted::all(desired, &Rows::new());
        report.loaded = true;
        match self.kernel.load(&text::replacement(&wanted, desired.node())) {
            Ok(()) => {
                report.changes = wanted.rows.len() + wanted.chains.len();
                self.chains = wanted.chains.into_keys().collect();
                self.applied = wanted.rows;
                Ok(1)
            }
            Err(KernelError::Nft(NftError::Refused { complaint })) => {
                tracing::error!(%complaint, "nft refuses the table; loading it without rows");
                self.kernel.load(&text::replacement(&Wanted::default(), desired.node()))?;
                (self.chains, self.applied) = Default::default();
                self.commit_all(desired, report, usize::MAX)?;
                Ok(1 + u32::from(report.changes > 0))
            }
            Err(error) => Err(error),
        }
    }

    /// Compares every row and commits the difference; frontends whose row or chain is refused are left out, `most` of
    /// them, and the rest tried again.
    fn commit_all(&mut self, desired: &Desired, report: &mut Report, most: usize) -> Result<(), KernelError> {
        loop {
            let wanted = Wanted::without(desired, &self.applied, &self.refused);
            let changes = diff(self.applied.iter(), &wanted.rows, &wanted.chains, &self.chains);
            match self.kernel.commit(&changes, &wanted.chains, desired.node()) {
                Ok(()) => {
                    report.changes += changes.len();
                    self.chains.extend(wanted.chains.into_keys());
                    self.applied = wanted.rows;
                    return Ok(());
                }
                Err(KernelError::Refused { change: Some(index), message }) => {
                    let blamed = match changes.get(index) {
                        Some(Change::Add(Key::Of(frontend, _), _)) => BTreeSet::from([*frontend]),
                        Some(Change::AddChain(name)) => wanted.frontends_through(name),
                        _ => BTreeSet::new(),
                    };
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

    fn incremental(&mut self, desired: &Desired, touched: &Touched) -> Result<Report, KernelError> {
        let mut wanted = Wanted::default();
        let mut old: Vec<(Key, Value)> = Vec::new();
        for frontend in &touched.frontends {
            self.refused.remove(frontend);
            wanted.frontend(desired, frontend, &self.applied);
            let [first, last] = Part::ALL.map(|part| Key::Of(*frontend, part));
            old.extend(self.applied.range(first..=last).map(|(key, value)| (*key, value.clone())));
        }
        let mut member = |key: Key, is: bool| {
            if is {
                wanted.rows.insert(key, Value::Present);
            }
            old.extend(self.applied.get_key_value(&key).map(|(key, value)| (*key, value.clone())));
        };
        for ip in &touched.endpoint_ips {
            member(Key::Hairpin(*ip), desired.is_endpoint(*ip));
        }
        for ip in &touched.cluster_ips {
            member(Key::ClusterIp(*ip), desired.is_cluster_ip(*ip));
        }
        if touched.node {
            wanted.node(desired);
            // They are the last of all keys.
            let first = Key::ServiceCidr(IpNet::V4(Ipv4Net::default()));
            old.extend(self.applied.range(first..).map(|(key, value)| (*key, value.clone())));
        }
        let changes = diff(old.iter().map(|(key, value)| (key, value)), &wanted.rows, &wanted.chains, &self.chains);
        let mut report = Report { changes: changes.len(), ..Report::default() };
        if !changes.is_empty() {
            self.known = false;
            self.kernel.commit(&changes, &wanted.chains, desired.node())?;
            self.known = true;
            self.remember(changes);
        }
        report.refused = self.refused.clone();
        Ok(report)
    }

    /// Takes committed changes into what is known to be in force.
    fn remember(&mut self, changes: Vec<Change>) {
        let mut new_chains = false;
        for change in changes {
            match change {
                Change::AddChain(name) => {
                    new_chains = true;
                    self.chains.insert(name);
                }
                Change::Delete(key, value) => {
                    self.unlinked |= chain_of(&value).is_some_and(|name| Chain::is_transient(name));
                    *self.counts.entry(map_of(&key)).or_default() -= 1;
                    self.applied.remove(&key);
                }
                Change::Add(key, value) => {
                    *self.counts.entry(map_of(&key)).or_default() += 1;
                    self.applied.insert(key, value);
                }
            }
        }
        let expected = self.generation.map(|generation| generation.wrapping_add(1));
        // Only if ours was the one transaction since the last look is there nothing else to see.
        self.generation = self.kernel.generation().ok().filter(|now| Some(*now) == expected);
        if new_chains && let Ok(digests) = self.kernel.chains() {
            self.digests = digests;
        }
    }

    /// Forgets the clients of endpoints that left, so that one that comes back does not take them from where they are
    /// now. If it fails, the kernel forgets them by their timeout.
    fn forget_clients(&mut self, desired: &Desired) {
        let left =
            std::mem::take(&mut self.left).into_iter().filter(|(name, endpoint)| !desired.remembers(name, *endpoint));
        let numbers: BTreeSet<u32> = left.map(|(name, endpoint)| client_number(&name, endpoint)).collect();
        if numbers.is_empty() {
            return;
        }
        match self.kernel.forget_clients(&numbers) {
            Ok(transactions) => {
                let expected = self.generation.map(|generation| generation.wrapping_add(transactions));
                self.generation = self.kernel.generation().ok().filter(|now| Some(*now) == expected);
            }
            Err(error) => tracing::debug!(%error, "clients of endpoints that left are remembered until their timeout"),
        }
    }

    /// Whether the chains in the kernel have the rules that we would write.
    fn is_intact(&self, desired: &Desired, found: &BTreeMap<Arc<str>, ChainDigest>) -> bool {
        let node = desired.node();
        let program = skeleton::rule_counts(node);
        let wanted = Wanted::all(desired, &Rows::new()).chains;
        let rules = |chain: &Chain| chain.rules(node).map_or(0, |rules| rules.len());
        program.iter().all(|(name, count)| found.get(name.as_str()).is_some_and(|chain| chain.rules == *count))
            && wanted.iter().all(|(name, chain)| found.get(name).is_none_or(|found| found.rules == rules(chain)))
            && self.digests.iter().all(|(name, digest)| found.get(name).is_none_or(|found| found == digest))
    }

    /// Deletes chains of single services that no row goes to any more. Called a while after the commit that freed them:
    /// before Linux 6.2 a chain cannot be deleted in the same breath as the row that went to it.
    fn drop_unused_chains(&mut self) {
        if !self.unlinked {
            return;
        }
        let mut used: BTreeSet<Cow<'_, str>> = BTreeSet::new();
        for name in self.applied.values().filter_map(chain_of).filter(|name| Chain::is_transient(name)) {
            used.extend(Chain::picked_by(name).into_iter().map(Cow::Owned));
            used.insert(Cow::Borrowed(name));
        }
        let is_unused = |name: &&Arc<str>| Chain::is_transient(name) && !used.contains(&***name);
        let mut unused: Vec<Arc<str>> = self.chains.iter().filter(is_unused).cloned().collect();
        // Those that go to others first.
        unused.sort_by_key(|name| Chain::picked_by(name).is_empty());
        match if unused.is_empty() { Ok(()) } else { self.kernel.delete_chains(&unused) } {
            Ok(()) => {
                self.unlinked = false;
                for name in &unused {
                    self.chains.remove(name);
                    self.digests.remove(name);
                }
                let expected = self.generation.map(|generation| generation.wrapping_add(u32::from(!unused.is_empty())));
                self.generation = self.kernel.generation().ok().filter(|now| Some(*now) == expected);
            }
            Err(error) => tracing::debug!(%error, "unused chains stay until the next check"),
        }
    }

    /// The number of rows in force, by map.
    pub fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
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

    /// The kernel.
    pub fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// What the kernel would be told now, without telling it: a replaced table, or the changes of its rows.
    ///
    /// # Errors
    /// The kernel cannot be read.
    pub fn preview(&mut self, desired: &Desired) -> Result<Preview, KernelError> {
        let Some(found) = self.kernel.read()?.filter(|found| found.comment == Some(skeleton::comment(desired.node())))
        else {
            return Ok(Preview::Replace);
        };
        let wanted = Wanted::all(desired, &found.rows);
        let chains = found.chains.into_keys().collect();
        Ok(Preview::Changes(diff(found.rows.iter(), &wanted.rows, &wanted.chains, &chains)))
    }
}

/// What a sync would do.
#[derive(Debug)]
pub enum Preview {
    /// There is no table, or one of another version or other settings.
    Replace,
    /// Changes of rows; none if the kernel holds what is wanted.
    Changes(Vec<Change>),
}

fn chain_of(value: &Value) -> Option<&Arc<str>> {
    match value {
        Value::Chain(name) => Some(name),
        _ => None,
    }
}

fn count_differences(ours: &Rows, theirs: &Rows) -> usize {
    let missing = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(*value)).count();
    missing + theirs.keys().filter(|key| !ours.contains_key(*key)).count()
}
