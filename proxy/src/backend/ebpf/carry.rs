//! Connections from the maps of an earlier run to ours, where ours are of other sizes. Done before the programs change, and
//! while they do, for what the old ones write meanwhile: see `moving.rs`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use kubeferry_ebpf_common::flow::{TICK, since as age};
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{Affinity, Flow, FlowKey, Frontend, FrontendKey, Slot, SocketConnection, SocketPeer};

use super::bpf;
use super::counters::Counters;
use super::error::EbpfError;
use super::kernel::Maps;
use super::numbers::Owner;
use super::table::Table;

/// A clock of flows: see [`TICK`].
pub fn ticks() -> u32 {
    (bpf::now() >> TICK) as u32
}

/// What becomes of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Nobody uses our map yet: it becomes what the old one is.
    Mirror,
    /// Some programs use the old map and some ours: what either knows counts.
    Merge,
}

/// Carries over what packets have left since `since` (0: all) in the maps pinned in `folder`. How many rows.
///
/// # Errors
/// A map cannot be read or written. Maps of another layout are no error: nothing of them is carried over.
pub fn carry_packets(folder: &Path, maps: &Maps, since: u32, way: Way) -> Result<usize, EbpfError> {
    let carry = Carry { folder, since, way };
    // What connection tracking goes on with was noted for ours alone (`takeover.rs`).
    let mut rows = carry.map("flows", &maps.flows, |flow: &Flow| flow.seen, merged)?;
    carry.delete_gone("flows", &maps.flows, |key: &FlowKey, flow: &Flow| !flow.passes(key))?;
    let later = |old: &Affinity, ours: &Affinity| if old.seen > ours.seen { *old } else { *ours };
    rows += carry.map("affinity", &maps.affinity, |one: &Affinity| (one.seen >> TICK) as u32, later)?;
    Ok(rows)
}

/// Carries over what sockets have left, likewise.
///
/// # Errors
/// As [`carry_packets`].
pub fn carry_sockets(folder: &Path, maps: &Maps, since: u32, way: Way) -> Result<usize, EbpfError> {
    let carry = Carry { folder, since, way };
    let later = |old: &SocketPeer, ours: &SocketPeer| if age(old.seen, ours.seen) > 0 { *old } else { *ours };
    let mut rows = carry.map("socket_services", &maps.socket_services, |peer: &SocketPeer| peer.seen, later)?;
    rows += carry.map("socket_endpoints", &maps.socket_endpoints, |peer: &SocketPeer| peer.seen, later)?;
    // A socket that has connected by our programs, or was closed by them, has done so later.
    let ours = |_: &SocketConnection, ours: &SocketConnection| *ours;
    rows += carry.map("socket_connections", &maps.socket_connections, |one: &SocketConnection| one.since, ours)?;
    carry.delete_gone("socket_connections", &maps.socket_connections, |_: &u64, _: &SocketConnection| true)?;
    Ok(rows)
}

/// Deletes sockets that the old programs have closed since they were `copied`. Those do not run any more.
///
/// # Errors
/// A map cannot be read or written.
pub fn delete_closed(folder: &Path, maps: &Maps, copied: &[(u64, SocketConnection)]) -> Result<usize, EbpfError> {
    let Ok(old) = open::<u64, SocketConnection>(folder, "socket_connections") else { return Ok(0) };
    let sockets = &maps.socket_connections;
    let is_closed = |(cookie, was): &(u64, SocketConnection)| {
        // One that has connected anew has another row now.
        Ok(old.get(cookie)?.is_none() && sockets.get(cookie)?.as_ref() == Some(was))
    };
    let closed = copied.iter().filter_map(|one| match is_closed(one) {
        Ok(closed) => closed.then_some(Ok(one.0)),
        Err(error) => Some(Err(error)),
    });
    let closed = closed.collect::<io::Result<Vec<u64>>>();
    closed.and_then(|cookies| sockets.delete(&cookies)).map_err(EbpfError::map("socket_connections"))
}

/// What two entries with one key know of a connection together.
fn merged(old: &Flow, ours: &Flow) -> Flow {
    let seen = if age(old.seen, ours.seen) > 0 { old.seen } else { ours.seen };
    if ours.flags & Flow::PENDING != 0 && old.flags & Flow::PENDING == 0 {
        // Decided by the programs where packets leave, which change last.
        return Flow { flags: old.flags | ours.flags & !Flow::PENDING, seen, ..*old };
    }
    if (old.address, old.port) != (ours.address, ours.port) {
        return *ours;
    }
    let mut flow = Flow { seen, ..*ours };
    flow.flags |= old.flags & (Flow::SEEN | Flow::LASTS | Flow::FIN | Flow::RST);
    if ours.flags & Flow::KNOWN == 0 {
        flow.flags |= old.flags & (Flow::KNOWN | Flow::SETTLED);
        flow.sender = old.sender;
    }
    if old.backend & Flow::COUNTED == 0 {
        flow.backend &= !Flow::COUNTED;
    }
    flow
}

