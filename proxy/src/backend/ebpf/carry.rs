//! Connections from the maps of an earlier run to ours, where ours are of other sizes. Done twice: before the programs
//! change, and after, for what the old ones wrote meanwhile.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use kubeferry_ebpf_common::flow::TICK;
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{Affinity, Backend, Flow, Frontend, FrontendKey, Slot, SocketConnection, SocketPeer};

use super::bpf;
use super::counters::{Counted, Counters};
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

/// The rows of `backends` that endpoints have in the maps pinned in `folder`. Connections that are carried over name them. They go on
/// to say what they say, unless they are of another layout: then they begin anew.
pub fn owners(folder: &Path, maps: &Maps) -> BTreeMap<Owner, u32> {
    fn open<K: Plain, V: Plain>(folder: &Path, map: &str) -> Option<Table<K, V>> {
        bpf::open_pin(&folder.join(map)).and_then(Table::new).ok()
    }
    let mut owners = BTreeMap::new();
    let Some(frontends) = open::<FrontendKey, Frontend>(folder, "frontends") else { return owners };
    let Some(slots) = open::<u32, Slot>(folder, "slots") else { return owners };
    for (_, frontend) in frontends.rows().unwrap_or_default() {
        let lists = [(frontend.cluster_first, frontend.cluster_count), (frontend.local_first, frontend.local_count)];
        for number in lists.into_iter().flat_map(|(first, count)| first..first.saturating_add(count)) {
            let Ok(Some(slot)) = slots.get(&number) else { break };
            if slot.backend > 0 {
                owners.insert((frontend.service, slot.address, slot.port), slot.backend);
            }
        }
    }
    if let Ok(before) = Counters::open(folder) {
        for row in owners.values() {
            let counted = before.get(*row);
            // Who is active comes out when the connections are counted.
            let connections = Backend { active: 0, ..counted.connections };
            maps.backends.set(*row, &Counted { connections, ..counted });
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::backend::ebpf::kernel::Shape;
    use crate::backend::ebpf::load::{Folder, load};
    use crate::backend::ebpf::shards::Shards;
    use crate::netns::Mounted;
    use crate::settings::{EbpfSettings, MapSizes};
    use kubeferry_ebpf_common::{Address, Traffic};

    /// The maps of an earlier run: its folder, with an endpoint whose row is number 5.
    fn earlier(settings: &EbpfSettings, shape: &Shape, counted: &Counted) -> (Folder, Owner) {
        let loaded = load(settings, shape).unwrap();
        let owner = (7, Address::v4(9), 80);
        let key = FrontendKey { address: Address::v4(1), port: 80, protocol: 6, kind: FrontendKey::ADDRESS };
        let frontend = Frontend { service: owner.0, cluster_first: 3, cluster_count: 1, ..Frontend::default() };
        loaded.maps.frontends.put(&[(key, frontend)]).unwrap();
        let slot = Slot { address: owner.1, port: owner.2, backend: 5, ..Slot::default() };
        loaded.maps.slots.put(&[(3, slot)]).unwrap();
        loaded.maps.backends.set(5, counted);
        (loaded.folder, owner)
    }

    #[test]
    fn what_endpoints_had_counted_goes_on_in_maps_of_another_shape() {
        let mounted = Mounted::new();
        let sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
        let settings =
            EbpfSettings { bpffs_root: mounted.path().to_owned(), map_sizes: sizes, ..EbpfSettings::default() };
        let shape = |backends: u32, cpus: usize| {
            let sizes = MapSizes { backends, ..sizes };
            Shape { sizes, shards: if cpus == 0 { Shards::NONE } else { Shards::new(backends, cpus) } }
        };
        let connections = Backend { opened: 40, active: 3 };
        let counted = Counted { connections, traffic: Traffic { packets: 500, bytes: 60_000 } };
        let (folder, owner) = earlier(&settings, &shape(1_000, 2), &counted);
        // Packets were counted on the second CPU, too.
        let traffic: Table<u32, Traffic> = Table::new(bpf::open_pin(&folder.maps().join("traffic")).unwrap()).unwrap();
        assert_eq!(traffic.get(&5).unwrap(), Some(counted.traffic));
        traffic.put(&[(1_000 + 5, Traffic { packets: 1, bytes: 40 })]).unwrap();
        let all = Traffic { packets: 501, bytes: 60_040 };
        let inactive = Backend { active: 0, ..connections };
        let uncounted = Traffic::default();
        // Other sizes, other CPUs, and nobody who asks for packets any more.
        for (shape, traffic) in
            [(shape(2_000, 2), all), (shape(1_000, 1), all), (shape(1_000, 9), all), (shape(1_000, 0), uncounted)]
        {
            let loaded = load(&settings, &shape).unwrap();
            assert!(!loaded.adopted);
            assert_eq!(owners(folder.maps(), &loaded.maps), BTreeMap::from([(owner, 5)]));
            assert_eq!(loaded.maps.backends.get(5), Counted { connections: inactive, traffic }, "{shape:?}");
            assert_eq!(loaded.maps.backends.get(6), Counted::default());
            // It is counted from there on, and begins anew as a whole.
            assert_eq!(loaded.maps.backends.reset(5), Counted { connections: inactive, traffic });
            assert_eq!(loaded.maps.backends.get(5), Counted::default());
            assert!(load(&settings, &shape).unwrap().adopted, "the same again");
        }
        // Of another layout, as one with packets beside the connections was: connections still lead to their endpoints.
        let pin = folder.maps().join("backends");
        std::fs::remove_file(&pin).unwrap();
        bpf::pin(bpf::create_array(None).unwrap().as_fd(), &pin).unwrap();
        let loaded = load(&settings, &shape(3_000, 2)).unwrap();
        assert_eq!(owners(folder.maps(), &loaded.maps), BTreeMap::from([(owner, 5)]));
        assert_eq!(loaded.maps.backends.get(5), Counted::default());
        // Ours, in such a state, are made anew.
        let again = load(&settings, &shape(1_000, 2)).unwrap();
        assert!(!again.adopted);
        assert_eq!((again.folder.maps(), again.maps.frontends.rows().unwrap().len()), (folder.maps(), 0));
    }
}
