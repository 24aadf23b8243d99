//! The promises of the table, measured over sets of endpoints that are the same in every run.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use proptest::prelude::*;

use super::*;
use crate::scheduler::slots::TABLE_SIZE;

/// Some pods, of IPv6 where `set` is odd.
fn pods(count: usize, set: u32) -> Vec<SocketAddr> {
    let mut state = u64::from(set) << 1 | 1;
    let mut pods = BTreeSet::new();
    while pods.len() < count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let [a, b, ..] = state.to_be_bytes();
        pods.insert(match set % 2 {
            0 => SocketAddr::from(([10, 244, a % 16, b], 8080)),
            _ => SocketAddr::from((Ipv6Addr::from([0xfd00, 10, 244, 0, 0, 0, u16::from(a), u16::from(b)]), 8080)),
        });
    }
    pods.into_iter().collect()
}

fn counts(table: &[u32], endpoints: usize) -> Vec<u32> {
    let mut counts = vec![0; endpoints];
    table.iter().for_each(|index| counts[*index as usize] += 1);
    counts
}

/// The part of the slots that change their endpoint when one of `count` leaves: the mean over who leaves, and over sets.
fn moved(size: u32, count: usize, sets: u32) -> f64 {
    let mut moved = 0;
    for set in 0..sets {
        let all = pods(count, set);
        let before = table(size, &all, &vec![1; count]);
        for leaver in 0..count {
            let mut rest = all.clone();
            rest.remove(leaver);
            let after = table(size, &rest, &vec![1; count - 1]);
            moved += before.iter().zip(&after).filter(|(b, a)| all[**b as usize] != rest[**a as usize]).count();
        }
    }
    moved as f64 / (f64::from(sets) * count as f64 * f64::from(size))
}

#[test]
fn endpoints_share_the_table_within_one_percent() {
    for count in 1..=10 {
        for set in 0..10 {
            let counts = counts(&table(TABLE_SIZE, &pods(count, set), &vec![1; count]), count);
            let (most, mean) = (*counts.iter().max().unwrap(), f64::from(TABLE_SIZE) / count as f64);
            assert!(f64::from(most) <= 1.01 * mean, "{count} endpoints: {counts:?}");
            assert!(counts.iter().all(|slots| most - slots <= 1), "{counts:?}");
        }
    }
}

#[test]
fn few_slots_move_when_an_endpoint_leaves() {
    // Beyond the leaver's own part. It grows with the number of endpoints and falls with the size of the table.
    for (size, count, beyond) in
        [(1009, 2, 0.001), (1009, 3, 0.01), (1009, 5, 0.02), (1009, 6, 0.02), (1009, 10, 0.03), (10_007, 10, 0.01)]
    {
        let moved = moved(size, count, 12);
        let least = 1.0 / count as f64;
        assert!(moved <= least + beyond, "{size} slots, {count} endpoints: {moved:.4} of the slots moved");
        assert!(moved >= least - 0.001, "{moved}");
    }
}

#[test]
fn slots_are_in_proportion_to_weights() {
    let pods = pods(4, 0);
    assert_eq!(counts(&table(1009, &pods, &[1, 2, 3, 4]), 4), [101, 202, 303, 403]);
    let uneven = counts(&table(1009, &pods, &[65_535, 65_535, 1, 30_000]), 4);
    assert_eq!(uneven, [410, 410, 1, 188], "one slot at least");
}

#[test]
fn tables_of_odd_sizes_are_full() {
    for size in [2, 3, 5, 7] {
        for count in [1, 2, 5, 20] {
            let counts = counts(&table(size, &pods(count, 0), &vec![1; count]), count);
            assert_eq!(counts.iter().sum::<u32>(), size);
            assert_eq!(counts.iter().filter(|slots| **slots > 0).count(), count.min(size as usize));
        }
    }
    assert!(table(1009, &[], &[]).is_empty());
}

#[test]
fn the_table_of_this_version_is_that_of_all_others() {
    // Nodes of two versions must agree on it. Reckoned by another program.
    let pods = ["10.244.1.1:80", "10.244.1.2:80", "10.244.2.3:80"].map(|pod| pod.parse().unwrap());
    assert_eq!(table(13, &pods, &[1, 1, 2]), [0, 2, 0, 1, 2, 0, 2, 2, 2, 1, 0, 1, 2]);
}

proptest! {
    #[test]
    fn the_order_of_endpoints_has_no_influence(
        mut weighted in proptest::collection::btree_map(any::<[u8; 4]>(), 1u32..5, 1..12).prop_map(Vec::from_iter),
        turn in 0usize..12,
    ) {
        let named = |weighted: &[([u8; 4], u32)]| -> Vec<SocketAddr> {
            let endpoints: Vec<_> = weighted.iter().map(|(ip, _)| SocketAddr::from((*ip, 80))).collect();
            let weights: Vec<_> = weighted.iter().map(|(_, weight)| *weight).collect();
            table(101, &endpoints, &weights).into_iter().map(|index| endpoints[index as usize]).collect()
        };
        let before = named(&weighted);
        let count = weighted.len();
        weighted.rotate_left(turn % count);
        weighted.swap(0, count / 2);
        prop_assert_eq!(before, named(&weighted));
    }
}
