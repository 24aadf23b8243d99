//! Who has which part of the array `slots`. A list of endpoints is a contiguous range; a range that was in use stays as it
//! is until every program has ended that may have met the last frontend which led there.

use std::collections::{BTreeMap, VecDeque};

/// Frontends still lead there in the maps: the writes that turn them away are not made yet.
pub(super) const UNWRITTEN: u64 = u64::MAX;

/// The free and the waiting ranges of the array.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slots {
    capacity: u32,
    /// First slot and length; no two touch.
    free: BTreeMap<u32, u32>,
    /// Since when no frontend leads there, in nanoseconds since boot; first slot and length.
    waiting: VecDeque<(u64, u32, u32)>,
}

impl Slots {
    /// An array of which nothing is used.
    pub fn new(capacity: u32) -> Self {
        let free = if capacity > 0 { BTreeMap::from([(0, capacity)]) } else { BTreeMap::new() };
        Self { capacity, free, waiting: VecDeque::new() }
    }

    /// An array of which these ranges (first, length) are used; they may overlap, what lies outside is left out.
    pub fn with(capacity: u32, used: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut used: Vec<_> = used.into_iter().collect();
        used.sort_unstable();
        let (mut free, mut next) = (BTreeMap::new(), 0);
        for (first, length) in used.into_iter().filter(|(_, length)| *length > 0) {
            let end = first.saturating_add(length).min(capacity);
            if first > next && next < capacity {
                free.insert(next, first.min(capacity) - next);
            }
            next = next.max(end);
        }
        if next < capacity {
            free.insert(next, capacity - next);
        }
        Self { capacity, free, waiting: VecDeque::new() }
    }

    /// Takes the first range of this length that is free; `None`: there is none. An empty range is at 0.
    pub fn take(&mut self, length: u32) -> Option<u32> {
        if length == 0 {
            return Some(0);
        }
        let (first, room) = self.free.iter().map(|(first, room)| (*first, *room)).find(|(_, room)| *room >= length)?;
        self.free.remove(&first);
        if room > length {
            self.free.insert(first + length, room - length);
        }
        Some(first)
    }

    /// Gives a range back that frontends lead to until the writes are made: [`Slots::written`].
    pub fn give_back(&mut self, first: u32, length: u32) {
        if length > 0 {
            self.waiting.push_back((UNWRITTEN, first, length));
        }
    }

    /// The writes are made: from `now` on, in nanoseconds since boot, no frontend leads to what was given back.
    pub fn written(&mut self, now: u64) {
        self.waiting.iter_mut().filter(|(since, ..)| *since == UNWRITTEN).for_each(|(since, ..)| *since = now);
    }

    /// Gives a range back that no frontend has led to yet.
    pub fn undo(&mut self, first: u32, length: u32) {
        self.free(first, length);
    }

    /// Frees what no program can be reading: those that began before `ended`, in nanoseconds since boot, have ended.
    pub fn release(&mut self, ended: u64) {
        while let Some((since, first, length)) = self.waiting.front().copied().filter(|(since, ..)| *since < ended) {
            debug_assert_ne!(since, UNWRITTEN);
            self.waiting.pop_front();
            self.free(first, length);
        }
    }

    /// Whether something waits to be free.
    pub fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// How many slots are in use, the waiting ones included.
    pub fn used(&self) -> u32 {
        self.capacity - self.free.values().sum::<u32>()
    }

    fn free(&mut self, first: u32, length: u32) {
        let (mut first, mut length) = (first, length);
        if length == 0 {
            return;
        }
        if let Some((before, room)) = self.free.range(..first).next_back().map(|(f, r)| (*f, *r))
            && before + room == first
        {
            self.free.remove(&before);
            (first, length) = (before, room + length);
        }
        if let Some(room) = self.free.remove(&(first + length)) {
            length += room;
        }
        self.free.insert(first, length);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_taken_first_fit_and_merged() {
        let mut slots = Slots::new(10);
        assert_eq!([slots.take(3), slots.take(3), slots.take(3), slots.take(3)], [Some(0), Some(3), Some(6), None]);
        slots.undo(3, 3);
        assert_eq!(slots.take(2), Some(3));
        slots.undo(0, 3);
        slots.undo(3, 2);
        assert_eq!((slots.take(7), slots.take(6)), (None, Some(0)));
        assert_eq!(slots.take(0), Some(0), "an empty list needs no place");
    }

    #[test]
    fn a_range_waits_for_the_writes_and_then_for_the_programs() {
        let mut slots = Slots::new(4);
        assert_eq!(slots.take(4), Some(0));
        slots.give_back(0, 4);
        slots.release(1_000);
        assert_eq!((slots.used(), slots.take(1), slots.waits()), (4, None, true), "frontends lead there still");
        slots.written(2_000);
        slots.release(2_000);
        assert_eq!(slots.take(1), None, "a program may have met one of them just before");
        slots.release(2_001);
        assert_eq!((slots.used(), slots.waits(), slots.take(4)), (0, false, Some(0)));
    }

    #[test]
    fn what_is_used_at_the_start_is_not_taken() {
        let mut slots = Slots::with(12, [(2, 3), (4, 2), (8, 1), (20, 5), (0, 0), (11, 4)]);
        assert_eq!(slots.used(), 4 + 1 + 1);
        assert_eq!([slots.take(2), slots.take(2), slots.take(2)], [Some(0), Some(6), Some(9)]);
        assert_eq!(slots.take(1), None);
        assert_eq!(Slots::with(5, [(7, 1)]), Slots::new(5));
    }

    proptest! {
        #[test]
        fn no_slot_has_two_owners(moves in proptest::collection::vec((any::<bool>(), 0u32..9, 0usize..64), 0..200)) {
            let mut slots = Slots::new(64);
            let (mut owned, mut now) = (Vec::<(u32, u32)>::new(), 10u64);
            for (take, length, which) in moves {
                now += 1;
                slots.written(now);
                slots.release(now - 2);
                if take {
                    if let Some(first) = slots.take(length) {
                        prop_assert!(first + length <= 64);
                        prop_assert!(owned.iter().all(|(f, l)| length == 0 || first + length <= *f || f + l <= first));
                        owned.push((first, length));
                        owned.retain(|(_, length)| *length > 0);
                    }
                } else if !owned.is_empty() {
                    let (first, length) = owned.swap_remove(which % owned.len());
                    slots.give_back(first, length);
                }
                let total: u32 = owned.iter().map(|(_, length)| length).sum();
                prop_assert!(slots.used() >= total);
            }
            owned.drain(..).for_each(|(first, length)| slots.give_back(first, length));
            slots.written(now);
            slots.release(now + 1);
            prop_assert_eq!(slots, Slots::new(64));
        }
    }
}
