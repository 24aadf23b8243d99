//! One service port in force, brought to what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::{Frontend, FrontendKey, Member};

use super::{InForce, Room, Writes};
use crate::backend::ebpf::rows::{FrontendRow, ServiceRows};

impl InForce {
    /// Brings one service port to what is wanted, with these of its frontends. Changes nothing if there is no room; names
    /// the map.
    pub(super) fn service(
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
            // One that is yet to come is somebody else's doing: no client would be remembered before.
            let since = service.members.get(key).map_or(now, |member| member.since.min(now));
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
        writes.ranges.extend(rows.ranges.intersection(&std::mem::take(&mut service.overwritten)));
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
}
