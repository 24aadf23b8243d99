//! Whatever another program does to the table, whether a proxy runs or not, is healed; what the kernel refused is tried
//! again.

use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::backend::nftables::fake::{Faults, Harm};
use crate::backend::nftables::kernel::Kernel;
use crate::backend::nftables::reconciler::{Preview, RETRY, Reconciler};
use crate::backend::nftables::rows::{Key, Rows, Wanted};
use crate::desired::Touched;

use super::World;
use super::cluster::{event, history, settings};

fn harm() -> impl Strategy<Value = Harm> {
    let (rule, beside) = ([Harm::Rule; 3], [Harm::Base, Harm::Chain, Harm::Flowtable]);
    let rows = [Harm::RowGone, Harm::RowGone, Harm::RowOther, Harm::RowOther, Harm::RowMore];
    select([&rule[..], &[Harm::Hook, Harm::Set, Harm::Seal], &beside, &rows].concat())
}

impl World {
    /// Another process takes over.
    fn restart(&mut self) {
        self.reconciler = Reconciler::new(self.fake().clone());
    }

    /// The table without what rows no longer need.
    fn program(&mut self) -> String {
        let structure = self.fake().structure().unwrap();
        assert!(structure.is_sealed());
        structure.seal().to_string()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn what_was_tampered_with_before_the_start_is_healed(
        settings in settings(), history in history(), more in prop::collection::vec(event(), 4),
        harms in prop::collection::vec((harm(), any::<Index>()), 1..3),
    ) {
        let mut world = World::new(settings);
        for event in history {
            world.step(event).unwrap();
        }
        let program = world.program();
        let before = world.fake().structure().unwrap();
        for (harm, which) in &harms {
            world.fake().tamper(*harm, which);
        }
        world.restart();
        let rows = world.fake().rows();
        let Wanted { rows: wanted_rows, chains: wanted, .. } = world.anew(&rows);
        // A chain that no row needs may be as it likes, until one does.
        let after = world.fake().structure().unwrap();
        let wrong = !after.is_sealed()
            || wanted.keys().any(|name| before.chains.get(name) != after.chains.get(name));
        let preview = world.reconciler.preview(&world.desired).unwrap();
        // Rows that differ may be of what the objects have become since, and are not told of.
        prop_assert_eq!(wrong || rows != wanted_rows, !matches!(preview, Preview::Changes(changes) if changes.is_empty()));
        let report = world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        prop_assert_eq!(wrong, report.repaired > 0, "{:?}", report);
        prop_assert_eq!(world.program(), program);
        world.assert_in_force();
        for event in more {
            world.step(event).unwrap();
            world.assert_in_force();
        }
    }

    #[test]
    fn what_is_tampered_with_while_a_proxy_runs_is_noticed_at_the_next_look(
        settings in settings(), history in history(), harm in harm(), which in any::<Index>(), more in event(),
    ) {
        let mut world = World::new(settings);
        for event in history {
            world.step(event).unwrap();
        }
        world.reconciler.check(&world.desired).unwrap();
        let program = world.program();
        world.fake().tamper(harm, &which);
        let report = world.reconciler.check(&world.desired).unwrap().unwrap();
        prop_assert!(report.repaired > 0);
        prop_assert_eq!(world.program(), program);
        prop_assert!(!world.fake().chain_names().contains("v4-theirs"));
        world.assert_in_force();
        prop_assert_eq!(world.reconciler.check(&world.desired).unwrap(), None);
        world.step(more).unwrap();
        world.assert_in_force();
    }

    #[test]
    fn what_is_put_into_a_chain_before_it_is_read_back_is_noticed_at_the_next_look(
        settings in settings(), history in history(), meddlers in 1_usize..4,
    ) {
        let mut world = World::new(settings);
        world.fake().faults.meddlers = meddlers;
        for event in history {
            world.step(event).unwrap();
        }
        world.fake().faults.meddlers = 0;
        // What is repaired is written by another commit that nobody meddles with.
        world.reconciler.check(&world.desired).unwrap();
        world.assert_in_force();
        prop_assert_eq!(world.reconciler.check(&world.desired).unwrap(), None);
    }

    #[test]
    fn another_version_of_nft_makes_no_restart_write_anything(settings in settings(), history in history()) {
        let mut world = World::new(settings);
        for event in history {
            world.follow(event);
        }
        world.fake().load("table inet kubeferry {\n comment \"an earlier version\"\n }\n").unwrap();
        world.fake().faults.dialect = true;
        let report = world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        prop_assert!(report.loaded && report.repaired == 0, "{:?}", report);
        world.assert_in_force();
        world.restart();
        let generation = world.fake().generation().unwrap();
        let report = world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        prop_assert_eq!((report.changes, report.repaired, report.loaded), (0, 0, false));
        prop_assert_eq!(world.fake().generation().unwrap(), generation);
    }

    #[test]
    fn a_refused_frontend_is_tried_again_once_in_a_while(
        settings in settings(), history in history(), which in prop::collection::vec(any::<Index>(), 1..3),
    ) {
        let mut world = World::new(settings);
        for event in history {
            world.follow(event);
        }
        let wanted = world.anew(&Rows::new());
        let keys: Vec<Key> = wanted.rows.keys().filter(|key| matches!(key, Key::Of(..))).copied().collect();
        prop_assume!(!keys.is_empty());
        world.fake().faults.keys.extend(which.iter().map(|which| *which.get(&keys)));
        let refused = world.reconciler.sync(&world.desired, Touched::default()).unwrap().refused;
        prop_assert!(!refused.is_empty());
        let look = |world: &mut World| {
            let mut reports = Vec::new();
            for _ in 0..RETRY {
                reports.extend(world.reconciler.check(&world.desired).unwrap());
            }
            reports
        };
        // Unused chains may go at the first look.
        look(&mut world);
        let before = (world.fake().generation().unwrap(), world.fake().rows());
        prop_assert_eq!(look(&mut world), vec![], "refused as before");
        prop_assert_eq!((world.fake().generation().unwrap(), world.fake().rows()), before);
        prop_assert_eq!(world.reconciler.refused().keys().collect::<Vec<_>>(), refused.keys().collect::<Vec<_>>());
        world.fake().faults = Faults::default();
        let reports = look(&mut world);
        prop_assert_eq!(reports.len(), 1);
        prop_assert!(reports[0].changes > 0 && reports[0].repaired == 0 && !reports[0].full, "{:?}", reports);
        prop_assert!(world.reconciler.refused().is_empty());
        world.assert_in_force();
    }

    #[test]
    fn one_of_several_refused_frontends_is_served_as_soon_as_it_can_be(settings in settings(), history in history()) {
        let mut world = World::new(settings);
        for event in history {
            world.follow(event);
        }
        let wanted = world.anew(&Rows::new());
        let mut keys: Vec<Key> = wanted.rows.keys().filter(|key| matches!(key, Key::Of(..))).copied().collect();
        keys.dedup_by_key(|key| match key {
            Key::Of(frontend, _) => Some(*frontend),
            _ => None,
        });
        prop_assume!(keys.len() > 1);
        world.fake().faults.keys.extend(&keys[..2]);
        world.reconciler.sync(&world.desired, Touched::default()).unwrap();
        world.fake().faults.keys.remove(&keys[0]);
        for _ in 0..RETRY {
            world.reconciler.check(&world.desired).unwrap();
        }
        let Key::Of(still, _) = keys[1] else { unreachable!() };
        prop_assert_eq!(world.reconciler.refused().keys().collect::<Vec<_>>(), vec![&still]);
        prop_assert!(world.fake().rows().contains_key(&keys[0]));
    }
}
