//! Whether the connections that the programs count are those that there are. A connection whose entry the kernel has thrown
//! out of a full table ends without anybody seeing it.

use std::collections::BTreeMap;

use kubeferry_ebpf_common::{Backend, Flow, SocketConnection};

use super::counters::Counters;

/// By how much `active` of rows was too great in the last look and was not put right.
pub type Suspects = BTreeMap<u32, i64>;

/// A count of all connections, beside the counters before and after it.
#[derive(Debug)]
pub struct Recount {
    /// (opened, active) of the rows that say anything.
    before: BTreeMap<u32, (u64, u64)>,
    found: BTreeMap<u32, u64>,
}

impl Recount {
    /// Begins.
    pub fn new(counters: &Counters) -> Self {
        drop(counters.take_anew());
        Self { before: numbers(counters).collect(), found: BTreeMap::new() }
    }

    /// An entry of a connection, the forward-in one.
    pub fn flow(&mut self, flow: &Flow) {
        if flow.backend & Flow::COUNTED != 0 {
            *self.found.entry(flow.backend_row()).or_default() += 1;
        }
    }

    /// A socket that was translated when it connected.
    pub fn socket(&mut self, connection: &SocketConnection) {
        *self.found.entry(connection.backend).or_default() += 1;
    }

    /// Puts the counters right at once: see [`Recount::repair`].
    pub fn repair_at_once(self, counters: &Counters) -> u64 {
        self.each(counters, |_, difference| difference)
    }

    /// Puts the counters right, as far as what came and went meanwhile does not explain the difference, and it was there
    /// the last time, too: a program may have made a connection's entry and be about to count it. How many connections had
    /// been counted that are not there, or the other way round.
    pub fn repair(self, counters: &Counters, suspects: &mut Suspects) -> u64 {
        let before = std::mem::take(suspects);
        self.each(counters, |row, difference| {
            let twice = both(before.get(&row).copied().unwrap_or(0), difference);
            if difference != twice {
                suspects.insert(row, difference.saturating_sub(twice));
            }
            twice
        })
    }

    fn each(self, counters: &Counters, mut decide: impl FnMut(u32, i64) -> i64) -> u64 {
        let (mut repaired, mut rows) = (0, Vec::new());
        let mut after: BTreeMap<u32, (u64, u64)> = numbers(counters).collect();
        for row in self.found.keys().chain(self.before.keys()).filter(|row| **row > 0) {
            after.entry(*row).or_default();
        }
        for (row, after) in after {
            let before = self.before.get(&row).copied().unwrap_or_default();
            let found = self.found.get(&row).copied().unwrap_or(0);
            match drift(before, after, found) {
                0 => {}
                difference => rows.push((row, difference)),
            }
        }
        // Those numbers do not follow from the ones before.
        let anew = counters.take_anew();
        for (row, difference) in rows.into_iter().filter(|(row, _)| !anew.contains(row)) {
            let difference = decide(row, difference);
            counters.add_active(row, difference.saturating_neg());
            repaired += difference.unsigned_abs();
        }
        repaired
    }
}

/// (opened, active) of the rows that say anything.
fn numbers(counters: &Counters) -> impl Iterator<Item = (u32, (u64, u64))> {
    (1..counters.rows()).filter_map(|row| {
        let Backend { opened, active } = counters.connections(row);
        ((opened, active) != (0, 0)).then_some((row, (opened, active)))
    })
}

/// What two differences have in common.
fn both(one: i64, other: i64) -> i64 {
    if one.signum() != other.signum() { 0 } else { one.signum() * one.abs().min(other.abs()) }
}

/// By how much `active` is too great, at least: (opened, active) before and after `found` connections were found.
fn drift(before: (u64, u64), after: (u64, u64), found: u64) -> i64 {
    let number = |value: u64| value as i64;
    let opened = number(after.0.wrapping_sub(before.0));
    let ended = opened - number(after.1.wrapping_sub(before.1));
    let (before, found) = (number(before.1), number(found));
    // Of those before, as many as have ended may have been missed; of those opened, as many may have been found.
    let (least, most) = (before - ended.max(0), before + opened.max(0));
    if found < least {
        least - found
    } else if found > most {
        most - found
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_found_twice_counts() {
        assert_eq!([both(0, 3), both(3, 0), both(-1, 1)], [0; 3]);
        assert_eq!([both(2, 3), both(3, 2), both(-5, -1)], [2, 2, -1]);
    }

    #[test]
    fn only_what_nothing_explains_is_drift() {
        assert_eq!(drift((10, 3), (10, 3), 3), 0);
        assert_eq!(drift((10, 3), (10, 3), 1), 2, "two are counted that are not there");
        assert_eq!(drift((10, 3), (10, 3), 4), -1);
        assert_eq!(drift((10, 3), (15, 6), 3), 0, "five came, two went");
        assert_eq!(drift((10, 3), (15, 6), 1), 0);
        assert_eq!(drift((10, 3), (15, 6), 8), 0);
        assert_eq!((drift((10, 3), (15, 6), 0), drift((10, 3), (15, 6), 9)), (1, -1));
        assert_eq!(drift((0, u64::MAX), (0, u64::MAX), 0), -1, "below zero");
        assert_eq!(drift((7, 2), (7, 0), 0), 0, "both went");
    }
}
