//! The maps of the kernel: what userspace has written is read back from them, and only differences are written.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{
    Address, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Member, MemberKey,
    Slot, SocketConnection, SocketKey, SocketPeer, Traffic,
};

use super::bpf::{self, Definition};
use super::counters::{Counted, Counters};
use super::diff::{InForce, Phase, Room, Writes};
use super::error::EbpfError;
use super::fence::Fence;
use super::found::Found;
use super::rows::Range;
use super::shards::Shards;
use super::table::Table;
use crate::settings::{MapSizes, ServiceMetrics, Settings};

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
    /// Waits for the programs that run.
    pub(super) fence: Fence,
    sockets: usize,
    room: Room,
}

/// What tells how many rows each map has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Those that may be set.
    pub sizes: MapSizes,
    /// Those of `traffic`.
    pub shards: Shards,
}

impl Shape {
    /// On this machine.
    pub fn of(settings: &Settings) -> Self {
        let counts_packets = settings.datapath.service_metrics == ServiceMetrics::Full;
        Self::new(settings.ebpf.map_sizes, counts_packets)
    }

    /// With maps of these sizes.
    pub fn new(sizes: MapSizes, counts_packets: bool) -> Self {
        // Whoever does not know counts exactly as well, if slower.
        let cpus = || aya::util::nr_cpus().unwrap_or(1);
        let shards = if counts_packets { Shards::new(sizes.backends, cpus()) } else { Shards::NONE };
        Self { sizes, shards }
    }
}

/// The maps that are pinned, with what the kernel has to say of them.
pub fn definitions(Shape { sizes, shards }: &Shape) -> Vec<(&'static str, Definition)> {
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
        ("traffic", rows::<u32, Traffic>(ARRAY, shards.all_rows())),
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
    pub fn open(folder: &Path, shape: &Shape) -> Result<Self, EbpfError> {
        fn table<K: Plain, V: Plain>(folder: &Path, map: &'static str) -> Result<Table<K, V>, EbpfError> {
            bpf::open_pin(&folder.join(map)).and_then(Table::new).map_err(EbpfError::map(map))
        }
        for (map, wanted) in definitions(shape) {
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
            backends: Counters::open(folder).map_err(EbpfError::map("backends"))?,
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
            fence: Fence::new().map_err(EbpfError::map("fence"))?,
            sockets: shape.sizes.sockets as usize,
            room: Room::of(&shape.sizes),
        })
    }

    /// How many sockets that are connected have room.
    pub fn sockets_room(&self) -> usize {
        self.sockets
    }

    /// Whether packets are counted.
    pub fn counts_packets(&self) -> bool {
        self.backends.traffic().counts()
    }

    /// How many rows the maps have room for.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// What an earlier sync has left, whole or in part. What no frontend leads to counts as free: before it is written, the
    /// programs that run have to be waited for.
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
        let found = Found {
            frontends,
            slots,
            members: self.members.rows().map_err(EbpfError::map("members"))?,
            ranges: self.source_ranges.rows().map_err(EbpfError::map("source_ranges"))?,
            addresses: self.addresses.rows().map_err(EbpfError::map("addresses"))?.into_iter().collect(),
            config: self.config.get(&0).map_err(EbpfError::map("config"))?.unwrap_or(Config::EMPTY),
            busy: self.backends.busy(),
        };
        Ok(found.in_force(&self.room, bpf::now()))
    }

    /// Makes the writes, in their order. `anew` is told what rows of `backends` had counted that begin anew.
    ///
    /// # Errors
    /// The first that the kernel refuses; those before it are made.
    pub fn write(&self, writes: &Writes, anew: &mut dyn FnMut(u32, Counted)) -> Result<(), EbpfError> {
        writes.phases().iter().try_for_each(|phase| self.write_phase(phase, anew))
    }

    fn write_phase(&self, phase: &Phase<'_>, anew: &mut dyn FnMut(u32, Counted)) -> Result<(), EbpfError> {
        match *phase {
            Phase::Addresses(rows) => {
                let gone: Vec<_> = rows.iter().filter(|(_, bits)| **bits == 0).map(|(address, _)| *address).collect();
                let kept: Vec<_> = pairs(rows).into_iter().filter(|(_, bits)| *bits != 0).collect();
                let result = self.addresses.delete_many(&gone).and_then(|_| self.addresses.put(&kept));
                result.map_err(EbpfError::map("addresses"))
            }
            Phase::Fresh(rows) => {
                rows.iter().for_each(|row| anew(*row, self.backends.reset(*row)));
                Ok(())
            }
            Phase::Slots(rows) => self.slots.put(&pairs(rows)).map_err(EbpfError::map("slots")),
            Phase::Members(rows) => self.members.put(&pairs(rows)).map_err(EbpfError::map("members")),
            Phase::Ranges(rows) => {
                let rows: Vec<_> = rows.iter().map(|range| (*range, Range::VALUE)).collect();
                self.source_ranges.put(&rows).map_err(EbpfError::map("source_ranges"))
            }
            Phase::GoneFrontends(keys) => {
                self.frontends.delete_many(&all(keys)).map(drop).map_err(EbpfError::map("frontends"))
            }
            Phase::Frontends(rows) => self.frontends.put(&pairs(rows)).map_err(EbpfError::map("frontends")),
            Phase::GoneMembers(keys) => {
                self.members.delete_many(&all(keys)).map(drop).map_err(EbpfError::map("members"))
            }
            Phase::GoneRanges(keys) => {
                self.source_ranges.delete(&all(keys)).map(drop).map_err(EbpfError::map("source_ranges"))
            }
            Phase::Config(Some(config)) => self.config.put(&[(0, *config)]).map_err(EbpfError::map("config")),
            Phase::Config(None) => Ok(()),
        }
    }

    /// Whether connections are being moved here: see [`Config::MOVING`].
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn is_moving(&self) -> Result<bool, EbpfError> {
        let config = self.config.get(&0).map_err(EbpfError::map("config"))?;
        Ok(config.is_some_and(|config| config.flags & Config::MOVING != 0))
    }

    /// Says whether they are.
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
            ("traffic", self.backends.traffic().map().as_fd()),
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

fn all<K: Copy>(keys: &BTreeSet<K>) -> Vec<K> {
    keys.iter().copied().collect()
}

fn pairs<K: Copy, V: Copy>(rows: &BTreeMap<K, V>) -> Vec<(K, V)> {
    rows.iter().map(|(key, value)| (*key, *value)).collect()
}
