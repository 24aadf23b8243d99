//! Sums of what connections carried, for the fuzzer.

use std::collections::HashMap;

use super::{Followed, Tracked, Way};
use crate::desired::target::Frontend;

/// Follows these connections: listed at once, then ended one by one, then as none that is there any more. Whatever of it is told, each
/// is counted once.
pub(crate) fn sums(all: &[Tracked]) {
    let ours = |Way { protocol, to, .. }: Way| Frontend::Address { ip: to.ip(), protocol, port: to.port() };
    let ours = all.iter().map(|tracked| ours(tracked.way));
    let mut followed = Followed { ours: ours.collect(), ..Followed::default() };
    // The kernel has one entry of a number.
    let all: HashMap<u32, Tracked> = all.iter().map(|tracked| (tracked.id, *tracked)).collect();
    followed.listed(all.values().copied(), true);
    let mut expected: HashMap<Way, (u64, u64)> = HashMap::new();
    for Tracked { way, packets, bytes, .. } in all.values() {
        let sum = expected.entry(*way).or_default();
        *sum = (sum.0.saturating_add(*packets), sum.1.saturating_add(*bytes));
    }
    let told = followed.take();
    assert_eq!(told.values().map(|carried| carried.entries).sum::<u64>(), all.len() as u64);
    let now: HashMap<Way, (u64, u64)> = told.into_iter().map(|(way, now)| (way, (now.packets, now.bytes))).collect();
    assert_eq!(now, expected);
    for (number, tracked) in all.into_values().enumerate() {
        // The end of every other one is not told of.
        if number % 2 == 0 {
            followed.end(tracked);
        }
    }
    followed.listed(std::iter::empty(), true);
    let ended = followed.take().into_iter().map(|(way, ended)| {
        assert_eq!((ended.entries, ended.packets), (0, 0));
        (way, (ended.ended_packets, ended.ended_bytes))
    });
    assert_eq!(ended.collect::<HashMap<_, _>>(), expected);
}
