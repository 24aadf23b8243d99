//! What of the changes a sync takes. Some Services cost the kernel and us a thousand times what others do (on nftables those with chains of
//! their own, with eBPF those with very many frontends), and a sync is whole or not there: what changes meanwhile waits for it. So a
//! sync takes a portion of such Services, and all of the others.

use std::collections::HashMap;

use crate::state::objects::ObjectName;
use crate::state::{Changes, TRIGGERS};

/// What was put off, and since when.
#[derive(Debug, Default)]
pub(crate) struct Portions {
    later: Changes,
    /// Services in the order in which they were put off.
    since: HashMap<ObjectName, u64>,
    next: u64,
}

/// A Service that may be put off; the first comes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Costly {
    /// What all that waits of its namespace costs.
    of_namespace: usize,
    cost: usize,
    /// When it was put off first; the greatest number, where it has not been yet.
    since: u64,
    name: ObjectName,
}

impl Portions {
    /// What is put off.
    pub(crate) fn later(&self) -> &Changes {
        &self.later
    }

    /// What is to be done now of what changed and of what was put off: Services that cost nothing, those of namespaces of which all
    /// that waits costs no more than is `unnoticed`, and of the others, up to `room`, those of namespaces that wait with least, and of
    /// one namespace those that cost least. The one that has waited longest is among them, whatever it costs; without room none is.
    pub(crate) fn next(
        &mut self,
        new: Changes,
        (unnoticed, room): (usize, usize),
        cost: impl Fn(&ObjectName) -> usize,
    ) -> Changes {
        let mut changes = std::mem::take(&mut self.later);
        // Those of what is put off leave as much room as ever for others'.
        let late = std::mem::take(&mut changes.triggers);
        changes.merge(new);
        changes.triggers.splice(..0, late);
        let mut costly = self.costly(&changes, unnoticed, cost);
        let oldest = costly.iter().enumerate().min_by_key(|(_, one)| one.since).map(|(index, _)| index);
        if let Some(oldest) = oldest {
            costly[..=oldest].rotate_right(1);
        }
        let mut taken = 0;
        let fits = |one: &Costly| {
            let fits = taken < room && (taken == 0 || taken + one.cost <= room);
            taken += one.cost;
            fits
        };
        let fitting = costly.iter().map(fits).take_while(|fits| *fits).count();
        let late = costly.split_off(fitting);
        let since: HashMap<_, _> = late
            .into_iter()
            .map(|one| {
                self.next += 1;
                (one.name, one.since.min(self.next))
            })
            .collect();
        for name in since.keys() {
            changes.services.remove(name);
            self.later.services.insert(name.clone());
            if changes.endpoints_of.remove(name) {
                self.later.endpoints_of.insert(name.clone());
            }
        }
        let triggers = std::mem::take(&mut changes.triggers);
        (self.later.triggers, changes.triggers) =
            triggers.into_iter().partition(|(_, _, name)| since.contains_key(name));
        // More of one Service say no more, and who is late may be late for long.
        self.later.triggers.dedup_by(|later, earlier| (later.0, &later.2) == (earlier.0, &earlier.2));
        self.later.triggers.truncate(TRIGGERS);
        self.since = since;
        changes
    }

