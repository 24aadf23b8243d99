//! What a program may meet between two writes of one change: make before break, map by map.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::{Address, Frontend as Row, FrontendKey, MemberKey, RangeKey};
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;

use super::maps::Maps;
use super::{ROOMY, World};
use crate::backend::ebpf::diff::{Phase, Writes};
use crate::backend::ebpf::rows::Range;
use crate::backend::nftables::laws::cluster::{history, settings};

/// What is wrong after any of these writes, made to `before` phase by phase in this order.
pub(super) fn broken(before: &Maps, writes: &Writes, order: &[Phase<'_>]) -> Vec<String> {
    let mut after = before.clone();
    after.write(writes);
    let mut broken = Vec::new();
    let mut maps = before.clone();
    maps.write_phases(order, &mut |now| broken.extend(Moment { before, now, after: &after }.broken()));
    broken
}

/// The maps between two writes, as they were before the first, and as they are after the last.
struct Moment<'a> {
    before: &'a Maps,
    now: &'a Maps,
    after: &'a Maps,
}

/// What becomes of a packet to an address and port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Meaning {
    Served,
    Refused,
    Passed,
}

fn meaning(maps: &Maps, key: &FrontendKey) -> Meaning {
    match maps.frontends.contains_key(key) {
        true => Meaning::Served,
        false if maps.bits(key.address.into()) & address_is::CLUSTER_IP != 0 => Meaning::Refused,
        false => Meaning::Passed,
    }
}

fn ranges(maps: &Maps, service: u64) -> BTreeSet<Range> {
    let of = RangeKey::new(service, Address::ZERO).service;
    maps.ranges.iter().filter(|range| range.key.service == of).copied().collect()
}

impl Moment<'_> {
    fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        self.lists(&mut broken);
        self.addresses(&mut broken);
        for (key, row) in &self.now.frontends {
            self.members(key, row, &mut broken);
            self.ranges(key, row, &mut broken);
        }
        let others = |maps: &Maps| {
            let rows = (maps.frontends.clone(), maps.addresses.clone(), maps.members.clone(), maps.ranges.clone());
            (rows, maps.lists())
        };
        if self.now.config != self.before.config && others(self.now) != others(self.after) {
            broken.push("config is written before something else".to_owned());
        }
        broken
    }

    /// Every frontend has its old lists whole or its new ones, or is not there.
    fn lists(&self, broken: &mut Vec<String>) {
        let [before, now, after] = [self.before, self.now, self.after].map(Maps::lists);
        for (key, lists) in now {
            if before.get(&key) != Some(&lists) && after.get(&key) != Some(&lists) {
                broken.push(format!("{key:?} met {lists:?}: neither {:?} nor {:?}", before.get(&key), after.get(&key)));
            }
        }
    }

    /// What is served before and after is so at every moment, and nothing is refused that is not so before or after. An address keeps
    /// a meaning that it has at both times, and has none that it has at neither.
    fn addresses(&self, broken: &mut Vec<String>) {
        let keys = self.before.frontends.keys().chain(self.after.frontends.keys());
        for key in keys.filter(|key| key.kind == FrontendKey::ADDRESS) {
            let [before, now, after] = [self.before, self.now, self.after].map(|maps| meaning(maps, key));
            let passes = now == Meaning::Passed && before != after;
            if now != before && now != after && !passes {
                broken.push(format!("{key:?} is {now:?}, was {before:?}, will be {after:?}"));
            }
        }
        let addresses = [self.before, self.now, self.after].into_iter().flat_map(|maps| maps.addresses.keys());
        for address in addresses.collect::<BTreeSet<_>>() {
            let [before, now, after] = [self.before, self.now, self.after].map(|maps| maps.bits((*address).into()));
            if now & !(before | after) != 0 || (before & after) & !now != 0 {
                broken.push(format!("{address:?} is {now}, was {before}, will be {after}"));
            }
        }
    }

    /// Whoever is in a list that a frontend with affinity leads to is a member.
    fn members(&self, key: &FrontendKey, row: &Row, broken: &mut Vec<String>) {
        if row.affinity == 0 {
            return;
        }
        for (first, count) in [(row.cluster_first, row.cluster_count), (row.local_first, row.local_count)] {
            for slot in &self.now.slots[first as usize..(first + count) as usize] {
                let (address, port) = (slot.address, slot.port);
                let member = MemberKey { service: row.service, address, port, reserved: [0; 3] };
                if !self.now.members.contains_key(&member) {
                    broken.push(format!("{key:?} leads to {member:?}, which is no member"));
                }
            }
        }
    }

    /// A frontend that asks for sources has all of its old ones or all of its new ones.
    fn ranges(&self, key: &FrontendKey, row: &Row, broken: &mut Vec<String>) {
        if row.flags & Row::RANGED == 0 {
            return;
        }
        let now = ranges(self.now, row.service);
        let asks = |maps: &Maps| {
            let asks = maps
                .frontends
                .get(key)
                .is_some_and(|then| then.service == row.service && then.flags & Row::RANGED != 0);
            asks.then(|| ranges(maps, row.service))
        };
        let times: Vec<BTreeSet<Range>> = [self.before, self.after].into_iter().filter_map(asks).collect();
        if !times.iter().any(|then| now.is_superset(then)) {
            broken.push(format!("{key:?} has the sources {now:?}, and should have all of one of {times:?}"));
        }
    }
}

/// Numbers of phases ([`Writes::phases`]), and before which other one each would be wrong. 11: after all.
const WRONG: [(&str, usize, usize); 9] = [
    ("an address loses a meaning after its frontends", 0, 7),
    ("slots after frontends that lead there", 2, 7),
    ("members after frontends", 3, 7),
    ("ranges after frontends", 4, 7),
    ("members go before frontends", 7, 6),
    ("ranges go before frontends", 8, 6),
    ("ranges go before others come", 8, 4),
    ("an address gains a meaning before its frontends", 9, 6),
    ("config before the rest", 10, 0),
];

fn moved<'a>(phases: [Phase<'a>; 11], from: usize, before: usize) -> Vec<Phase<'a>> {
    let mut order: Vec<_> = phases.into_iter().enumerate().collect();
    let phase = order.remove(from);
    let at = order.iter().position(|(number, _)| *number == before).unwrap_or(order.len());
    order.insert(at, phase);
    order.into_iter().map(|(_, phase)| phase).collect()
}

/// A law that no order breaks says nothing of the order.
#[test]
fn every_order_that_would_be_wrong_is_seen() {
    let mut runner = TestRunner::deterministic();
    let mut unseen: BTreeMap<&str, (usize, usize)> = WRONG.map(|(what, from, before)| (what, (from, before))).into();
    for _ in 0..1_000 {
        let (settings, history) = (settings(), history()).new_tree(&mut runner).unwrap().current();
        let mut world = World::new(settings, ROOMY);
        for event in history {
            let writes = world.writes(Some(event));
            unseen.retain(|_, (from, before)| {
                broken(&world.maps, &writes, &moved(writes.phases(), *from, *before)).is_empty()
            });
            world.made(&writes);
        }
        if unseen.is_empty() {
            return;
        }
    }
    panic!("no history shows what is wrong with: {unseen:?}");
}
