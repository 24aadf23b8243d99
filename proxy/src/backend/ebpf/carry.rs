//! Connections from the maps of an earlier run to ours, where ours are of other sizes. Done twice: before the programs
//! change, and after, for what the old ones wrote meanwhile.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use kubeferry_ebpf_common::flow::TICK;
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{Affinity, Backend, Flow, Frontend, FrontendKey, Slot, SocketConnection, SocketPeer};

use super::bpf;
use super::error::EbpfError;
use super::kernel::Maps;
use super::numbers::Owner;
use super::table::Table;

/// A clock of flows: see [`TICK`].
pub fn ticks() -> u32 {
    (bpf::now() >> TICK) as u32
}

/// Copies what was used since `since` (0: all) and is not in our maps from those pinned in `folder`. How many rows.
///
/// # Errors
/// A map cannot be read or written. Maps of another layout are no error: nothing of them is carried over.
pub fn carry_over(folder: &Path, maps: &Maps, since: u32) -> Result<usize, EbpfError> {
    let is_recent = |seen: u32| since == 0 || seen.wrapping_sub(since) < u32::MAX / 2;
    let mut rows = copy(folder, "flows", &maps.flows, |flow: &Flow| is_recent(flow.seen))?;
    rows += copy(folder, "affinity", &maps.affinity, |one: &Affinity| is_recent((one.seen >> TICK) as u32))?;
    rows += copy(folder, "socket_services", &maps.socket_services, |peer: &SocketPeer| is_recent(peer.seen))?;
    rows += copy(folder, "socket_endpoints", &maps.socket_endpoints, |peer: &SocketPeer| is_recent(peer.seen))?;
    rows +=
        copy(folder, "socket_connections", &maps.socket_connections, |one: &SocketConnection| is_recent(one.since))?;
    Ok(rows)
}

/// The rows of `backends` that endpoints have in the maps pinned in `folder`, which go on to say what they say; none of another layout.
pub fn owners(folder: &Path, maps: &Maps) -> BTreeMap<Owner, u32> {
    fn open<K: Plain, V: Plain>(folder: &Path, map: &str) -> Option<Table<K, V>> {
        bpf::open_pin(&folder.join(map)).and_then(Table::new).ok()
    }
    let mut owners = BTreeMap::new();
    let Some(frontends) = open::<FrontendKey, Frontend>(folder, "frontends") else { return owners };
    let (Some(slots), Some(backends)) = (open::<u32, Slot>(folder, "slots"), open::<u32, Backend>(folder, "backends"))
    else {
        return owners;
    };
    for (_, frontend) in frontends.rows().unwrap_or_default() {
        let lists = [(frontend.cluster_first, frontend.cluster_count), (frontend.local_first, frontend.local_count)];
        for number in lists.into_iter().flat_map(|(first, count)| first..first.saturating_add(count)) {
            let Ok(Some(slot)) = slots.get(&number) else { break };
            if slot.backend > 0 {
                owners.insert((frontend.service, slot.address, slot.port), slot.backend);
            }
        }
    }
    for row in owners.values() {
        if let Ok(Some(backend)) = backends.get(row) {
            // Who is active comes out when the connections are counted.
            maps.backends.set(*row, &Backend { active: 0, ..backend });
        }
    }
    owners
}

fn copy<K: Plain, V: Plain>(
    folder: &Path,
    map: &'static str,
    to: &Table<K, V>,
    wanted: impl Fn(&V) -> bool,
) -> Result<usize, EbpfError> {
    let old = bpf::open_pin(&folder.join(map)).and_then(|fd: OwnedFd| Table::<K, V>::new(fd));
    let Ok(old) = old else { return Ok(0) };
    let (mut copied, mut result) = (0, Ok(()));
    let each = old.each_batch(|rows: &[(K, V)]| {
        if result.is_ok() {
            let rows = rows.iter().filter(|(_, value)| wanted(value));
            result = rows.map(|(key, value)| to.put_new(key, value)).try_for_each(|new| {
                copied += usize::from(new?);
                Ok(())
            });
        }
    });
    each.and(result).map_err(EbpfError::map(map))?;
    Ok(copied)
}
