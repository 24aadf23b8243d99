//! Which row of `backends` each endpoint of a service port has: it keeps it as long as it can, since its connections are
//! counted there.

use std::collections::BTreeMap;

use kubeferry_ebpf_common::{Address, Member, MemberKey, Slot};

use super::carry::Kept;
use super::diff::{InForce, Room, Service};
use super::numbers::{Numbers, Owner};
use super::rows::{ServiceRows, needs_turn};

/// Lists and members with their rows of `backends`.
#[derive(Debug)]
pub(super) struct Numbered {
    pub(super) lists: [Vec<Slot>; 2],
    pub(super) members: BTreeMap<MemberKey, Member>,
    pub(super) turns: [u32; 2],
    /// Rows that nobody had.
    pub(super) fresh: Vec<u32>,
    /// Rows that endpoints had before they went and came again.
    pub(super) again: Vec<(Owner, u32)>,
}

impl Service {
    /// Its rows of `backends`; some more than once.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        let slots = self.lists.iter().flat_map(|(_, list)| list.iter().map(|slot| slot.backend));
        slots.chain(self.members.values().map(|member| member.backend)).chain(self.turns).filter(|row| *row > 0)
    }

    /// The same, each with the endpoint that it belongs to. `service` is its own number.
    pub(super) fn owned_numbers(&self, service: u64) -> BTreeMap<u32, Option<Owner>> {
        let slots = self.lists.iter().flat_map(|(_, list)| list);
        let slots = slots.map(|slot| (slot.backend, Some((service, slot.address, slot.port))));
        let members = self.members.iter();
        let members = members.map(|(key, member)| (member.backend, Some((service, key.address, key.port))));
        slots.chain(members).chain(self.turns.map(|turn| (turn, None))).filter(|(row, _)| *row > 0).collect()
    }
}

impl InForce {
    /// The wanted lists and members with their rows of `backends`: those that they have, or new ones. `None` if there are
    /// not enough; then nothing has changed.
    pub(super) fn number(&mut self, service: u64, old: &Service, rows: &ServiceRows) -> Option<Numbered> {
        let slots =
            old.lists.iter().flat_map(|(_, list)| list.iter().map(|slot| (slot.address, slot.port, slot.backend)));
        let members = old.members.iter().map(|(key, member)| (key.address, key.port, member.backend));
        let mut known: BTreeMap<(Address, u16), u32> =
            slots.chain(members).filter(|(.., row)| *row > 0).map(|(ip, port, row)| ((ip, port), row)).collect();
        let (lists, members) = (rows.lists.clone(), rows.members.clone());
        let mut numbered = Numbered { lists, members, turns: [0; 2], fresh: Vec::new(), again: Vec::new() };
        let numbers = &mut self.numbers;
        let (mut taken, mut again) = (Vec::new(), Vec::new());
        let mut take = |owner: Option<Owner>| {
            if let Some((owner, row)) = owner.and_then(|owner| Some((owner, numbers.take_back(&owner)?))) {
                again.push((owner, row));
                return Some(row);
            }
            let row = numbers.take();
            taken.extend(row);
            row
        };
        let mut all = || {
            let slots = numbered.lists.iter_mut().flatten().map(|slot| (slot.address, slot.port, &mut slot.backend));
            let members = numbered.members.iter_mut().map(|(key, member)| (key.address, key.port, &mut member.backend));
            for (ip, port, row) in slots.chain(members) {
                *row = match known.get(&(ip, port)) {
                    Some(known) => *known,
                    None => take(Some((service, ip, port)))?,
                };
                known.insert((ip, port), *row);
            }
            for ((turn, old), list) in numbered.turns.iter_mut().zip(old.turns).zip(&rows.lists) {
                if needs_turn(rows.draw) && !list.is_empty() {
                    *turn = if old > 0 { old } else { take(None)? };
                }
            }
            Some(())
        };
        let done = all();
        if done.is_none() {
            self.undo_numbers(&taken, &again);
            return None;
        }
        (numbered.fresh, numbered.again) = (taken, again);
        Some(numbered)
    }

    /// Gives rows back that nobody has seen, and those that endpoints had found again.
    pub(super) fn undo_numbers(&mut self, fresh: &[u32], again: &[(Owner, u32)]) {
        fresh.iter().for_each(|row| self.numbers.undo(*row));
        again.iter().for_each(|(owner, row)| self.numbers.give_back(*row, Some(*owner)));
    }

    /// Has endpoints find the rows of `backends` that they had in maps of other sizes, which connections speak of, and nobody
    /// else get one where connections of an endpoint count that has gone. Before any row was given.
    pub fn keep_numbers(&mut self, kept: Kept, room: &Room, now: u64) {
        let capacity = u32::try_from(room.backends).unwrap_or(u32::MAX);
        self.numbers = Numbers::with(capacity, kept.owners.values().copied(), &kept.busy, now);
        for (owner, row) in kept.owners {
            self.numbers.give_back(row, Some(owner));
        }
    }
}
