//! A list of endpoints as slots that a datapath draws from: which endpoint each slot is.

use std::net::SocketAddr;

use super::{Schedule, Scheduler, maglev, wrr};

/// Slots of a table of `mh` by default.
pub const TABLE_SIZE: u32 = 1009;

/// Slots that weights may ask for in one list; a list of more endpoints has a slot for each of them.
pub const MOST: usize = 4096;

/// The endpoint of each slot, as an index of `endpoints`. `weights` are those of the endpoints (1 and more), as the
/// scheduler is to use them; empty: all are 1.
///
/// How a slot is drawn: `random`: any with the same probability; `rr`, `wrr`: the next in turn; `sh`, `dh`, `mh`: by the
/// hash; the others look at all of them, and need the weights too.
///
/// With `sh`, `dh` and `mh` the order of `endpoints` has no influence on which endpoint a slot is.
pub fn slots(schedule: &Schedule, endpoints: &[SocketAddr], weights: &[u16]) -> Vec<u32> {
    match schedule.scheduler {
        Scheduler::Random => repeated(identity(endpoints), weights),
        Scheduler::Wrr => wrr::turn(&shares(endpoints.len(), weights)),
        Scheduler::Sh => repeated(sorted(endpoints), weights),
        Scheduler::Dh => sorted(endpoints),
        Scheduler::Mh => {
            let weights = if weights.is_empty() { vec![1; endpoints.len()] } else { wide(weights) };
            maglev::table(schedule.table_size, endpoints, &weights)
        }
        Scheduler::Rr | Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq => identity(endpoints),
    }
}

/// How many slots [`slots`] gives to so many endpoints, without making them.
pub fn count(schedule: &Schedule, endpoints: usize, weights: &[u16]) -> usize {
    match schedule.scheduler {
        _ if endpoints == 0 => 0,
        Scheduler::Mh => schedule.table_size as usize,
        Scheduler::Random | Scheduler::Wrr | Scheduler::Sh => {
            shares(endpoints, weights).into_iter().map(|share| share as usize).sum()
        }
        _ => endpoints,
    }
}

/// Whether weights of this scheduler ask for more than [`MOST`] slots, so that shares are rounded.
pub fn are_rounded(scheduler: Scheduler, weights: &[u16]) -> bool {
    let as_slots = matches!(scheduler, Scheduler::Random | Scheduler::Wrr | Scheduler::Sh);
    let divisor = u64::from(divisor(weights.iter().map(|weight| u32::from(*weight))));
    as_slots && weights.iter().map(|weight| u64::from(*weight) / divisor).sum::<u64>() > MOST.max(weights.len()) as u64
}

fn identity(endpoints: &[SocketAddr]) -> Vec<u32> {
    (0..endpoints.len() as u32).collect()
}

fn sorted(endpoints: &[SocketAddr]) -> Vec<u32> {
    let mut order = identity(endpoints);
    order.sort_by_key(|index| endpoints[*index as usize]);
    order
}

fn repeated(order: Vec<u32>, weights: &[u16]) -> Vec<u32> {
    if weights.is_empty() {
        return order;
    }
    let shares = shares(order.len(), weights);
    order.into_iter().flat_map(|index| std::iter::repeat_n(index, shares[index as usize] as usize)).collect()
}

fn wide(weights: &[u16]) -> Vec<u32> {
    weights.iter().map(|weight| u32::from(*weight)).collect()
}

/// The greatest common divisor of some numbers, 1 if there are none.
pub(super) fn divisor(numbers: impl Iterator<Item = u32>) -> u32 {
    let of_two = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    numbers.fold(0, of_two).max(1)
}

