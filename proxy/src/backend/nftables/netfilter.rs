//! The kernel of this network namespace, by netlink and `nft`. IO only; nothing is decided here.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::conntrack::accounting::{Accounting, Carried, Way};
use crate::desired::node_view::NodeView;
use crate::desired::target::Frontend;
use crate::state::objects::Family;

use super::diff::Change;
use super::kernel::{ChainDigest, Found, Kernel, KernelError, RowCount};
use super::maps::{self, COUNTED, MAPS};
use super::netlink::{CommitError, Connection, Data, Element, Error, Op};
use super::nft::Nft;
use super::rows::{Chains, Key, Part, Value};
use super::seal::Structure;
use super::skeleton::TABLE;
use super::taking::Taking;

/// What a grace period takes, but for CPUs that stand still.
const GRACE: Duration = Duration::from_millis(30);
/// How many clients are forgotten in one transaction: if one of them expires meanwhile, the others are tried again.
const FORGET_AT_ONCE: usize = 256;

/// The kernel of this process's network namespace: rows by netlink, whole tables by `nft`.
#[derive(Debug)]
pub struct Netfilter {
    nft: Nft,
    runtime: tokio::runtime::Handle,
    connection: Option<Connection>,
    accounting: Option<Accounting>,
    taking: Taking,
}

impl Netfilter {
    /// Uses this `nft`, driven by this runtime (calls block, so make them off its threads or with `block_in_place`).
    pub fn new(nft: Nft, runtime: tokio::runtime::Handle) -> Self {
        Self { nft, runtime, connection: None, accounting: None, taking: Taking::default() }
    }

    /// Follows what connections carry (`--service-metrics full`).
    ///
    /// # Errors
    /// No socket, or CAP_NET_ADMIN is missing.
    pub fn follow_connections(&mut self) -> Result<(), Error> {
        self.accounting = Some(Accounting::start(&self.runtime)?);
        Ok(())
    }

    fn with<T>(&mut self, ask: impl FnOnce(&Connection) -> Result<T, KernelError>) -> Result<T, KernelError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open()?,
        };
        let answer = ask(&connection);
        // After an error that is no refusal the socket may hold stale answers: the next call opens another.
        if answer.as_ref().err().is_none_or(KernelError::changed_nothing) {
            self.connection = Some(connection);
        }
        answer
    }
}

/// Waits until whoever read the rules, rows and programs of a moment ago has ended. Blocks. Hooks run within an RCU read-side section, and
/// `MEMBARRIER_CMD_GLOBAL` is a grace period (`synchronize_rcu` in the kernel's `kernel/sched/membarrier.c`) where there is more than one
/// CPU. Where the kernel has none (CPUs with nohz_full, or a filter of system calls), and with one CPU, it is waited for as long as one
/// takes most of the time, which is all that can be done.
#[allow(unsafe_code)]
pub fn grace_period() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes three numbers and touches no memory.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    let cpus = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap_or_default();
    if result != 0 || !cpus.contains(['-', ',']) {
        std::thread::sleep(GRACE);
    }
}

impl Kernel for Netfilter {
    fn generation(&mut self) -> Result<u32, KernelError> {
        self.with(|connection| Ok(connection.generation()?))
    }

    fn table(&mut self) -> Result<Option<u64>, KernelError> {
        self.with(|connection| Ok(connection.table(TABLE)?.filter(|table| table.flags == 0).map(|table| table.handle)))
    }

    fn read(&mut self) -> Result<Option<Found>, KernelError> {
        self.with(|connection| {
            let Some(table) = connection.table(TABLE)? else { return Ok(None) };
            // We set no flag: a table with one (dormant: all its chains are off) is not as we made it.
            let comment = table.comment.filter(|_| table.flags == 0);
            let mut found = Found { comment, ..Found::default() };
            found.structure = structure(connection)?;
            for (family, map) in MAPS.iter().flat_map(|names| Family::BOTH.into_iter().zip(names)) {
                match read_map(connection, family, map, &mut found) {
                    // Somebody deleted a map: the comparison of rows will tell.
                    Err(error) if error.is_not_found() => found.strange += 1,
                    result => result?,
                }
            }
            Ok(Some(found))
        })
    }

    fn structure(&mut self) -> Result<Structure, KernelError> {
        self.with(|connection| Ok(structure(connection)?))
    }

    fn digests(&mut self, chains: &[Arc<str>]) -> Result<Vec<(Arc<str>, ChainDigest)>, KernelError> {
        self.with(|connection| {
            let mut digests = Vec::with_capacity(chains.len());
            for name in chains {
                digests.extend(connection.chain(TABLE, name)?.map(|chain| (name.clone(), chain)));
            }
            Ok(digests)
        })
    }

