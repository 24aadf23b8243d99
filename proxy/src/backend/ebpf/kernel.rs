//! The maps of the kernel: what userspace has written is read back from them, and only differences are written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Member, MemberKey,
    Slot, SocketConnection, SocketKey, SocketPeer,
};

use super::bpf::{self, Definition};
use super::counters::Counters;
use super::diff::{InForce, Room, Service, Writes};
use super::error::EbpfError;
use super::numbers::Numbers;
use super::rows::Range;
use super::slots::Slots;
use super::table::Table;
use crate::settings::MapSizes;

/// The maps that userspace reads or writes.
#[derive(Debug)]
pub struct Maps {
    pub(super) config: Table<u32, Config>,
    pub(super) frontends: Table<FrontendKey, Frontend>,
    pub(super) slots: Table<u32, Slot>,
    pub(super) backends: Counters,
    pub(super) addresses: Table<Address, u32>,
    pub(super) devices: Table<u32, Device>,
    pub(super) source_ranges: Table<Range, u32>,
    pub(super) members: Table<MemberKey, Member>,
    pub(super) flows: Table<FlowKey, Flow>,
    pub(super) affinity: Table<AffinityKey, Affinity>,
    pub(super) socket_services: Table<SocketKey, SocketPeer>,
    pub(super) socket_endpoints: Table<SocketKey, SocketPeer>,
    pub(super) socket_connections: Table<u64, SocketConnection>,
    pub(super) stats: OwnedFd,
    sockets: usize,
    room: Room,
}

/// The maps that are pinned, with what the kernel has to say of them.
pub fn definitions(sizes: &MapSizes) -> Vec<(&'static str, Definition)> {
    // enum bpf_map_type
    const HASH: u32 = 1;
    const ARRAY: u32 = 2;
    const PERCPU_ARRAY: u32 = 6;
    const LRU_HASH: u32 = 9;
    const LPM_TRIE: u32 = 11;
    fn rows<K, V>(kind: u32, rows: u32) -> Definition {
        Definition { kind, key: std::mem::size_of::<K>() as u32, value: std::mem::size_of::<V>() as u32, rows }
    }
    vec![
        ("config", rows::<u32, Config>(ARRAY, 1)),
        ("frontends", rows::<FrontendKey, Frontend>(HASH, sizes.frontends)),
        ("slots", rows::<u32, Slot>(ARRAY, sizes.slots)),
        ("backends", rows::<u32, Backend>(ARRAY, sizes.backends)),
        ("addresses", rows::<Address, u32>(HASH, sizes.addresses)),
        ("devices", rows::<u32, Device>(HASH, sizes.devices)),
        ("source_ranges", rows::<Range, u32>(LPM_TRIE, sizes.source_ranges)),
        ("members", rows::<MemberKey, Member>(HASH, sizes.members)),
        ("flows", rows::<FlowKey, Flow>(LRU_HASH, sizes.flows)),
        ("affinity", rows::<AffinityKey, Affinity>(LRU_HASH, sizes.affinity)),
        ("socket_services", rows::<SocketKey, SocketPeer>(LRU_HASH, sizes.unconnected())),
        ("socket_endpoints", rows::<SocketKey, SocketPeer>(LRU_HASH, sizes.unconnected())),
        ("socket_connections", rows::<u64, SocketConnection>(LRU_HASH, sizes.sockets)),
        ("stats", rows::<u32, u64>(PERCPU_ARRAY, Counter::ALL.len() as u32)),
    ]
}

