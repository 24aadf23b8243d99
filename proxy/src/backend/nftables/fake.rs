//! A kernel in memory that fails on request: for what a real one cannot be made to do in a test.

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

impl Kernel for Fake {
    fn generation(&mut self) -> Result<u32, KernelError> {
        Ok(self.generation)
    }

    fn table(&mut self) -> Result<Option<u64>, KernelError> {
        Ok(self.table.as_ref().map(|table| table.number))
    }

    fn read(&mut self) -> Result<Option<Found>, KernelError> {
        if self.faults.reads > 0 {
            self.faults.reads -= 1;
            return Err(Self::lost());
        }
        let structure = self.structure()?;
        let Some(table) = &self.table else { return Ok(None) };
        let mut found = Found { comment: table.comment.clone(), structure, ..Found::default() };
        // By way of the bytes, as from a real kernel.
        for (map, family) in MAPS.iter().flat_map(|maps| maps.iter().zip(Family::BOTH)) {
            let of_map = table.rows.iter().filter(|(key, _)| maps::map_of(key) == *map);
            let elements: Vec<_> = of_map.flat_map(|(key, value)| maps::elements(key, value)).collect();
            if map.starts_with("service_cidrs") {
                let (nets, strange) = maps::intervals(family, &elements);
                found.rows.extend(nets.into_iter().map(|net| (Key::ServiceCidr(net), Value::Present)));
                found.strange += strange;
            } else {
                for element in &elements {
                    match maps::row(map, element) {
                        Some((key, value)) => drop(found.rows.insert(key, value)),
                        None => found.strange += 1,
                    }
                }
            }
        }
        Ok(Some(found))
    }

    fn structure(&mut self) -> Result<Structure, KernelError> {
        let Some(table) = &self.table else { return Ok(Structure::default()) };
        let chain = |(name, rules): (&Arc<str>, &Rules)| {
            let hook = table.hooks.get(name);
            let text = format!("{hook:?} {}", rules.join("\n"));
            let digest = ChainDigest { rules: rules.len(), base: hook.is_some(), digest: fnv1a(text.as_bytes()) };
            (name.clone(), digest)
        };
        let sets = table.sets.iter().map(|(name, text)| (name.clone(), fnv1a(text.as_bytes())));
        let others = table.others.clone();
        Ok(Structure { chains: table.chains.iter().map(chain).collect(), sets: sets.collect(), others })
    }

    fn digests(&mut self, chains: &[Arc<str>]) -> Result<Vec<(Arc<str>, ChainDigest)>, KernelError> {
        let found = self.structure()?.chains;
        Ok(chains.iter().filter_map(|name| Some((name.clone(), *found.get(name)?))).collect())
    }

    fn altered(&mut self, chains: &Chains, node: &NodeView) -> Result<BTreeSet<Arc<str>>, KernelError> {
        let is_altered = |(name, chain): &(&Arc<str>, &Chain)| self.rules(name) != chain_rules(chain, node).as_ref();
        Ok(chains.iter().filter(is_altered).map(|(name, _)| name.clone()).collect())
    }

    fn load(&mut self, script: &str) -> Result<(), KernelError> {
        let refused = |complaint: &str| Err(NftError::Refused { complaint: complaint.into() }.into());
        if self.is_short() {
            return Err(NftError::Short { complaint: "Cannot allocate memory".into() }.into());
        }
        if self.faults.loads > 0 {
            self.faults.loads -= 1;
            return refused("asked for");
        }
        let table = parse(script);
        if table.rows.keys().any(|key| self.faults.keys.contains(key))
            || table.chains.keys().any(|name| self.faults.chains.contains(name))
        {
            return refused("asked for");
        }
        let known = |name: &str| table.chains.contains_key(name);
        if !table.rows.values().all(|value| !matches!(value, Value::Chain(name) if !known(name)))
            || !table.chains.values().all(|rules| goes_to(rules).all(known))
        {
            self.complaints.push("a script goes to a chain that is not there".into());
            return refused("no such chain");
        }
        let mut table = table;
        if self.faults.dialect {
            let dynamic = table.chains.iter_mut().filter(|(name, _)| Chain::is_dynamic(name));
            dynamic.flat_map(|(_, rules)| rules).for_each(|rule| rule.push_str(" in other words"));
        }
        self.counts.clear();
        self.generation = self.generation.wrapping_add(1);
        table.number = self.generation.into();
        self.table = Some(table);
        Ok(())
    }