    fn altered(&mut self, chains: &Chains, node: &NodeView) -> Result<BTreeSet<Arc<str>>, KernelError> {
        self.with(|connection| {
            let mut altered = BTreeSet::new();
            for (name, chain) in chains {
                let rules = chain.rules(node);
                let mut same = rules.is_some();
                let mut wanted = rules.unwrap_or_default().into_iter();
                let read = connection.rules(TABLE, Some(name), &mut |rule| {
                    same = same && wanted.next().map_or(Ok(false), |wanted| rule.says(wanted.expressions()))?;
                    Ok(())
                });
                match read {
                    // There is no such chain, or no such table.
                    Err(error) if error.is_not_found() => same = false,
                    read => read?,
                }
                if !same || wanted.len() > 0 {
                    altered.insert(name.clone());
                }
            }
            Ok(altered)
        })
    }

    fn load(&mut self, script: &str) -> Result<(), KernelError> {
        Ok(self.runtime.block_on(self.nft.load(script))?)
    }

    fn commit(&mut self, changes: &[Change], chains: &Chains, node: &NodeView) -> Result<Vec<RowCount>, KernelError> {
        let gone: BTreeSet<Key> = match node.counts() {
            true => changes.iter().filter_map(counted_key).collect(),
            false => BTreeSet::new(),
        };
        let plan = self.taking.plan(gone.len());
        let read = if plan.reads { self.counters()? } else { Vec::new() };
        let all = |push: &mut dyn FnMut(Op<'_>)| {
            changes.iter().for_each(|change| {
                push_ops(change, chains, node, &mut |op| match op {
                    Op::Delete { map, element } if plan.asks && counted_key(change).is_some() => {
                        push(Op::Take { map, element });
                    }
                    op => push(op),
                });
            });
        };
        // An interval is two elements, a chain one operation and one for each rule.
        let rules = |change: &Change| match change {
            Change::AddChain(name) | Change::RewriteChain(name) => {
                chains.get(name)?.rules(node).map(|rules| rules.len())
            }
            Change::Add(..) | Change::Delete(..) => None,
        };
        let most = changes.len() * 2 + changes.iter().filter_map(rules).sum::<usize>();
        let taken = self.with(|connection| {
            connection.commit_pushed(TABLE, if changes.is_empty() { 0 } else { most }, &all).map_err(
                |error| match error {
                    CommitError::Refused(refused) => {
                        let one = refused.ops.len() == 1;
                        let change = one.then(|| owner(changes, chains, node, refused.ops.start)).flatten();
                        KernelError::refused(&refused, change)
                    }
                    CommitError::Netlink(error) => error.into(),
                },
            )
        })?;
        let said = taken.iter().filter_map(|taken| row_count(&taken.map, &taken.element, taken.packets)).collect();
        Ok(self.taking.counts(plan, &gone, read, said))
    }

    fn let_packets_pass(&mut self) {
        grace_period();
    }

    fn counters(&mut self) -> Result<Vec<RowCount>, KernelError> {
        self.with(|connection| {
            let mut counts = Vec::new();
            for map in COUNTED.iter().flatten() {
                let read = connection.counters(TABLE, map, &mut |element, packets| {
                    counts.extend(row_count(map, &element, packets));
                });
                match read {
                    // Somebody deleted the map, or the table: the next look at the rows will tell.
                    Err(error) if error.is_not_found() => {}
                    read => read?,
                }
            }
            Ok(counts)
        })
    }

    fn carried(&mut self) -> Result<HashMap<Way, Carried>, KernelError> {
        Ok(self.accounting.as_ref().map(Accounting::carried).transpose()?.unwrap_or_default())
    }

    fn follow(&mut self, frontends: &mut dyn Iterator<Item = (Frontend, bool)>) {
        self.accounting.iter().for_each(|accounting| accounting.follow(&mut *frontends));
    }

    fn ended(&mut self) -> Result<HashMap<Way, (u64, u64)>, KernelError> {
        Ok(self.accounting.as_ref().map(Accounting::ended).transpose()?.unwrap_or_default())
    }

    fn disown(&mut self, ways: &dyn Fn(&Way) -> bool) -> Result<HashMap<Way, Carried>, KernelError> {
        Ok(self.accounting.as_ref().map(|accounting| accounting.disown(ways)).transpose()?.unwrap_or_default())
    }

    fn uncounted(&self) -> u64 {
        self.accounting.as_ref().map_or(0, Accounting::uncounted)
    }

    fn delete_chains(&mut self, names: &[Arc<str>]) -> Result<(), KernelError> {
        let ops: Vec<_> = names.iter().map(|chain| Op::DeleteChain { chain }).collect();
        self.with(|connection| {
            connection.commit(TABLE, &ops).map_err(|error| match error {
                CommitError::Refused(refused) => KernelError::refused(&refused, None),
                CommitError::Netlink(error) => error.into(),
            })
        })
    }

