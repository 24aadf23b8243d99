//! Rows in force against rows wanted: the writes that lead from one to the other, in an order in which no packet meets half
//! a change. A list of endpoints that changes is written to free slots before any frontend leads there, and its old slots
//! are left alone until no program can be reading them.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::{Address, Config, Frontend, FrontendKey, Member, MemberKey, Slot};

use super::numbers::{Numbers, Owner};
use super::rows::{FrontendRow, Range, Wanted};
use super::slots::Slots;
use crate::settings::MapSizes;

mod addresses;
mod service;
mod writes;

pub use writes::{Phase, Writes};

/// How many rows each map has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// `frontends`.
    pub frontends: usize,
    /// `slots`.
    pub slots: usize,
    /// `backends`.
    pub backends: usize,
    /// `addresses`.
    pub addresses: usize,
    /// `source_ranges`.
    pub source_ranges: usize,
    /// `members`.
    pub members: usize,
}

impl Room {
    /// Of maps of these sizes.
    pub fn of(sizes: &MapSizes) -> Self {
        Self {
            frontends: sizes.frontends as usize,
            slots: sizes.slots as usize,
            backends: sizes.backends as usize,
            addresses: sizes.addresses as usize,
            source_ranges: sizes.source_ranges as usize,
            members: sizes.members as usize,
        }
    }
}

/// Everything that userspace has written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InForce {
    /// `frontends`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// What belongs to service ports, by number.
    pub services: BTreeMap<u64, Service>,
    /// `addresses`.
    pub addresses: BTreeMap<Address, u32>,
    /// `config`.
    pub config: Config,
    /// Who has which slots.
    pub slots: Slots,
    /// Who has which rows of `backends`.
    pub numbers: Numbers,
}

/// What belongs to a service port in one family.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// The Cluster list and the Local list: where they lie, and what they hold.
    pub lists: [(u32, Vec<Slot>); 2],
    /// How their slots are drawn.
    pub draw: u32,
    /// The rows of `backends` that keep their turns; 0: none.
    pub turns: [u32; 2],
    /// Its rows of `members`.
    pub members: BTreeMap<MemberKey, Member>,
    /// Its rows of `source_ranges`.
    pub ranges: BTreeSet<Range>,
    /// Those of them whose value somebody else has written.
    pub overwritten: BTreeSet<Range>,
    /// The frontends that lead to it.
    pub frontends: BTreeSet<FrontendKey>,
}

/// Why rows are left out.
pub type Refused<K> = BTreeMap<K, String>;

/// Why a service port of this name is left out.
pub fn full(map: &str, name: Option<&String>) -> String {
    let name = name.map_or("the service port", String::as_str);
    format!("the map {map} is full: {name} has no place in it; give --map-sizes {map}=N a greater number")
}

impl InForce {
    /// Nothing yet.
    pub fn new(room: &Room) -> Self {
        Self {
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            addresses: BTreeMap::new(),
            config: Config::EMPTY,
            slots: Slots::new(u32::try_from(room.slots).unwrap_or(u32::MAX)),
            numbers: Numbers::with(u32::try_from(room.backends).unwrap_or(u32::MAX), [], &[], 0),
        }
    }

    /// Frees the slots and rows of `backends` that no program can be about to read: those that began before `ended`, in
    /// nanoseconds since boot, have ended. Rows also have to be idle. Gives the rows whose endpoints are known.
    pub fn release(&mut self, ended: u64, is_idle: impl Fn(u32) -> bool) -> Vec<(Owner, u32)> {
        self.slots.release(ended);
        self.numbers.release(ended, is_idle)
    }

    /// Whether something waits to be free.
    pub fn waits(&self) -> bool {
        self.slots.waits() || self.numbers.waits()
    }

    /// All writes so far are made, before `now`, in nanoseconds since boot.
    pub fn written(&mut self, now: u64) {
        self.slots.written(now);
        self.numbers.written(now);
    }

