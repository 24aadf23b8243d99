//! Weights where connections are counted: what they change, and what not.

use std::collections::BTreeMap;

use kubeferry_ebpf_common::TCP;
use kubeferry_tests::client::until;

use super::cluster::endpoint;
use super::counted::{By, Connection, Web, World, number, vip};

/// All are still with their endpoints.
fn all_go_on(open: &mut [Connection]) {
    for connection in open {
        let endpoint = connection.endpoint;
        assert_eq!(connection.ask(), endpoint);
    }
}

fn counts(open: &[Connection]) -> BTreeMap<u8, u64> {
    let mut counts = BTreeMap::new();
    open.iter().for_each(|connection| *counts.entry(number(connection.endpoint)).or_default() += 1);
    counts
}

#[test]
fn a_changed_weight_breaks_no_connection() {
    let world = World::start(&Web::new("wlc", &[1, 1, 1]), &[]);
    for v6 in [false, true] {
        let mut open: Vec<_> =
            (0..18).map(|at| world.open(if at % 2 == 0 { By::Packets } else { By::Socket }, v6)).collect();
        assert_eq!(counts(&open), BTreeMap::from([(1, 6), (2, 6), (3, 6)]));
        // Endpoint 2 is to have no more, or is no endpoint any more; then it is as before, with what it has.
        for without in [&[(1, 1), (2, 0), (3, 1)][..], &[(1, 1), (3, 1)]] {
            world.change_now(&Web::of("wlc", without));
            all_go_on(&mut open);
            for at in 0..4 {
                let more = world.open(if at % 2 == 0 { By::Packets } else { By::Socket }, v6);
                assert_ne!(number(more.endpoint), 2);
                more.close();
                world.until_active(v6, &[6, 6, 6]);
            }
            world.change_now(&Web::new("wlc", &[1, 1, 1]));
            all_go_on(&mut open);
            assert_eq!(world.active(v6), counts(&open));
        }
        // Of twelve more, so many that all have the same for their weight.
        world.change_now(&Web::new("wlc", &[1, 3, 1]));
        open.extend((0..12).map(|at| world.open(if at % 2 == 0 { By::Packets } else { By::Socket }, v6)));
        assert_eq!(counts(&open), BTreeMap::from([(1, 6), (2, 18), (3, 6)]));
        all_go_on(&mut open);
        world.change_now(&Web::new("wlc", &[1, 1, 1]));
        assert_eq!(world.active(v6), counts(&open));
        drop(open);
        world.until_active(v6, &[0, 0, 0]);
    }
    assert_eq!(world.recounted(), 0);
    assert!(world.active_rows().is_empty());
}

#[test]
fn a_new_endpoint_starts_slowly() {
    let web = |weights: &[u16]| {
        let mut web = Web::new("wlc", weights);
        web.annotations = "kubeferry.dev/slow-start: 5s".into();
        web
    };
    let world = World::start(&web(&[2, 2]), &[]);
    let pinned = world.pinned();
    for v6 in [false, true] {
        let weights = |number| {
            let list = pinned.list(vip(v6, 80), TCP).unwrap();
            list.iter().find(|one| one.address == endpoint(number, v6).ip().into()).map(|one| u64::from(one.weight))
        };
        assert_eq!(weights(1), weights(2), "who was there before is not slow");
        // Ten connections each, so that a whole endpoint would get the next ten.
        let old: Vec<_> = (0..20).map(|_| world.open(By::Packets, v6)).collect();
        world.change_now(&web(&[2, 2, 4]));
        let new: Vec<_> = (0..3).map(|_| world.open(By::Packets, v6)).collect();
        let early = weights(3).zip(weights(1));
        let mut seen: Vec<(u64, u64)> = Vec::new();
        let whole = || {
            let now = weights(3).zip(weights(1))?;
            if let Some(last) = seen.last() {
                assert!(now.0 * last.1 >= last.0 * now.1, "{now:?} is less than {last:?}");
            }
            seen.push(now);
            (now.0 == 2 * now.1).then_some(())
        };
        until("the new endpoint to have its whole weight", whole).unwrap();
        seen.dedup();
        assert!(seen.len() > 2, "{seen:?}");
        assert!(seen[0].0 < 2 * seen[0].1, "{seen:?}");
        // A hundredth or little more of 4 against 2: the first goes there, and no second.
        if early.is_some_and(|(new, old)| new * 20 < old) {
            assert_eq!(new.iter().filter(|one| number(one.endpoint) == 3).count(), 1, "{early:?}");
        }
        drop((old, new));
        world.until_active(v6, &[0, 0, 0]);
        world.change_now(&web(&[2, 2]));
    }
}
