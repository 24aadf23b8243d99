//! What the maps hold, whole or in part, as what is in force. Pure.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::{Address, Config, Frontend, FrontendKey, Member, MemberKey, Slot};

use super::diff::{InForce, Room, Service};
use super::numbers::Numbers;
use super::rows::Range;
use super::slots::Slots;

/// The rows of the maps that userspace writes, as they were read.
#[derive(Clone, Debug)]
pub struct Found {
    /// `frontends`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `slots`, all of them.
    pub slots: Vec<Slot>,
    /// `members`.
    pub members: Vec<(MemberKey, Member)>,
    /// `source_ranges`.
    pub ranges: Vec<(Range, u32)>,
    /// `addresses`.
    pub addresses: BTreeMap<Address, u32>,
    /// `config`.
    pub config: Config,
    /// Rows of `backends` where connections are active.
    pub busy: Vec<u32>,
}

impl Found {
    /// What is in force; `now` in nanoseconds since boot.
    pub fn in_force(self, room: &Room, now: u64) -> InForce {
        // A row of `backends` that there is not is somebody else's doing: whoever says it gets another.
        let backend = |row: u32| if (row as usize) < room.backends { row } else { 0 };
        let list = |first: u32, count: u32| {
            let first = first as usize;
            let slots = self.slots.get(first..first.saturating_add(count as usize))?;
            Some(slots.iter().map(|slot| Slot { backend: backend(slot.backend), ..*slot }).collect::<Vec<_>>())
        };
        let mut services: BTreeMap<u64, Service> = BTreeMap::new();
        let (mut used, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for (key, frontend) in &self.frontends {
            let places =
                [(frontend.cluster_first, frontend.cluster_count), (frontend.local_first, frontend.local_count)];
            let service = services.entry(frontend.service).or_insert_with(|| {
                // Of two frontends that an end in the middle left apart, the second is brought to the first's lists.
                kept.extend(places);
                let lists =
                    places.map(|(first, count)| list(first, count).map_or((0, Vec::new()), |list| (first, list)));
                let turns = [frontend.cluster_turn, frontend.local_turn].map(backend);
                Service { lists, turns, draw: frontend.draw, ..Service::default() }
            });
            used.extend(places);
            service.frontends.insert(*key);
        }
        for (key, member) in self.members {
            let member = Member { backend: backend(member.backend), ..member };
            services.entry(key.service).or_default().members.insert(key, member);
        }
        for (range, value) in self.ranges {
            let [high, low] = range.key.service;
            let service = services.entry(u64::from(high) << 32 | u64::from(low)).or_default();
            service.ranges.insert(range);
            if value != Range::VALUE {
                service.overwritten.insert(range);
            }
        }
        let capacity = |rows: usize| u32::try_from(rows).unwrap_or(u32::MAX);
        let mut slots = Slots::with(capacity(room.slots), used.iter().copied());
        for (first, count) in used.difference(&kept) {
            slots.give_back(*first, *count);
        }
        let numbers =
            Numbers::with(capacity(room.backends), services.values().flat_map(Service::numbers), &self.busy, now);
        InForce { frontends: self.frontends, services, addresses: self.addresses, config: self.config, slots, numbers }
    }
}