/// How many slots each of `count` endpoints gets: its weight without what all weights have in common. Where that would be
/// more than [`MOST`], in proportion as well as whole numbers can, but one at least.
fn shares(count: usize, weights: &[u16]) -> Vec<u32> {
    if weights.is_empty() {
        return vec![1; count];
    }
    let without_divisor = |mut shares: Vec<u32>| {
        let divisor = divisor(shares.iter().copied());
        shares.iter_mut().for_each(|share| *share /= divisor);
        shares
    };
    let whole = without_divisor(wide(weights));
    let room = MOST.max(count) as u64;
    let total: u64 = whole.iter().map(|share| u64::from(*share)).sum();
    if total <= room {
        return whole;
    }
    // Who would get less than one slot gets one, and the others share what is left.
    let mut ascending = whole.clone();
    ascending.sort_unstable();
    let (mut rest, mut left) = (total, room);
    for share in ascending.into_iter().map(u64::from) {
        if share * left >= rest {
            break;
        }
        (rest, left) = (rest - share, left - 1);
    }
    let scaled = |share: &u32| (u64::from(*share) * left / rest).max(1) as u32;
    without_divisor(whole.iter().map(scaled).collect())
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn endpoints(count: usize) -> Vec<SocketAddr> {
        (0..count as u32).map(|number| SocketAddr::from((number.wrapping_mul(0x9e37_79b1).to_be_bytes(), 80))).collect()
    }

    fn of(scheduler: Scheduler, count: usize, weights: &[u16]) -> Vec<u32> {
        slots(&Schedule { scheduler, ..Schedule::default() }, &endpoints(count), weights)
    }

    fn counts(slots: &[u32], count: usize) -> Vec<u64> {
        let mut counts = vec![0; count];
        slots.iter().for_each(|index| counts[*index as usize] += 1);
        counts
    }

    #[test]
    fn each_scheduler_lays_its_slots_out() {
        assert_eq!(of(Scheduler::Random, 3, &[]), [0, 1, 2]);
        assert_eq!(of(Scheduler::Random, 3, &[2, 4, 2]), [0, 1, 1, 2]);
        assert_eq!(of(Scheduler::Wrr, 3, &[20, 40, 20]), [1, 0, 1, 2]);
        assert_eq!(of(Scheduler::Rr, 2, &[1, 5]), [0, 1]);
        // 0.0.0.0, 158.55.121.177, 60.110.243.98
        assert_eq!(of(Scheduler::Sh, 3, &[1, 2, 1]), [0, 2, 1, 1]);
        assert_eq!(of(Scheduler::Dh, 3, &[1, 2, 1]), [0, 2, 1]);
        assert_eq!(of(Scheduler::Mh, 3, &[]).len(), 1009);
        for scheduler in Scheduler::ALL {
            assert!(of(scheduler, 0, &[]).is_empty(), "{scheduler}");
        }
        for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Sed, Scheduler::Nq] {
            assert_eq!(of(scheduler, 2, &[1, 7]), [0, 1]);
        }
    }

    #[test]
    fn a_list_has_no_more_slots_than_the_cap() {
        let wide = [u16::MAX, 1, u16::MAX - 1, 40];
        let slots = of(Scheduler::Random, 4, &wide);
        assert!(slots.len() <= MOST, "{}", slots.len());
        assert_eq!(counts(&slots, 4), [2046, 1, 2046, 1]);
        assert!(are_rounded(Scheduler::Random, &wide) && !are_rounded(Scheduler::Wlc, &wide));
        assert!(!are_rounded(Scheduler::Wrr, &[50_000, 25_000, 50_000]));
        let many: Vec<u16> = (0..5_000).map(|number| number % 2 + 1).collect();
        assert_eq!(of(Scheduler::Sh, 5_000, &many), of(Scheduler::Sh, 5_000, &[]), "no room for weights");
    }

    proptest! {
        #[test]
        fn shares_are_in_proportion(weights in vec(1u16..=u16::MAX, 1..40), small in vec(1u16..9, 1..40)) {
            for scheduler in [Scheduler::Random, Scheduler::Wrr, Scheduler::Sh] {
                let counted = counts(&of(scheduler, small.len(), &small), small.len());
                let schedule = Schedule { scheduler, ..Schedule::default() };
                prop_assert_eq!(count(&schedule, small.len(), &small), of(scheduler, small.len(), &small).len());
                prop_assert_eq!(count(&schedule, weights.len(), &weights), of(scheduler, weights.len(), &weights).len());
                let factor = divisor(small.iter().map(|weight| u32::from(*weight)));
                let whole: Vec<_> = small.iter().map(|weight| u64::from(*weight) / u64::from(factor)).collect();
                prop_assert_eq!(counted, whole);
                let slots = of(scheduler, weights.len(), &weights);
                prop_assert!(slots.len() <= MOST);
                let (counted, total) = (counts(&slots, weights.len()), weights.iter().map(|w| f64::from(*w)).sum::<f64>());
                for (count, weight) in counted.iter().zip(&weights) {
                    let (got, asked) = (*count as f64 / slots.len() as f64, f64::from(*weight) / total);
                    // Rounded to a slot, and up to 40 of them lost by rounding.
                    prop_assert!(*count >= 1 && (got - asked).abs() <= 0.012, "{} for {}", got, asked);
                }
            }
        }

        #[test]
        fn hashed_slots_do_not_depend_on_the_order(weights in vec(1u16..5, 1..20), turn in 0usize..20) {
            let endpoints = endpoints(weights.len());
            let mut turned: Vec<_> = endpoints.iter().copied().zip(weights.iter().copied()).collect();
            turned.rotate_left(turn % weights.len());
            let (others, other_weights): (Vec<_>, Vec<_>) = turned.into_iter().unzip();
            for scheduler in Scheduler::ALL.into_iter().filter(|scheduler| scheduler.hashes()) {
                let schedule = Schedule { scheduler, table_size: 101, ..Schedule::default() };
                let named = |endpoints: &[SocketAddr], weights: &[u16]| -> Vec<SocketAddr> {
                    slots(&schedule, endpoints, weights).iter().map(|index| endpoints[*index as usize]).collect()
                };
                prop_assert_eq!(named(&endpoints, &weights), named(&others, &other_weights));
            }
        }
    }
}
