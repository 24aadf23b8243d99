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
/// added in one transaction, which packets do not see.
/// So are the rows that are `anew` though they say the same: they count from 0. Last comes what [`is_late`].
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
    let (mut deletions, mut additions) = (Vec::new(), Vec::new());
    let (mut early, mut late) = (Vec::new(), Vec::new());
    let mut same = BTreeSet::new();
    // Who is asked for ranges already, or has some of which one may overlap with a new one.
    let mut ranged = BTreeSet::new();
    for (key, value) in applied {
        if let Key::Of(of, Part::Ranged | Part::SourceRange(_)) = key {
            ranged.insert(*of);
        }
        match wanted.get(key) {
            Some(new) if new == value && !anew(key) => {
                same.insert(*key);
            }
            new => {
                let change = Change::Delete(*key, value.clone());
                let is_late = new.is_none() && is_late(&change) && !is_among_ranges(key, wanted);
                if is_late { &mut late } else { &mut deletions }.push(change);
            }
        }
    }
    for (key, value) in wanted.iter().filter(|(key, _)| !same.contains(key)) {
        let change = Change::Add(*key, value.clone());
        match key {
            Key::Of(of, Part::SourceRange(_)) if !ranged.contains(of) => early.push(change),
            _ if is_late(&change) => late.push(change),
            _ => additions.push(change),
        }
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

/// Whether a change is to wait until others are in force for every packet: deletions of rows that a packet may ask for because of what it
/// has found in another row before, and additions that have a packet refused or dropped which has found no frontend.
pub fn is_late(change: &Change) -> bool {
    match change {
        Change::Delete(Key::Of(_, part), _) => {
            matches!(part, Part::Endpoint(_) | Part::Ranged | Part::SourceRange(_))
        }
        Change::Delete(key, _) => matches!(key, Key::Turn(..) | Key::Hairpin(_) | Key::ServiceCidr(_)),
        // The old ranges go where the new ones come, as they may overlap.
        Change::Add(key, _) => matches!(key, Key::ClusterIp(_) | Key::ServiceCidr(_)),
        Change::AddChain(_) | Change::RewriteChain(_) => false,
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

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::desired::target::Frontend;
    use crate::state::objects::Protocol;

    const WEB: Frontend =
        Frontend::Address { ip: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), protocol: Protocol::Tcp, port: 80 };

    fn rows(parts: &[Part]) -> Rows {
        parts.iter().map(|part| (Key::Of(WEB, *part), Value::Present)).collect()
    }

    fn order(applied: &[Part], wanted: &[Part]) -> Vec<String> {
        let (applied, wanted) = (rows(applied), rows(wanted));
        let changes = diff(applied.iter(), &wanted, &Chains::new(), &BTreeSet::new(), &BTreeSet::new(), &|_| false);
        let text = |change: &Change| match change {
            Change::Add(Key::Of(_, part), _) => format!("+ {part:?}"),
            Change::Delete(Key::Of(_, part), _) => format!("- {part:?}"),
            other => format!("{other:?}"),
        };
        changes.iter().map(text).collect()
    }

    #[test]
    fn ranges_come_before_and_go_after_whoever_asks_for_them() {
        let [old, new] = ["10.0.0.0/9", "10.0.0.0/8"].map(|net| Part::SourceRange(net.parse().unwrap()));
        let text = |sign, part: Part| format!("{sign} {part:?}");
        let (verdict, ranged) = (Part::Verdict, Part::Ranged);
        let comes = order(&[], &[verdict, ranged, new]);
        assert_eq!(comes, [text('+', new), text('+', verdict), text('+', ranged)]);
        let goes = order(&[verdict, ranged, new], &[verdict]);
        assert_eq!(goes, [text('-', ranged), text('-', new)]);
        let changes = order(&[verdict, ranged, old], &[verdict, ranged, new]);
        assert_eq!(changes, [text('-', old), text('+', new)], "they overlap");
        let left = order(&[old], &[verdict, ranged, new]);
        assert_eq!(
            left,
            [text('-', old), text('+', verdict), text('+', ranged), text('+', new)],
            "of a sync that failed"
        );
    }
}