/// Rows of `backends` in maps of an earlier run.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Those of endpoints that are in lists.
    pub owners: BTreeMap<Owner, u32>,
    /// Those where connections count, of whomever: an endpoint that has gone may still have some.
    pub busy: Vec<u32>,
}

/// The rows of `backends` in the maps pinned in `folder` that connections name, which are carried over. They go on to say what they
/// say, unless they are of another layout: then they begin anew. Who is active is as uncertain as there, until the connections are
/// counted; but where it is not 0, nobody else gets the row before.
pub fn rows_of(folder: &Path, maps: &Maps) -> Kept {
    let mut kept = Kept::default();
    let Ok(frontends) = open::<FrontendKey, Frontend>(folder, "frontends") else { return kept };
    let Ok(slots) = open::<u32, Slot>(folder, "slots") else { return kept };
    for (_, frontend) in frontends.rows().unwrap_or_default() {
        let lists = [(frontend.cluster_first, frontend.cluster_count), (frontend.local_first, frontend.local_count)];
        for number in lists.into_iter().flat_map(|(first, count)| first..first.saturating_add(count)) {
            let Ok(Some(slot)) = slots.get(&number) else { break };
            if slot.backend > 0 {
                kept.owners.insert((frontend.service, slot.address, slot.port), slot.backend);
            }
        }
    }
    if let Ok(before) = Counters::open(folder) {
        kept.busy = before.busy().into_iter().filter(|row| *row < maps.backends.rows()).collect();
        for row in kept.owners.values().chain(&kept.busy) {
            maps.backends.set(*row, &before.get(*row));
        }
    }
    kept
}

fn open<K: Plain, V: Plain>(folder: &Path, map: &str) -> io::Result<Table<K, V>> {
    bpf::open_pin(&folder.join(map)).and_then(Table::new)
}

/// From where, what, and how.
#[derive(Clone, Copy)]
struct Carry<'a> {
    folder: &'a Path,
    since: u32,
    way: Way,
}

impl Carry<'_> {
    /// Carries over the rows of a map that were `used` since then. Where both have one, `merge` makes one of the old and ours.
    fn map<K: Plain, V: Plain + PartialEq>(
        self,
        map: &'static str,
        to: &Table<K, V>,
        used: impl Fn(&V) -> u32,
        merge: impl Fn(&V, &V) -> V,
    ) -> Result<usize, EbpfError> {
        let Ok(old) = open::<K, V>(self.folder, map) else { return Ok(0) };
        let is_recent = |value: &V| self.since == 0 || used(value).wrapping_sub(self.since) < u32::MAX / 2;
        let (mut rows, mut result) = (0, Ok(()));
        let each = old.each_batch(|part: &[(K, V)]| {
            if result.is_ok() {
                let part: Vec<(K, V)> = part.iter().filter(|(_, value)| is_recent(value)).copied().collect();
                rows += part.len();
                result = match self.way {
                    Way::Mirror => to.put(&part),
                    Way::Merge => part.iter().try_for_each(|(key, value)| put_merged(to, key, value, &merge)),
                };
            }
        });
        each.and(result).map_err(EbpfError::map(map))?;
        Ok(rows)
    }

    /// Deletes rows of `to` that the old map has no more, if they are `copies`.
    fn delete_gone<K: Plain, V: Plain>(
        self,
        map: &'static str,
        to: &Table<K, V>,
        copies: impl Fn(&K, &V) -> bool,
    ) -> Result<(), EbpfError> {
        let Ok(old) = open::<K, V>(self.folder, map) else { return Ok(()) };
        if self.way == Way::Merge || self.since == 0 {
            return Ok(());
        }
        let (mut gone, mut result) = (Vec::new(), Ok(()));
        let each = to.each_batch(|part| {
            if result.is_ok() {
                let mut part = part.iter().filter(|(key, value)| copies(key, value));
                result = part.try_for_each(|(key, _)| {
                    gone.extend(old.get(key)?.is_none().then_some(*key));
                    Ok(())
                });
            }
        });
        each.and(result).and_then(|()| to.delete(&gone)).map(drop).map_err(EbpfError::map(map))
    }
}

fn put_merged<K: Plain, V: Plain + PartialEq>(
    to: &Table<K, V>,
    key: &K,
    old: &V,
    merge: &impl Fn(&V, &V) -> V,
) -> io::Result<()> {
    if to.put_new(key, old)? {
        return Ok(());
    }
    let Some(ours) = to.get(key)? else { return Ok(()) };
    let merged = merge(old, &ours);
    // A program may write to it in this very moment, or take it away.
    if merged == ours { Ok(()) } else { to.put_known(key, &merged).map(drop) }
}

#[cfg(test)]
mod tests;
