//! What fails is repaired by the next sync, and a row that the kernel refuses costs its own frontend alone.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::fake::{Fake, Faults, Harm};
use crate::backend::nftables::kernel::Kernel;
use crate::backend::nftables::reconciler::Reconciler;
use crate::backend::nftables::rows::{Key, Part, Rows, Value, Wanted};
use crate::desired::Touched;

use super::World;
use super::cluster::{history, settings};

fn fault() -> impl Strategy<Value = Faults> {
    let none = Faults::default;
    select(vec![
        none(),
        Faults { commits: 1, ..none() },
        Faults { commits: 2, ..none() },
        Faults { commits: 1, loads: 1, ..none() },
        Faults { commits: 1, reads: 1, ..none() },
        Faults { answers: 1, ..none() },
        Faults { answers: 1, reads: 1, ..none() },
        Faults { loads: 1, reads: 1, ..none() },
        // In the second or third step.
        Faults { later: 1, commits: 1, ..none() },
        Faults { later: 1, commits: 1, reads: 1, ..none() },
        Faults { later: 1, answers: 1, ..none() },
        Faults { later: 1, memory: 1, ..none() },
        Faults { later: 2, commits: 1, ..none() },
        Faults { later: 2, answers: 1, ..none() },
    ])
}

/// Rows without their slots.
pub(super) fn slotless(rows: &Rows) -> Vec<(Key, Value)> {
    let slotless = |key: Key| match key {
        Key::Of(frontend, Part::Endpoint(_)) => Key::Of(frontend, Part::Endpoint(0)),
        Key::Turn(turn, _) => Key::Turn(turn, 0),
        key => key,
    };
    let mut rows: Vec<_> = rows.iter().map(|(key, value)| (slotless(*key), value.clone())).collect();
    rows.sort();
    rows
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_next_sync_repairs_what_failed(settings in settings(), history in history(), faults in prop::collection::vec(fault(), 24)) {
        let mut world = World::new(settings);
        for (event, faults) in history.into_iter().zip(faults) {
            world.fake().faults = faults;
            let _ = world.step(event);
            world.fake().faults = Faults::default();
            world.reconciler.sync(&world.desired, Touched::default()).unwrap();
            world.assert_in_force();
        }
    }

    #[test]
    fn a_check_repairs_what_failed_too(settings in settings(), history in history(), fault in fault()) {
        let mut world = World::new(settings);
        let count = history.len();
        for (index, event) in history.into_iter().enumerate() {
            if index + 1 == count {
                world.fake().faults = fault.clone();
            }
            let _ = world.step(event);
        }
        world.fake().faults = Faults::default();
        world.reconciler.check(&world.desired).unwrap();
        world.assert_in_force();
    }

    #[test]
    fn a_start_that_fails_between_its_steps_is_repaired(
        settings in settings(), before in history(), since in history(), fault in fault(), later in 0_usize..3,
    ) {
        let mut world = World::new(settings);
        for event in before {
            world.step(event).unwrap();
        }
        world.reconciler = Reconciler::new(world.fake().clone());
        for event in since {
            world.follow(event);
        }
        world.fake().faults = Faults { later, ..fault };
        let _ = world.reconciler.sync(&world.desired, Touched::default());
        world.fake().faults = Faults::default();
        world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        world.assert_in_force();
    }

    #[test]
    fn want_of_memory_takes_nothing_out_of_force(
        settings in settings(), history in history(), memory in prop::collection::vec(0_usize..5, 24), tampered in any::<Index>(),
    ) {
        let mut world = World::new(settings);
        let count = history.len();
        for (number, (event, memory)) in history.into_iter().zip(memory).enumerate() {
            if number == tampered.index(count) {
                // The next process is to replace the table.
                world.fake().tamper(Harm::Hook, &tampered);
                world.reconciler = Reconciler::new(world.fake().clone());
            }
            let before = world.fake().rows();
            world.fake().faults.memory = memory;
            match world.step(event) {
                Ok(report) => {
                    prop_assert!(report.refused.is_empty(), "{:?}", report.refused);
                    world.assert_in_force();
                }
                Err(_) => prop_assert_eq!(world.fake().rows(), before),
            }
            world.fake().faults.memory = 0;
        }
        world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        world.assert_in_force();
    }

    #[test]
    fn a_refused_row_costs_only_its_own_frontend(
        settings in settings(), history in history(), which in any::<Index>(), at_start in any::<bool>(), chain in any::<bool>(),
    ) {
        let mut world = World::new(settings);
        for event in history {
            world.follow(event);
        }
        let wanted = world.anew(&Rows::new());
        let of_frontends: Vec<_> =
            wanted.rows.iter().filter(|(key, _)| matches!(key, Key::Of(..) | Key::Turn(..))).collect();
        prop_assume!(!of_frontends.is_empty());
        let (key, value) = which.get(&of_frontends);
        let frontends = match **key {
            Key::Of(frontend, _) => BTreeSet::from([frontend]),
            Key::Turn(turn, slot) => wanted.frontends_of_turn(turn, Turn::list(slot)),
            _ => unreachable!(),
        };
        let by_chain = match value {
            Value::Chain(name) if chain && wanted.frontends_through(name).len() == 1 && wanted.chains.contains_key(name) => {
                Some(name.clone())
            }
            _ => None,
        };
        if at_start {
            // Nothing is there yet.
        } else {
            // A table of another version: it is replaced by nft, which names no row.
            *world.fake() = Fake::default();
            let script = "table inet kubeferry {\n comment \"other\"\n }\n";
            crate::backend::nftables::kernel::Kernel::load(world.fake(), script).unwrap();
        }
        match by_chain {
            Some(name) => drop(world.fake().faults.chains.insert(name)),
            None => drop(world.fake().faults.keys.insert(**key)),
        }
        let report = world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        prop_assert_eq!(report.refused.keys().copied().collect::<BTreeSet<_>>(), frontends.clone());
        let rows = world.fake().rows();
        prop_assert!(rows.keys().all(|key| !matches!(key, Key::Of(of, _) if frontends.contains(of))));
        let left_out = frontends.iter().map(|frontend| (*frontend, String::new())).collect();
        prop_assert_eq!(slotless(&rows), slotless(&Wanted::without(&world.desired, &Rows::new(), &left_out).rows));
        world.fake().faults = Faults::default();
        let touched = Touched { frontends, ..Touched::default() };
        let report = world.reconciler.sync(&world.desired, touched).unwrap();
        prop_assert!(report.refused.is_empty());
        world.assert_in_force();
    }

    #[test]
    fn a_restart_changes_nothing(settings in settings(), history in history()) {
        let mut world = World::new(settings);
        for event in history {
            world.step(event).unwrap();
        }
        let before = world.fake().clone();
        world.reconciler = Reconciler::new(before.clone());
        let report = world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        prop_assert_eq!((report.changes, report.loaded, report.repaired), (0, false, 0));
        prop_assert_eq!(world.fake().generation().unwrap(), before.clone().generation().unwrap());
        prop_assert_eq!(world.fake().rows(), before.rows());
    }
}