    /// The rows of the frontends that `wanted` looks at, brought to what is wanted. The writes are to be made, and then told
    /// of ([`InForce::written`]). `now` in nanoseconds since boot. A service port that does not fit has no row at all; those frontends are returned.
    pub fn follow(&mut self, wanted: &Wanted, room: &Room, now: u64, writes: &mut Writes) -> Refused<FrontendKey> {
        let mut refused = BTreeMap::new();
        let mut looked_at: BTreeSet<u64> = wanted.services.keys().copied().collect();
        for (key, row) in &wanted.frontends {
            looked_at.extend(self.frontends.get(key).map(|old| old.service));
            if row.is_none() {
                self.remove(*key, writes);
            }
        }
        let mut claims: BTreeMap<u64, Vec<(FrontendKey, FrontendRow)>> = BTreeMap::new();
        for (key, row) in wanted.frontends.iter().filter_map(|(key, row)| Some((*key, (*row)?))) {
            claims.entry(row.service).or_default().push((key, row));
        }
        let mut left = self.room_left(room);
        for (number, rows) in &wanted.services {
            let new = claims.remove(number).unwrap_or_default();
            if let Err(what) = self.service(*number, rows, &new, &mut left, now, writes) {
                let why = full(what, wanted.names.get(number));
                let old = self.services.get(number).map(|service| service.frontends.clone()).unwrap_or_default();
                // A frontend that another service port has now is none of this one's.
                let stays = |key: &FrontendKey| {
                    wanted.frontends.get(key).is_none_or(|row| row.is_some_and(|row| row.service == *number))
                };
                for key in old.into_iter().filter(stays).chain(new.iter().map(|(key, _)| *key)) {
                    left.frontends += usize::from(self.remove(key, writes));
                    refused.insert(key, why.clone());
                }
            }
        }
        for number in looked_at {
            if self.services.get(&number).is_some_and(|service| service.frontends.is_empty()) {
                self.drop_service(number, writes);
            }
        }
        refused
    }

    /// What the maps have room for yet; slots look after themselves.
    fn room_left(&self, room: &Room) -> Room {
        let count = |of: fn(&Service) -> usize| self.services.values().map(of).sum::<usize>();
        Room {
            frontends: room.frontends.saturating_sub(self.frontends.len()),
            members: room.members.saturating_sub(count(|service| service.members.len())),
            source_ranges: room.source_ranges.saturating_sub(count(|service| service.ranges.len())),
            ..*room
        }
    }

    /// Takes a frontend away; whether it was there.
    fn remove(&mut self, key: FrontendKey, writes: &mut Writes) -> bool {
        writes.frontends.remove(&key);
        let Some(old) = self.frontends.remove(&key) else { return false };
        writes.gone_frontends.insert(key);
        if let Some(service) = self.services.get_mut(&old.service) {
            service.frontends.remove(&key);
        }
        true
    }

    /// Deletes what belongs to a service port that no frontend leads to.
    fn drop_service(&mut self, number: u64, writes: &mut Writes) {
        let Some(service) = self.services.remove(&number) else { return };
        for (row, owner) in service.owned_numbers(number) {
            writes.fresh.insert(row);
            self.numbers.give_back(row, owner);
        }
        for (first, slots) in service.lists {
            self.slots.give_back(first, u32::try_from(slots.len()).unwrap_or(u32::MAX));
        }
        for key in service.members.into_keys() {
            writes.members.remove(&key);
            writes.gone_members.insert(key);
        }
        for range in service.ranges {
            writes.ranges.remove(&range);
            writes.gone_ranges.insert(range);
        }
    }

    /// Deletes what no frontend leads to, after everything was looked at.
    pub fn drop_unused(&mut self, writes: &mut Writes) {
        let unused = self.services.iter().filter(|(_, service)| service.frontends.is_empty());
        for number in unused.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.drop_service(number, writes);
        }
    }

    /// Brings the row of `config` to this.
    pub fn config(&mut self, wanted: Config, writes: &mut Writes) {
        if self.config != wanted {
            self.config = wanted;
            writes.config = Some(wanted);
        }
    }

    /// In how many rows the maps differ from what was written.
    pub fn differences(&self, found: &Self) -> usize {
        fn count<K: Ord, V: PartialEq>(ours: &BTreeMap<K, V>, theirs: &BTreeMap<K, V>) -> usize {
            let missing = ours.iter().filter(|(key, value)| theirs.get(*key) != Some(*value)).count();
            missing + theirs.keys().filter(|key| !ours.contains_key(*key)).count()
        }
        count(&self.frontends, &found.frontends)
            + count(&self.services, &found.services)
            + count(&self.addresses, &found.addresses)
            + usize::from(self.config != found.config)
    }

    /// The service ports with an endpoint at one of these addresses.
    pub fn frontends_to(&self, addresses: &BTreeSet<Address>) -> BTreeSet<FrontendKey> {
        let leads = |service: &&Service| {
            service.lists.iter().any(|(_, slots)| slots.iter().any(|slot| addresses.contains(&slot.address)))
        };
        self.services.values().filter(leads).flat_map(|service| service.frontends.iter().copied()).collect()
    }
}
