//! The whole table in nft's language: what `kubeferry plan` prints, and what replaces a table of another version in one
//! transaction.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::desired::node_view::NodeView;

use super::diff::{Change, in_order};
use super::maps::{map_of, row_text};
use super::rows::{Chains, Wanted};
use super::skeleton::{self, TABLE};

/// Chains as `add` commands.
pub fn chains(chains: &Chains, node: &NodeView) -> String {
    let mut text = String::new();
    for name in in_order(chains) {
        let _ = writeln!(text, "add chain inet {TABLE} {name}");
        for rule in chains[name].rules(node).unwrap_or_default() {
            let _ = writeln!(text, "add rule inet {TABLE} {name} {}", rule.text());
        }
    }
    text
}

/// The whole table with its chains and rows.
pub fn whole(wanted: &Wanted, node: &NodeView) -> String {
    // The chains stand inside the table's block: nft 1.0.6 loses the type of a map's data from one command to the next.
    let mut text = skeleton::text(node);
    let end = text.trim_end().trim_end_matches('}').len();
    text.truncate(end);
    for name in in_order(&wanted.chains) {
        let _ = writeln!(text, "\n  chain {name} {{");
        for rule in wanted.chains[name].rules(node).unwrap_or_default() {
            let _ = writeln!(text, "    {}", rule.text());
        }
        let _ = writeln!(text, "  }}");
    }
    text += "}\n";
    let mut maps: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (key, value) in &wanted.rows {
        maps.entry(map_of(key)).or_default().push(row_text(key, value));
    }
    for (map, rows) in maps {
        let _ = writeln!(text, "\nadd element inet {TABLE} {map} {{\n  {}\n}}", rows.join(",\n  "));
    }
    text
}

/// As [`whole`], in place of whatever table is there, in one transaction.
pub fn replacement(wanted: &Wanted, node: &NodeView) -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n{}", whole(wanted, node))
}

/// A list of changes as a person reads it: `+` and `-`, the map, the row; `~` for a chain whose rules were others.
pub fn changes(changes: &[Change]) -> String {
    let mut text = String::new();
    for change in changes {
        let _ = match change {
            Change::AddChain(name) => writeln!(text, "+ chain {name}"),
            Change::RewriteChain(name) => writeln!(text, "~ chain {name}"),
            Change::Delete(key, value) => writeln!(text, "- {} {}", map_of(key), row_text(key, value)),
            Change::Add(key, value) => writeln!(text, "+ {} {}", map_of(key), row_text(key, value)),
        };
    }
    text
}