impl Maps {
    /// Opens the maps pinned in a folder.
    ///
    /// # Errors
    /// One is missing, or of another shape.
    pub fn open(folder: &Path, sizes: &MapSizes) -> Result<Self, EbpfError> {
        fn table<K: bpf::Bytes, V: bpf::Bytes>(folder: &Path, map: &'static str) -> Result<Table<K, V>, EbpfError> {
            bpf::open_pin(&folder.join(map)).and_then(Table::new).map_err(EbpfError::map(map))
        }
        for (map, wanted) in definitions(sizes) {
            let found = bpf::open_pin(&folder.join(map)).and_then(|fd| bpf::definition(fd.as_fd()));
            let found = found.map_err(EbpfError::map(map))?;
            if found != wanted {
                let source = io::Error::other(format!("the kernel has {found:?} where {wanted:?} is meant"));
                return Err(EbpfError::Map { map, source });
            }
        }
        Ok(Self {
            config: table(folder, "config")?,
            frontends: table(folder, "frontends")?,
            slots: table(folder, "slots")?,
            backends: bpf::open_pin(&folder.join("backends"))
                .and_then(|map| Counters::new(map, sizes.backends))
                .map_err(EbpfError::map("backends"))?,
            addresses: table(folder, "addresses")?,
            devices: table(folder, "devices")?,
            source_ranges: table(folder, "source_ranges")?,
            members: table(folder, "members")?,
            flows: table(folder, "flows")?,
            affinity: table(folder, "affinity")?,
            socket_services: table(folder, "socket_services")?,
            socket_endpoints: table(folder, "socket_endpoints")?,
            socket_connections: table(folder, "socket_connections")?,
            stats: bpf::open_pin(&folder.join("stats")).map_err(EbpfError::map("stats"))?,
            sockets: sizes.sockets as usize,
            room: Room::of(sizes),
        })
    }

    /// How many sockets that are connected have room.
    pub fn sockets_room(&self) -> usize {
        self.sockets
    }

    /// How many rows the maps have room for.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// What an earlier sync has left, whole or in part.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn read(&self) -> Result<InForce, EbpfError> {
        let frontends: BTreeMap<_, _> =
            self.frontends.rows().map_err(EbpfError::map("frontends"))?.into_iter().collect();
        let mut slots = Vec::with_capacity(self.room.slots);
        self.slots
            .each_batch(|part| slots.extend(part.iter().map(|(_, slot)| *slot)))
            .map_err(EbpfError::map("slots"))?;
        let list = |first: u32, count: u32| {
            let first = first as usize;
            slots.get(first..first.saturating_add(count as usize)).map(<[Slot]>::to_vec)
        };
        let mut services: BTreeMap<u64, Service> = BTreeMap::new();
        let (mut used, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for (key, frontend) in &frontends {
            let places =
                [(frontend.cluster_first, frontend.cluster_count), (frontend.local_first, frontend.local_count)];
            let service = services.entry(frontend.service).or_insert_with(|| {
                // Of two frontends that an end in the middle left apart, the second is brought to the first's lists.
                kept.extend(places);
                let lists =
                    places.map(|(first, count)| list(first, count).map_or((0, Vec::new()), |list| (first, list)));
                let turns = [frontend.cluster_turn, frontend.local_turn];
                Service { lists, turns, draw: frontend.draw, ..Service::default() }
            });
            used.extend(places);
            service.frontends.insert(*key);
        }
        for (key, member) in self.members.rows().map_err(EbpfError::map("members"))? {
            services.entry(key.service).or_default().members.insert(key, member);
        }
        for (range, _) in self.source_ranges.rows().map_err(EbpfError::map("source_ranges"))? {
            let [high, low] = range.key.service;
            let service = u64::from(high) << 32 | u64::from(low);
            services.entry(service).or_default().ranges.insert(range);
        }
        let addresses = self.addresses.rows().map_err(EbpfError::map("addresses"))?.into_iter().collect();
        let config = self.config.get(&0).map_err(EbpfError::map("config"))?.unwrap_or(Config::EMPTY);
        let mut places = Slots::with(u32::try_from(self.room.slots).unwrap_or(u32::MAX), used.iter().copied());
        for (first, count) in used.difference(&kept) {
            places.give_back(*first, *count, bpf::now());
        }
        let capacity = u32::try_from(self.room.backends).unwrap_or(u32::MAX);
        let numbers = Numbers::with(capacity, services.values().flat_map(Service::numbers), bpf::now());
        Ok(InForce { frontends, services, addresses, config, slots: places, numbers })
    }

