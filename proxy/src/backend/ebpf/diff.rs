//! Rows in force against rows wanted: the writes that lead from one to the other, in an order in which no packet meets half
//! a change. A list of endpoints that changes is written to free slots before any frontend leads there, and its old slots
//! are left alone until no program can be reading them.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::{Address, Config, Frontend, FrontendKey, Member, MemberKey, Slot};

use super::numbers::{Numbers, Owner};
use super::rows::{FrontendRow, Range, ServiceRows, Wanted};
use super::slots::Slots;
use crate::backend::{ChangesByMap, RowChanges};
use crate::settings::MapSizes;

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
    /// The frontends that lead to it.
    pub frontends: BTreeSet<FrontendKey>,
}

/// Writes, in the order in which they are to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Writes {
    /// Addresses that lose a meaning; 0: the row is deleted.
    pub less_addresses: BTreeMap<Address, u32>,
    /// Rows of `backends` that begin anew: nobody's before, or of an endpoint that leaves and may come again.
    pub fresh: BTreeSet<u32>,
    /// Slots that nobody reads yet, by number.
    pub slots: BTreeMap<u32, Slot>,
    /// New or changed rows of `members`.
    pub members: BTreeMap<MemberKey, Member>,
    /// New rows of `source_ranges`.
    pub ranges: BTreeSet<Range>,
    /// Frontends that go.
    pub gone_frontends: BTreeSet<FrontendKey>,
    /// New or changed frontends.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Rows of `members` that go.
    pub gone_members: BTreeSet<MemberKey>,
    /// Rows of `source_ranges` that go.
    pub gone_ranges: BTreeSet<Range>,
    /// Addresses that gain a meaning.
    pub addresses: BTreeMap<Address, u32>,
    /// The row of `config`, where it changes.
    pub config: Option<Config>,
}

impl Writes {
    /// How many rows are written or deleted.
    pub fn len(&self) -> usize {
        self.less_addresses.len()
            + self.fresh.len()
            + self.slots.len()
            + self.members.len()
            + self.ranges.len()
            + self.gone_frontends.len()
            + self.frontends.len()
            + self.gone_members.len()
            + self.gone_ranges.len()
            + self.addresses.len()
            + usize::from(self.config.is_some())
    }

