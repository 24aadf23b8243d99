//! A kernel in memory that fails on request: for what a real one cannot be made to do in a test.

mod kernel;
mod order;
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proptest::sample::Index;

use crate::desired::node_view::NodeView;
use crate::state::objects::Family;

use super::chains::{Chain, fnv1a};
use super::diff::Change;
use super::kernel::{ChainDigest, Found, Kernel, KernelError, RowCount};
use super::maps::{self, MAPS};
use super::netlink::{Error, Refused, RefusedPart};
use super::nft::NftError;
use super::rows::{Chains, Key, Part, Rows, Value};
use super::seal::Structure;

use script::parse;
pub(super) use script::parse_row;

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults {
    /// So many of the next commits go well before any other fault meets one.
    pub later: usize,
    /// So many of the next commits are refused as a whole.
    pub commits: usize,
    /// So many of the next reads fail.
    pub reads: usize,
    /// So many of the next scripts are refused.
    pub loads: usize,
    /// So many of the next commits and scripts find no memory in the kernel.
    pub memory: usize,
    /// So many of the next commits are in force, but their answer is lost.
    pub answers: usize,
    /// After so many of the next commits that add a dynamic chain, somebody puts a rule into it before it can be read back.
    pub meddlers: usize,
    /// Scripts say the rules of dynamic chains in other expressions than we do, as another version of `nft` may.
    pub dialect: bool,
    /// Rows of these keys are refused.
    pub keys: BTreeSet<Key>,
    /// Chains of these names are refused.
    pub chains: BTreeSet<Arc<str>>,
}

/// What another program does to the table.
#[derive(Clone, Copy, Debug)]
pub(super) enum Harm {
    /// Puts another rule in the place of a chain's first.
    Rule,
    /// Changes a base chain's policy.
    Hook,
    /// Declares a set in another way.
    Set,
    /// Deletes the seal.
    Seal,
    /// Adds a base chain.
    Base,
    /// Adds a chain that is called as ours are.
    Chain,
    /// Adds a flowtable.
    Flowtable,
    /// Deletes a row; where there is none, adds one.
    RowGone,
    /// Puts another value in the place of a row's. One of a set has none, and is deleted.
    RowOther,
    /// Adds a row that nobody needs.
    RowMore,
}

/// A chain: its rules as text.
type Rules = Vec<String>;

/// One table.
#[derive(Clone, Debug, Default)]
struct Table {
    number: u64,
    comment: Option<String>,
    chains: BTreeMap<Arc<str>, Rules>,
    /// Type, hook, priority and policy of base chains.
    hooks: BTreeMap<Arc<str>, String>,
    /// Declarations of sets and maps.
    sets: BTreeMap<Arc<str>, String>,
    /// Flowtables and named objects.
    others: BTreeSet<String>,
    rows: Rows,
}

impl Table {
    fn tamper_with_rows(&mut self, harm: Harm, which: &Index) {
        if matches!(harm, Harm::RowMore) || self.rows.is_empty() {
            self.rows.insert(Key::ClusterIp(IpAddr::from([203, 0, 113, 77])), Value::Present);
            return;
        }
        let nth = which.index(self.rows.len());
        let Some((key, value)) = self.rows.iter().nth(nth).map(|(key, value)| (*key, value.clone())) else { return };
        self.rows.remove(&key);
        let other = match value {
            Value::Chain(name) => self.chains.keys().find(|other| **other != name).cloned().map(Value::Chain),
            Value::Endpoint(endpoint) => Some(Value::Endpoint(SocketAddr::new(endpoint.ip(), endpoint.port() ^ 1))),
            Value::Present => None,
        };
        self.rows.extend(other.filter(|_| matches!(harm, Harm::RowOther)).map(|other| (key, other)));
    }
}

/// The fake kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Fake {
    table: Option<Table>,
    generation: u32,
    /// What goes wrong from now on.
    pub faults: Faults,
    /// Every change that came into force by a commit.
    pub log: Vec<Change>,
    /// The numbers of endpoints whose clients were forgotten.
    pub forgotten: BTreeSet<u32>,
    /// What rows have counted.
    pub counts: BTreeMap<Key, u64>,
    /// What a real kernel would have refused, and no fault asked for.
    pub complaints: Vec<String>,
}

