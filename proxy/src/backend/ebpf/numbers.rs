//! Who has which row of the array `backends`. A row that was given back is not used again while a connection still counts
//! there, or a program may be about to count one.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::Address;

use super::retired;
use super::slots::UNWRITTEN;

/// A service port and an endpoint of it.
pub type Owner = (u64, Address, u16);

/// The free and the waiting rows. Row 0 is nobody's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Numbers {
    capacity: u32,
    /// This one and those after it were never used.
    next: u32,
    free: Vec<u32>,
    /// Since when nothing leads there, in nanoseconds since boot, and whose they were.
    waiting: BTreeMap<u32, (u64, Option<Owner>)>,
    /// Those of the waiting ones whose owners are known.
    owners: BTreeMap<Owner, u32>,
}

impl Numbers {
    /// Of an array with so many rows, of which these are used, and of which these are `busy`, whoever had them: connections
    /// count there. `now` in nanoseconds since boot.
    pub fn with(capacity: u32, used: impl IntoIterator<Item = u32>, busy: &[u32], now: u64) -> Self {
        let is_row = |row: &u32| *row > 0 && *row < capacity;
        let used: BTreeSet<u32> = used.into_iter().filter(is_row).collect();
        let next = 1 + used.last().into_iter().chain(busy).copied().filter(is_row).max().unwrap_or(0);
        // Between those that are used, some may have been.
        let waiting = (1..next).filter(|row| !used.contains(row)).map(|gap| (gap, (now, None))).collect();
        Self { capacity, next, free: Vec::new(), waiting, owners: BTreeMap::new() }
    }

    /// Takes a row; `None`: there is none.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(row) = self.free.pop() {
            return Some(row);
        }
        let row = Some(self.next).filter(|row| *row < self.capacity)?;
        self.next += 1;
        Some(row)
    }

    /// Gives a row back that nobody has seen.
    pub fn undo(&mut self, row: u32) {
        self.free.push(row);
    }

    /// Takes the row that an endpoint has given back and nobody else has had since: its connections count there.
    pub fn take_back(&mut self, owner: &Owner) -> Option<u32> {
        let row = self.owners.remove(owner)?;
        self.waiting.remove(&row);
        Some(row)
    }

    /// Gives a row back, of an endpoint or of a turn. Slots lead there until the writes are made: [`Numbers::written`].
    pub fn give_back(&mut self, row: u32, owner: Option<Owner>) {
        if row > 0 && row < self.capacity {
            self.waiting.insert(row, (UNWRITTEN, owner));
            self.owners.extend(owner.map(|owner| (owner, row)));
        }
    }

    /// The endpoints of a service port that have given their rows back and may still be counted there.
    pub fn waiting_of(&self, service: u64) -> impl Iterator<Item = (Owner, u32)> {
        retired::of(&self.owners, service).map(|(owner, row)| (*owner, *row))
    }

    /// Whose a row is that waits.
    pub fn owner(&self, row: u32) -> Option<Owner> {
        self.waiting.get(&row)?.1
    }

    /// The writes are made: from `now` on, in nanoseconds since boot, nothing leads to what was given back.
    pub fn written(&mut self, now: u64) {
        self.waiting.values_mut().filter(|(since, _)| *since == UNWRITTEN).for_each(|(since, _)| *since = now);
    }

    /// Frees what no program can be about to count at, those that began before `ended` having ended, and what counts no
    /// connection. `ended` in nanoseconds since boot. Gives those of them whose owners are known: nothing is counted there any
    /// more.
    pub fn release(&mut self, ended: u64, is_idle: impl Fn(u32) -> bool) -> Vec<(Owner, u32)> {
        let (free, owners) = (&mut self.free, &mut self.owners);
        let mut freed = Vec::new();
        self.waiting.retain(|row, (since, owner)| {
            let done = *since < ended && is_idle(*row);
            if done {
                free.push(*row);
                if let Some(owner) = owner.filter(|owner| owners.get(owner) == Some(row)) {
                    owners.remove(&owner);
                    freed.push((owner, *row));
                }
            }
            !done
        });
        freed
    }

    /// Whether something waits to be free.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many rows are in use, the waiting ones included.
    pub fn used(&self) -> usize {
        (self.next as usize).saturating_sub(1 + self.free.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_waits_until_its_connections_have_ended() {
        let mut numbers = Numbers::with(4, [], &[], 0);
        assert_eq!([numbers.take(), numbers.take(), numbers.take(), numbers.take()], [Some(1), Some(2), Some(3), None]);
        numbers.give_back(2, None);
        numbers.give_back(3, None);
        numbers.release(5, |_| true);
        assert_eq!(numbers.take(), None, "the writes are not made");
        numbers.written(5);
        numbers.release(5, |_| true);
        assert_eq!((numbers.take(), numbers.used()), (None, 3), "a program may still read its slot");
        numbers.release(6, |row| row == 3);
        assert_eq!((numbers.used(), numbers.take(), numbers.take()), (2, Some(3), None));
        numbers.release(6, |_| true);
        assert_eq!(numbers.take(), Some(2));
    }

    #[test]
    fn an_endpoint_that_comes_again_finds_its_row() {
        let owner = |port| (7, kubeferry_ebpf_common::Address::ZERO, port);
        let mut numbers = Numbers::with(4, [], &[], 0);
        assert_eq!([numbers.take(), numbers.take()], [Some(1), Some(2)]);
        numbers.give_back(1, Some(owner(1)));
        numbers.give_back(2, Some(owner(2)));
        numbers.written(5);
        assert_eq!((numbers.take_back(&owner(3)), numbers.take_back(&owner(1))), (None, Some(1)));
        numbers.release(6, |_| true);
        assert_eq!(numbers.take_back(&owner(2)), None, "free for anybody");
        assert_eq!((numbers.take(), numbers.used()), (Some(2), 2));
    }

    #[test]
    fn rows_of_an_earlier_run_are_not_taken() {
        let mut numbers = Numbers::with(9, [4, 2, 2, 0, 20], &[], 7);
        assert_eq!((numbers.used(), numbers.take()), (4, Some(5)));
        numbers.release(8, |row| row == 3);
        assert_eq!((numbers.take(), numbers.take()), (Some(3), Some(6)));
    }

    #[test]
    fn rows_where_connections_count_are_not_taken() {
        let mut numbers = Numbers::with(9, [2], &[0, 4, 2, 9], 7);
        assert_eq!((numbers.used(), numbers.take()), (4, Some(5)));
        numbers.release(8, |row| row != 4);
        assert_eq!([(); 5].map(|()| numbers.take()), [Some(3), Some(1), Some(6), Some(7), Some(8)]);
        assert_eq!(numbers.take(), None);
        numbers.release(8, |_| true);
        assert_eq!(numbers.take(), Some(4));
    }
}