    fn commit(&mut self, changes: &[Change], chains: &Chains, node: &NodeView) -> Result<Vec<RowCount>, KernelError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let (mut counts, mut taken) = (self.counts.clone(), Vec::new());
        let is_due = self.faults.later == 0;
        self.faults.later = self.faults.later.saturating_sub(1);
        if is_due && self.is_short() {
            // At a row, as a real one meets it.
            let refused = Refused { errno: libc::ENOMEM, ops: 0..1, part: RefusedPart::Transaction };
            return Err(KernelError::refused(&refused, Some(changes.len() - 1)));
        }
        if is_due && self.faults.commits > 0 {
            self.faults.commits -= 1;
            return Err(KernelError::Refused { change: None, message: "asked for".into() });
        }
        let Some(mut table) = self.table.clone() else { return Err(self.refuse(0, "no table".into())) };
        self.complaints.extend(order::meets_half(&table.rows, changes));
        for (index, change) in changes.iter().enumerate() {
            let asked = match change {
                Change::AddChain(name) | Change::RewriteChain(name) => self.faults.chains.contains(name),
                Change::Add(key, _) => self.faults.keys.contains(key),
                Change::Delete(..) => false,
            };
            if asked {
                return Err(KernelError::Refused { change: Some(index), message: "asked for".into() });
            }
            let fault = match change {
                Change::AddChain(name) | Change::RewriteChain(name) => {
                    let rules = chains.get(name).and_then(|chain| chain_rules(chain, node)).unwrap_or_default();
                    let missing = goes_to(&rules).find(|name| !table.chains.contains_key(*name)).map(str::to_owned);
                    let was = table.chains.insert(name.clone(), rules).is_some();
                    let twice = was == matches!(change, Change::AddChain(_));
                    missing
                        .map(|missing| format!("{name} goes to {missing}"))
                        .or(twice.then(|| format!("{name} is there, or not")))
                }
                Change::Delete(key, value) => {
                    taken.extend(counted(key, value, counts.remove(key)));
                    (table.rows.remove(key).as_ref() != Some(value)).then(|| format!("{key:?} is not there"))
                }
                Change::Add(Key::Of(of, Part::SourceRange(net)), _) if order::overlaps(&table.rows, *of, net) => {
                    Some(format!("{of} has a range that overlaps with {net}"))
                }
                Change::Add(key, value) => match value {
                    Value::Chain(name) if !table.chains.contains_key(name) => Some(format!("{key:?} goes to {name}")),
                    _ => table.rows.insert(*key, value.clone()).map(|old| format!("{key:?} is there: {old:?}")),
                },
            };
            if let Some(fault) = fault {
                return Err(self.refuse(index, fault));
            }
        }
        self.table = Some(table);
        self.counts = counts;
        self.generation = self.generation.wrapping_add(1);
        self.log.extend_from_slice(changes);
        self.meddle(changes);
        if is_due && self.faults.answers > 0 {
            self.faults.answers -= 1;
            return Err(Self::lost());
        }
        Ok(taken)
    }

    fn let_packets_pass(&mut self) {}

    fn counters(&mut self) -> Result<Vec<RowCount>, KernelError> {
        let rows = self.rows();
        Ok(rows.iter().filter_map(|(key, value)| counted(key, value, self.counts.get(key).copied())).collect())
    }

    fn delete_chains(&mut self, names: &[Arc<str>]) -> Result<(), KernelError> {
        let Some(mut table) = self.table.clone() else { return Err(self.refuse(0, "no table".into())) };
        for (index, name) in names.iter().enumerate() {
            let by_row = table.rows.values().any(|value| matches!(value, Value::Chain(chain) if chain == name));
            let by_chain = table.chains.values().any(|rules| goes_to(rules).any(|to| to == &**name));
            if by_row || by_chain || table.chains.remove(name).is_none() {
                return Err(self.refuse(index, format!("chain {name} is in use, or not there")));
            }
        }
        self.table = Some(table);
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    fn forget_clients(&mut self, numbers: &BTreeSet<u32>) -> Result<u32, KernelError> {
        self.forgotten.extend(numbers);
        Ok(0)
    }
}