impl Fake {
    /// The rows in force.
    pub fn rows(&self) -> Rows {
        self.table.as_ref().map(|table| table.rows.clone()).unwrap_or_default()
    }

    /// The names of the chains.
    pub fn chain_names(&self) -> BTreeSet<Arc<str>> {
        self.table.iter().flat_map(|table| table.chains.keys().cloned()).collect()
    }

    /// The rules of a chain.
    pub fn rules(&self, name: &str) -> Option<&Vec<String>> {
        self.table.as_ref()?.chains.get(name)
    }

    /// Does harm to the table, as another program would: `which` of the chains, sets, hooks and rows it is about.
    pub fn tamper(&mut self, harm: Harm, which: &Index) {
        let Some(table) = &mut self.table else { return };
        match harm {
            Harm::Rule => {
                let chains: Vec<_> = table.chains.values_mut().filter(|rules| !rules.is_empty()).collect();
                let count = chains.len();
                for rules in chains.into_iter().skip(which.index(count)).take(1) {
                    rules[0] = "another rule".into();
                }
            }
            Harm::Hook => {
                let count = table.hooks.len();
                table
                    .hooks
                    .values_mut()
                    .skip(which.index(count))
                    .take(1)
                    .for_each(|hook| hook.push_str(" policy drop"));
            }
            Harm::Set => {
                let count = table.sets.len();
                table.sets.values_mut().skip(which.index(count)).take(1).for_each(|set| set.push_str(" size 1;"));
            }
            Harm::Seal => table.chains.retain(|name, _| !name.starts_with("sealed-")),
            Harm::Base => drop(table.hooks.insert("other".into(), "type filter hook input".into())),
            Harm::Chain => drop(table.chains.insert("v4-theirs".into(), vec!["drop".into()])),
            Harm::Flowtable => drop(table.others.insert("flowtable theirs".into())),
            Harm::RowGone | Harm::RowOther | Harm::RowMore => table.tamper_with_rows(harm, which),
        }
        for name in table.hooks.keys() {
            table.chains.entry(name.clone()).or_default();
        }
        self.generation = self.generation.wrapping_add(1);
    }

    fn meddle(&mut self, changes: &[Change]) {
        let added = |change: &Change| match change {
            Change::AddChain(name) if Chain::is_dynamic(name) => Some(name.clone()),
            _ => None,
        };
        let Some(name) = changes.iter().find_map(added).filter(|_| self.faults.meddlers > 0) else { return };
        self.faults.meddlers -= 1;
        self.generation = self.generation.wrapping_add(1);
        let chain = self.table.as_mut().and_then(|table| table.chains.get_mut(&name));
        chain.into_iter().for_each(|rules| rules.insert(0, "drop".into()));
    }

    /// Whether there is no memory this time.
    fn is_short(&mut self) -> bool {
        let left = self.faults.memory.checked_sub(1);
        self.faults.memory = left.unwrap_or_default();
        left.is_some()
    }

    fn refuse(&mut self, change: usize, message: String) -> KernelError {
        self.complaints.push(message.clone());
        KernelError::Refused { change: Some(change), message }
    }

    fn lost() -> KernelError {
        Error::Unanswered { bytes: 0 }.into()
    }
}

/// What a row of an endpoint has counted.
fn counted(key: &Key, value: &Value, connections: Option<u64>) -> Option<RowCount> {
    let Value::Endpoint(endpoint) = value else { return None };
    Some(RowCount { key: *key, endpoint: *endpoint, connections: connections.unwrap_or_default() })
}

/// The rules of a dynamic chain as text.
pub(super) fn chain_rules(chain: &Chain, node: &NodeView) -> Option<Rules> {
    Some(chain.rules(node)?.iter().map(|rule| rule.text()).collect())
}

/// The chains that rules go to.
fn goes_to(rules: &[String]) -> impl Iterator<Item = &str> {
    rules.iter().filter_map(|rule| {
        let mut words = rule.split_whitespace().skip_while(|word| *word != "goto" && *word != "jump").skip(1);
        words.next().filter(|_| !rule.contains('{'))
    })
}
