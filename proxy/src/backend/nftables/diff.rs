//! Rows in force against rows wanted: the fewest operations, in an order that the kernel accepts and packets do not notice.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::rows::{Chains, Key, Part, Rows, Value};

/// One change of the kernel's tables.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Write a chain that is not there.
    AddChain(Arc<str>),
    /// Write the rules of a chain anew that somebody changed.
    RewriteChain(Arc<str>),
    /// Delete a row.
    Delete(Key, Value),
    /// Add a row whose key is free.
    Add(Key, Value),
}

/// The changes that turn `applied` into `wanted`, where both hold only the keys that matter. First comes what [`is_early`]: chains (new
/// ones, then those `altered`) and the source ranges of who had none. Then deletions, then additions: a replaced row is deleted and
/// added in one transaction, which no packet sees.
/// So are the rows that are `anew` though they say the same: they count from 0. Last come deletions that are [`is_late`].
pub fn diff<'a>(
    applied: impl Iterator<Item = (&'a Key, &'a Value)>,
    wanted: &Rows,
    chains: &Chains,
    known_chains: &BTreeSet<Arc<str>>,
    altered: &BTreeSet<Arc<str>>,
    anew: &dyn Fn(&Key) -> bool,
) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut added: BTreeSet<&Arc<str>> = BTreeSet::new();
    for name in in_order(chains) {
        if !known_chains.contains(name) && added.insert(name) {
            changes.push(Change::AddChain(name.clone()));
        }
    }
    let is_altered = |name: &&Arc<str>| chains.contains_key(*name) && known_chains.contains(*name);
    changes.extend(altered.iter().filter(is_altered).cloned().map(Change::RewriteChain));
    let (mut additions, mut late) = (Vec::new(), Vec::new());
    let mut same = BTreeSet::new();
    let mut ranged = BTreeSet::new();
    let (mut deletions, mut early) = (Vec::new(), Vec::new());
    for (key, value) in applied {
        if let Key::Of(of, Part::Ranged) = key {
            ranged.insert(*of);
        }
        match wanted.get(key) {
            Some(new) if new == value && !anew(key) => {
                same.insert(*key);
            }
            None if is_late(key) && !is_among_ranges(key, wanted) => late.push(Change::Delete(*key, value.clone())),
            _ => deletions.push(Change::Delete(*key, value.clone())),
        }
    }
    for (key, value) in wanted.iter().filter(|(key, _)| !same.contains(key)) {
        let is_first_range = matches!(key, Key::Of(of, Part::SourceRange(_)) if !ranged.contains(of));
        if is_first_range { &mut early } else { &mut additions }.push(Change::Add(*key, value.clone()));
    }
    changes.extend(early);
    changes.extend(deletions);
    changes.extend(additions);
    changes.extend(late);
    changes
}

/// Whether a change is one that a packet may need which finds the others in force: chains, and source ranges, which the kernel lets a
/// packet see a moment after all other rows of the same transaction (`nft_set_commit_update`).
pub fn is_early(change: &Change) -> bool {
    match change {
        Change::AddChain(_) | Change::RewriteChain(_) => true,
        Change::Add(key, _) => matches!(key, Key::Of(_, Part::SourceRange(_))),
        Change::Delete(..) => false,
    }
}

/// Whether a row is one that a packet may ask for because of what it has found in another row before: that one goes first.
pub fn is_late(key: &Key) -> bool {
    match key {
        Key::Turn(..) | Key::Hairpin(_) => true,
        Key::Of(_, part) => matches!(part, Part::Endpoint(_) | Part::Ranged | Part::SourceRange(_)),
        _ => false,
    }
}

/// Whether a row is a source range of a frontend that has others then, which it may overlap with: the kernel wants it gone first.
fn is_among_ranges(key: &Key, wanted: &Rows) -> bool {
    matches!(key, Key::Of(of, Part::SourceRange(_)) if wanted.contains_key(&Key::Of(*of, Part::Ranged)))
}

/// Chains so that each comes after the ones it goes to.
pub fn in_order(chains: &Chains) -> Vec<&Arc<str>> {
    let mut ordered = Vec::with_capacity(chains.len());
    let mut left: BTreeSet<&Arc<str>> = chains.keys().collect();
    while !left.is_empty() {
        let ready: Vec<_> = left
            .iter()
            .copied()
            .filter(|name| chains[*name].needs().iter().all(|needed| !left.contains(&Arc::from(needed.to_string()))))
            .collect();
        for name in &ready {
            left.remove(name);
        }
        ordered.extend(ready);
    }
    ordered
}