    /// The same by map; a row that gets another value counts as added.
    pub fn by_map(&self) -> ChangesByMap {
        let deleted = self.less_addresses.values().filter(|meaning| **meaning == 0).count();
        let all = [
            ("frontends", self.frontends.len(), self.gone_frontends.len()),
            ("slots", self.slots.len(), 0),
            ("backends", self.fresh.len(), 0),
            ("addresses", self.addresses.len() + self.less_addresses.len() - deleted, deleted),
            ("source_ranges", self.ranges.len(), self.gone_ranges.len()),
            ("members", self.members.len(), self.gone_members.len()),
            ("config", usize::from(self.config.is_some()), 0),
        ];
        let changed = all.into_iter().filter(|(_, added, deleted)| added + deleted > 0);
        changed.map(|(map, added, deleted)| (map, RowChanges { added, deleted })).collect()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The writes in the order in which they are to be made; those of a phase in any order.
    pub fn phases(&self) -> [Phase<'_>; 11] {
        [
            Phase::Addresses(&self.less_addresses),
            Phase::Fresh(&self.fresh),
            Phase::Slots(&self.slots),
            Phase::Members(&self.members),
            Phase::Ranges(&self.ranges),
            Phase::GoneFrontends(&self.gone_frontends),
            Phase::Frontends(&self.frontends),
            Phase::GoneMembers(&self.gone_members),
            Phase::GoneRanges(&self.gone_ranges),
            Phase::Addresses(&self.addresses),
            Phase::Config(self.config.as_ref()),
        ]
    }
}

/// Writes to one map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase<'a> {
    /// `addresses`: with 0 the row is deleted.
    Addresses(&'a BTreeMap<Address, u32>),
    /// Rows of `backends` that begin anew.
    Fresh(&'a BTreeSet<u32>),
    /// `slots`.
    Slots(&'a BTreeMap<u32, Slot>),
    /// `members` that come or change.
    Members(&'a BTreeMap<MemberKey, Member>),
    /// `source_ranges` that come.
    Ranges(&'a BTreeSet<Range>),
    /// `frontends` that go.
    GoneFrontends(&'a BTreeSet<FrontendKey>),
    /// `frontends` that come or change.
    Frontends(&'a BTreeMap<FrontendKey, Frontend>),
    /// `members` that go.
    GoneMembers(&'a BTreeSet<MemberKey>),
    /// `source_ranges` that go.
    GoneRanges(&'a BTreeSet<Range>),
    /// `config`, where it changes.
    Config(Option<&'a Config>),
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

    /// Brings one service port to what is wanted, with these of its frontends. Changes nothing if there is no room; names
    /// the map.
    fn service(
        &mut self,
        number: u64,
        rows: &ServiceRows,
        frontends: &[(FrontendKey, FrontendRow)],
        left: &mut Room,
        now: u64,
        writes: &mut Writes,
    ) -> Result<(), &'static str> {
        let old = self.services.get(&number).cloned().unwrap_or_default();
        // Old and new rows are in force side by side for a moment: what goes makes no room here.
        let more_frontends = frontends.iter().filter(|(key, _)| !self.frontends.contains_key(key)).count();
        let more_members = rows.members.keys().filter(|key| !old.members.contains_key(key)).count();
        let more_ranges = rows.ranges.difference(&old.ranges).count();
        let needs = [
            ("frontends", more_frontends, left.frontends),
            ("members", more_members, left.members),
            ("source_ranges", more_ranges, left.source_ranges),
        ];
        if let Some((map, _, _)) = needs.iter().find(|(_, more, left)| more > left) {
            return Err(map);
        }
        let Some(numbered) = self.number(number, &old, rows) else { return Err("backends") };
        let mut places = [0; 2];
        let mut taken = Vec::new();
        for ((place, (first, slots)), wanted) in places.iter_mut().zip(&old.lists).zip(&numbered.lists) {
            let length = u32::try_from(wanted.len()).unwrap_or(u32::MAX);
            *place = match slots == wanted {
                true => *first,
                false => match self.slots.take(length) {
                    Some(first) => {
                        taken.push((first, length));
                        first
                    }
                    // Nothing has changed so far.
                    None => {
                        taken.into_iter().for_each(|(first, length)| self.slots.undo(first, length));
                        self.undo_numbers(&numbered.fresh, &numbered.again);
                        return Err("slots");
                    }
                },
            };
        }
        for ((place, (first, slots)), wanted) in places.iter().zip(&old.lists).zip(&numbered.lists) {
            if slots != wanted {
                self.slots.give_back(*first, u32::try_from(slots.len()).unwrap_or(u32::MAX));
                writes.slots.extend((*place..).zip(wanted.iter().copied()));
            }
        }
        left.frontends -= more_frontends;
        left.members -= more_members;
        left.source_ranges -= more_ranges;
        let before = old.owned_numbers(number);
        writes.fresh.extend(numbered.fresh);
        let service = self.services.entry(number).or_default();
        let [cluster, local] = numbered.lists;
        let [cluster_count, local_count] = [&cluster, &local].map(|list| u32::try_from(list.len()).unwrap_or(u32::MAX));
        service.lists = [(places[0], cluster), (places[1], local)];
        (service.draw, service.turns) = (rows.draw, numbered.turns);
        for (key, wanted) in &numbered.members {
            let since = service.members.get(key).map_or(now, |member| member.since);
            let member = Member { since, ..*wanted };
            if service.members.insert(*key, member) != Some(member) {
                writes.members.insert(*key, member);
            }
        }
        let gone: Vec<_> = service.members.keys().filter(|key| !rows.members.contains_key(key)).copied().collect();
        for key in gone {
            service.members.remove(&key);
            writes.gone_members.insert(key);
        }
        writes.ranges.extend(rows.ranges.difference(&service.ranges));
        writes.gone_ranges.extend(service.ranges.difference(&rows.ranges));
        service.ranges.clone_from(&rows.ranges);
        let after: BTreeSet<u32> = service.numbers().collect();
        let gone = before.into_iter().filter(|(row, _)| !after.contains(row));
        for (row, owner) in gone {
            writes.fresh.insert(row);
            self.numbers.give_back(row, owner);
        }
        let lists = Frontend {
            service: number,
            cluster_first: places[0],
            cluster_count,
            local_first: places[1],
            local_count,
            draw: rows.draw,
            cluster_turn: service.turns[0],
            local_turn: service.turns[1],
            ..Frontend::default()
        };
        // All that lead here, those too that nobody asked about.
        let kept = service.frontends.iter().filter_map(|key| Some((*key, *self.frontends.get(key)?)));
        let mut values: BTreeMap<_, _> =
            kept.map(|(key, old)| (key, Frontend { flags: old.flags, affinity: old.affinity, ..lists })).collect();
        values.extend(
            frontends.iter().map(|(key, row)| (*key, Frontend { flags: row.flags, affinity: row.affinity, ..lists })),
        );
        service.frontends = values.keys().copied().collect();
        for (key, value) in values {
            let before = self.frontends.insert(key, value);
            if before != Some(value) {
                writes.frontends.insert(key, value);
            }
            if let Some(before) = before.filter(|before| before.service != number)
                && let Some(other) = self.services.get_mut(&before.service)
            {
                other.frontends.remove(&key);
            }
        }
        Ok(())
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

    /// Brings addresses to these meanings; 0: none. Those that do not fit are returned.
    pub fn addresses(&mut self, wanted: &BTreeMap<Address, u32>, room: &Room, writes: &mut Writes) -> Refused<Address> {
        let mut refused = BTreeMap::new();
        for (address, bits) in wanted {
            let old = self.addresses.get(address).copied().unwrap_or(0);
            if old & !bits != 0 {
                writes.less_addresses.insert(*address, *bits);
                if *bits == 0 {
                    self.addresses.remove(address)
                } else {
                    self.addresses.insert(*address, *bits)
                };
            }
        }
        for (address, bits) in wanted {
            let old = self.addresses.get(address).copied().unwrap_or(0);
            if old == *bits {
                continue;
            }
            if old == 0 && self.addresses.len() >= room.addresses {
                let what = match bits & address_is::CLUSTER_IP != 0 {
                    true => "its undefined ports are not refused",
                    false => "it does not count as the node's",
                };
                refused
                    .insert(*address, format!("the map addresses is full: {what}; give --map-sizes addresses=N more"));
                continue;
            }
            self.addresses.insert(*address, *bits);
            writes.addresses.insert(*address, *bits);
        }
        refused
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