    /// Makes the writes, in their order.
    ///
    /// # Errors
    /// The first that the kernel refuses; those before it are made.
    pub fn write(&self, writes: &Writes) -> Result<(), EbpfError> {
        let addresses = |rows: &BTreeMap<Address, u32>| {
            let gone: Vec<_> = rows.iter().filter(|(_, bits)| **bits == 0).map(|(address, _)| *address).collect();
            let kept: Vec<_> = pairs(rows).into_iter().filter(|(_, bits)| *bits != 0).collect();
            self.addresses
                .delete_many(&gone)
                .and_then(|_| self.addresses.put(&kept))
                .map_err(EbpfError::map("addresses"))
        };
        let keys = |keys: &BTreeSet<_>| keys.iter().copied().collect::<Vec<_>>();
        addresses(&writes.less_addresses)?;
        writes.fresh.iter().for_each(|row| self.backends.reset(*row));
        self.slots.put(&pairs(&writes.slots)).map_err(EbpfError::map("slots"))?;
        self.members.put(&pairs(&writes.members)).map_err(EbpfError::map("members"))?;
        let ranges: Vec<_> = writes.ranges.iter().map(|range| (*range, 1)).collect();
        self.source_ranges.put(&ranges).map_err(EbpfError::map("source_ranges"))?;
        let gone: Vec<_> = writes.gone_frontends.iter().copied().collect();
        self.frontends.delete_many(&gone).map_err(EbpfError::map("frontends"))?;
        self.frontends.put(&pairs(&writes.frontends)).map_err(EbpfError::map("frontends"))?;
        let gone: Vec<_> = writes.gone_members.iter().copied().collect();
        self.members.delete_many(&gone).map_err(EbpfError::map("members"))?;
        self.source_ranges.delete(&keys(&writes.gone_ranges)).map_err(EbpfError::map("source_ranges"))?;
        addresses(&writes.addresses)?;
        match writes.config {
            Some(config) => self.config.put(&[(0, config)]).map_err(EbpfError::map("config")),
            None => Ok(()),
        }
    }

    /// Whether connections are being moved here: see [`Config::MOVING`].
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn set_moving(&self, moving: bool) -> Result<(), EbpfError> {
        let mut config = self.config.get(&0).map_err(EbpfError::map("config"))?.unwrap_or(Config::EMPTY);
        config.flags &= !Config::MOVING;
        config.flags |= if moving { Config::MOVING } else { 0 };
        self.config.put(&[(0, config)]).map_err(EbpfError::map("config"))
    }

    /// The counters of the programs, in the order of [`Counter::ALL`].
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, EbpfError> {
        let cpus = aya::util::nr_cpus().map_err(|(path, source)| EbpfError::Node {
            what: "the number of CPUs",
            source: io::Error::new(source.kind(), format!("{path}: {source}")),
        })?;
        let sums = bpf::sums(self.stats.as_fd(), Counter::ALL.len(), cpus).map_err(EbpfError::map("stats"))?;
        Ok(Counter::ALL.iter().zip(sums).map(|((_, name), sum)| (*name, sum)).collect())
    }

    /// The memory that each map takes, in bytes.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn memory(&self) -> Result<Vec<(&'static str, u64)>, EbpfError> {
        let maps = [
            ("config", self.config.fd()),
            ("frontends", self.frontends.fd()),
            ("slots", self.slots.fd()),
            ("backends", self.backends.map().as_fd()),
            ("addresses", self.addresses.fd()),
            ("devices", self.devices.fd()),
            ("source_ranges", self.source_ranges.fd()),
            ("members", self.members.fd()),
            ("flows", self.flows.fd()),
            ("affinity", self.affinity.fd()),
            ("socket_services", self.socket_services.fd()),
            ("socket_endpoints", self.socket_endpoints.fd()),
            ("socket_connections", self.socket_connections.fd()),
            ("stats", self.stats.as_fd()),
        ];
        maps.into_iter().map(|(map, fd)| Ok((map, bpf::memory(fd).map_err(EbpfError::map(map))?))).collect()
    }
}

fn pairs<K: Copy, V: Copy>(rows: &BTreeMap<K, V>) -> Vec<(K, V)> {
    rows.iter().map(|(key, value)| (*key, *value)).collect()
}