    /// What may be put off, in the order in which it comes.
    fn costly(&self, changes: &Changes, unnoticed: usize, cost: impl Fn(&ObjectName) -> usize) -> Vec<Costly> {
        let costs = changes.services.iter().map(|name| (name, cost(name))).filter(|(_, cost)| *cost > 0);
        let costs: Vec<(&ObjectName, usize)> = costs.collect();
        let mut of_namespace: HashMap<&str, usize> = HashMap::new();
        for (name, cost) in &costs {
            *of_namespace.entry(&name.namespace).or_default() += cost;
        }
        let mut costly: Vec<Costly> = costs
            .into_iter()
            .map(|(name, cost)| Costly {
                of_namespace: of_namespace[&*name.namespace],
                cost,
                since: self.since.get(name).copied().unwrap_or(u64::MAX),
                name: name.clone(),
            })
            .filter(|one| one.of_namespace > unnoticed)
            .collect();
        costly.sort();
        costly
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::state::objects::Family;

    fn name(number: usize) -> ObjectName {
        ObjectName::new("default", &format!("s{number}"))
    }

    fn changed(numbers: impl IntoIterator<Item = usize>) -> Changes {
        let services: BTreeSet<_> = numbers.into_iter().map(name).collect();
        Changes { endpoints_of: services.clone(), services, ..Changes::default() }
    }

    /// The cost of each is its number.
    fn cost(of: &ObjectName) -> usize {
        of.name[1..].parse().unwrap()
    }

    fn numbers(changes: &Changes) -> Vec<usize> {
        let mut numbers: Vec<_> = changes.services.iter().map(cost).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn what_costs_nothing_is_never_put_off_and_the_least_comes_first() {
        let mut portions = Portions::default();
        let at = Timestamp::from_second(1).unwrap();
        let of = |number| (Family::V4, at, name(number));
        let first = Changes { triggers: vec![of(5), of(11), of(9), of(9)], ..changed([0, 1, 5, 9, 11]) };
        let now = portions.next(first, (0, 10), cost);
        assert_eq!((numbers(&now), numbers(portions.later())), (vec![0, 1, 5], vec![9, 11]));
        assert_eq!(now.endpoints_of, now.services);
        assert_eq!(now.triggers, [of(5)], "of what is in force");
        let now = portions.next(changed([0, 2]), (0, 0), cost);
        assert_eq!(numbers(&now), [0], "while syncs fail");
        let now = portions.next(changed([3]), (0, 10), cost);
        assert_eq!((numbers(&now), numbers(portions.later())), (vec![9], vec![2, 3, 11]));
        assert_eq!(now.triggers, [of(9)]);
        let now = portions.next(Changes::default(), (0, 10), cost);
        assert_eq!(numbers(&now), [11], "more than there is room for, by itself");
        assert_eq!(now.triggers, [of(11)]);
        let now = portions.next(Changes::default(), (0, 10), cost);
        assert_eq!(numbers(&now), [2, 3]);
        assert!(portions.later().is_empty() && portions.since.is_empty());
    }

    #[test]
    fn times_of_what_is_put_off_take_no_room_from_those_of_others() {
        let mut portions = Portions::default();
        let at = |second: usize, number| (Family::V4, Timestamp::from_second(second as i64).unwrap(), name(number));
        // Of one Service only the first counts, so they alternate.
        let late = (0..TRIGGERS).map(|second| at(second, 11 + second % 2)).collect();
        portions.next(Changes { triggers: late, ..changed([11, 12]) }, (0, 0), cost);
        assert_eq!(portions.later().triggers.len(), TRIGGERS);
        let more = vec![at(0, 0), at(TRIGGERS, 11)];
        let now = portions.next(Changes { triggers: more, ..changed([0, 11]) }, (0, 0), cost);
        assert_eq!(now.triggers, [at(0, 0)]);
        assert_eq!(portions.later().triggers.len(), TRIGGERS);
    }

    /// Of another namespace.
    fn elsewhere(mut changes: Changes, numbers: impl IntoIterator<Item = usize>) -> Changes {
        changes.services.extend(numbers.into_iter().map(|number| ObjectName::new("elsewhere", &format!("s{number}"))));
        changes
    }

    #[test]
    fn who_waits_with_little_comes_before_who_waits_with_much() {
        let mut portions = Portions::default();
        // Many that are small, and elsewhere one that is larger than any of them, but smaller than all.
        let now = portions.next(elsewhere(changed(1..=9), [12]), (10, 20), cost);
        assert_eq!((numbers(&now), numbers(portions.later())), (vec![1, 2, 3, 12], vec![4, 5, 6, 7, 8, 9]));
        let now = portions.next(elsewhere(Changes::default(), [5]), (10, 20), cost);
        assert_eq!(numbers(&now), [4, 5, 5, 6], "little is never put off");
        let now = portions.next(elsewhere(changed([1]), [10]), (10, 0), cost);
        assert_eq!(numbers(&now), [10], "also while syncs fail");
        assert_eq!(numbers(portions.later()), [1, 7, 8, 9]);
        let now = portions.next(elsewhere(Changes::default(), [11]), (10, 20), cost);
        assert_eq!((numbers(&now), numbers(portions.later())), (vec![1, 7, 11], vec![8, 9]), "the oldest first");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nobody_waits_for_ever(
            arrivals in prop::collection::vec(prop::collection::vec(0_usize..20, 0..8), 1..30), room in 1_usize..30,
        ) {
            let mut portions = Portions::default();
            let mut waiting: BTreeSet<usize> = BTreeSet::new();
            let mut passed: HashMap<usize, usize> = HashMap::new();
            for arrived in arrivals.into_iter().chain(vec![Vec::new(); 30]) {
                waiting.extend(&arrived);
                let now = numbers(&portions.next(changed(arrived), (0, room), cost));
                prop_assert!(now.len() == now.iter().filter(|number| **number == 0).count() + 1
                    || now.iter().sum::<usize>() <= room);
                for number in &now {
                    prop_assert!(waiting.remove(number));
                    passed.remove(number);
                }
                prop_assert_eq!(numbers(portions.later()), waiting.iter().copied().collect::<Vec<_>>());
                // There are twenty: nobody is passed by more than the others can be before.
                for number in &waiting {
                    let passed = passed.entry(*number).or_default();
                    *passed += 1;
                    prop_assert!(*passed <= 20, "{} waits", number);
                }
            }
            prop_assert!(waiting.is_empty());
        }
    }
}