    fn forget_clients(&mut self, numbers: &BTreeSet<u32>) -> Result<u32, KernelError> {
        self.with(|connection| {
            let mut transactions = 0;
            for map in ["affinity4", "affinity6"] {
                let mut clients = BTreeSet::new();
                connection.dump(TABLE, map, &mut |element| {
                    // client . number
                    let number = element.key.last_chunk().copied().map(u32::from_ne_bytes);
                    if number.is_some_and(|number| numbers.contains(&number)) {
                        clients.insert(element.key);
                    }
                })?;
                let clients: Vec<_> = clients.into_iter().map(|key| Element::new(key, Data::None)).collect();
                for some in clients.chunks(FORGET_AT_ONCE) {
                    transactions += delete_all(connection, map, some.iter().collect())?;
                }
            }
            Ok(transactions)
        })
    }
}

/// The key of a change that deletes a row which may count.
fn counted_key(change: &Change) -> Option<Key> {
    match change {
        Change::Delete(key @ (Key::Of(_, Part::Endpoint(_)) | Key::Turn(..)), _) => Some(*key),
        _ => None,
    }
}

fn row_count(map: &str, element: &Element, connections: u64) -> Option<RowCount> {
    match maps::row(map, element)? {
        (key, Value::Endpoint(endpoint)) => Some(RowCount { key, endpoint, connections }),
        _ => None,
    }
}

/// Deletes elements of which some may expire meanwhile. Gives the number of transactions.
fn delete_all(connection: &Connection, map: &str, mut elements: Vec<&Element>) -> Result<u32, KernelError> {
    while !elements.is_empty() {
        let ops: Vec<_> = elements.iter().map(|element| Op::Delete { map, element }).collect();
        match connection.commit(TABLE, &ops) {
            Ok(()) => return Ok(1),
            Err(CommitError::Refused(refused)) if refused.errno == libc::ENOENT && refused.ops.len() == 1 => {
                let _ = elements.remove(refused.ops.start);
            }
            Err(CommitError::Refused(refused)) => {
                return Err(KernelError::refused(&refused, None));
            }
            Err(CommitError::Netlink(error)) => return Err(error.into()),
        }
    }
    Ok(0)
}

fn structure(connection: &Connection) -> Result<Structure, Error> {
    let chains = connection.chains(TABLE)?.into_iter().map(|(name, chain)| (name.into(), chain));
    let sets = connection.sets(TABLE)?.into_iter().map(|(name, digest)| (name.into(), digest));
    let others = connection.others(TABLE)?;
    Ok(Structure { chains: chains.collect(), sets: sets.collect(), others })
}

fn read_map(connection: &Connection, family: Family, map: &str, found: &mut Found) -> Result<(), Error> {
    if map.starts_with("service_cidrs") {
        let mut elements = Vec::new();
        connection.dump(TABLE, map, &mut |element| elements.push(element))?;
        let (nets, strange) = maps::intervals(family, &elements);
        found.strange += strange;
        found.rows.extend(nets.into_iter().map(|net| (Key::ServiceCidr(net), Value::Present)));
        return Ok(());
    }
    connection.dump(TABLE, map, &mut |element| match maps::row(map, &element) {
        Some((key, value)) => drop(found.rows.insert(key, value)),
        None => found.strange += 1,
    })
}

/// The operations of a change, made one at a time so that a large transaction is in memory only as bytes.
fn push_ops(change: &Change, chains: &Chains, node: &NodeView, push: &mut dyn FnMut(Op<'_>)) {
    match change {
        Change::AddChain(chain) | Change::RewriteChain(chain) => {
            push(match change {
                Change::AddChain(_) => Op::AddChain { chain },
                _ => Op::FlushChain { chain },
            });
            for rule in chains.get(chain).and_then(|chain| chain.rules(node)).unwrap_or_default() {
                push(Op::AddRule { chain, expressions: rule.expressions() });
            }
        }
        Change::Add(key, value) => {
            let map = maps::map_of(key);
            maps::elements(key, value).iter().for_each(|element| push(Op::Add { map, element }));
        }
        Change::Delete(key, value) => {
            let map = maps::map_of(key);
            maps::elements(key, value).iter().for_each(|element| push(Op::Delete { map, element }));
        }
    }
}

/// The change that an operation belongs to.
fn owner(changes: &[Change], chains: &Chains, node: &NodeView, op: usize) -> Option<usize> {
    let mut count = 0;
    changes.iter().position(|change| {
        push_ops(change, chains, node, &mut |_| count += 1);
        count > op
    })
}
