//! What a real kernel, or a packet, would say to the order of changes.

use std::collections::BTreeSet;

use ipnet::IpNet;

use crate::backend::nftables::diff::Change;
use crate::backend::nftables::rows::{Key, Part, Rows};
use crate::desired::target::Frontend;

/// Whether one of two ranges of a frontend is in the other: the kernel wants none of these, most of the time.
pub(super) fn overlaps(rows: &Rows, frontend: Frontend, new: &IpNet) -> bool {
    let mut ranges = rows.keys().filter_map(|key| match key {
        Key::Of(of, Part::SourceRange(net)) if *of == frontend => Some(net),
        _ => None,
    });
    ranges.any(|net| net.contains(new) || new.contains(net))
}

/// What a packet would meet that looks into one row before a transaction and into the next after it: a chain or source ranges that are
/// not there yet for it, nothing where an old row has led it to, or that its address is a Service's where it has found no frontend.
pub(super) fn meets_half(before: &Rows, changes: &[Change]) -> Option<String> {
    let added: BTreeSet<Key> = changes.iter().filter_map(added).collect();
    let leads = |key: &Key| matches!(key, Key::Of(_, Part::Verdict | Part::Ranged | Part::Remember));
    let has_verdicts = changes.iter().any(|change| {
        matches!(change, Change::Add(Key::Of(_, Part::Verdict), _) | Change::Delete(Key::Of(_, Part::Verdict), _))
    });
    let is_led_to = |key: &Key| match key {
        Key::Turn(..) | Key::Hairpin(_) | Key::Of(_, Part::Endpoint(_) | Part::Ranged) => !added.contains(key),
        _ => false,
    };
    let is_half = |change: &&Change| match change {
        Change::AddChain(_) | Change::RewriteChain(_) => added.iter().any(leads),
        Change::Delete(key, _) if is_led_to(key) => has_verdicts,
        Change::Add(Key::ClusterIp(_) | Key::ServiceCidr(_), _) => added.iter().any(leads),
        Change::Add(Key::Of(of, Part::SourceRange(_)), _) => {
            let asks_already =
                |key: &Key| matches!(key, Key::Of(other, Part::Ranged | Part::SourceRange(_)) if other == of);
            added.contains(&Key::Of(*of, Part::Ranged)) && !before.keys().any(asks_already)
        }
        _ => false,
    };
    changes.iter().find(is_half).map(|half| format!("a packet meets half of {changes:?}: {half:?}"))
}

fn added(change: &Change) -> Option<Key> {
    match change {
        Change::Add(key, _) => Some(*key),
        _ => None,
    }
}
