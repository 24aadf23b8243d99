//! Following changes comes to the same as starting anew, and costs what the change costs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;

use crate::backend::nftables::chains::Chain;
use crate::backend::nftables::diff::Change;
use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::reconciler::Report;
use crate::backend::nftables::rows::Key;
use crate::desired::target::{Frontend, Role};
use crate::desired::{CONFLICTS_NAMED, Desired, WithoutLocal};
use crate::scheduler::Scheduler;
use crate::scheduler::weights::Weights;
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{EndpointSlice, Family, ObjectName, SliceEndpoint, SlicePort};

use super::World;
use super::cluster::{event, history, object, service, settings};

/// The answers that `desired` keeps up to date, counted again.
fn assert_recounted(state: &State, desired: &Desired) {
    let mut without = WithoutLocal::default();
    let mut losers = BTreeMap::<&ObjectName, usize>::new();
    for (_, target, frontends) in desired.targets() {
        let nothing_here = target.endpoints.any && target.endpoints.local.is_empty();
        let family = target.family as usize;
        without.internal[family] += usize::from(nothing_here && target.internal_local);
        without.external[family] += usize::from(nothing_here && target.external_local && target.accessible);
        let loses =
            |frontend: &&Frontend| desired.holder(frontend).is_none_or(|holder| holder.target.name != target.name);
        *losers.entry(&target.name.service).or_default() += frontends.iter().filter(loses).count();
    }
    assert_eq!(desired.without_local(), without);
    // Each claim that is lost is told, of one Service so many, and then how many more there are.
    let told = losers.into_values().map(|lost| lost.min(CONFLICTS_NAMED + 1)).sum::<usize>();
    assert_eq!(desired.conflicts().len(), told);
    let with_ports = state.services().values().filter(|service| !service.ports.is_empty());
    let cluster_ips: BTreeSet<IpAddr> = with_ports.flat_map(|service| service.cluster_ips.iter().copied()).collect();
    assert_eq!(desired.cluster_ips().collect::<BTreeSet<_>>(), cluster_ips);
    for frontend in desired.frontends() {
        let holder = desired.holder(&frontend).unwrap();
        if let Frontend::Address { ip, .. } = frontend {
            assert_eq!(holder.role == Role::ClusterIp, cluster_ips.contains(&ip), "{frontend}");
        }
    }
}

/// The frontends that a change of a service may touch: those it claims, and all at its ClusterIPs.
fn reach(desired: &Desired, state: &State, service: &ObjectName) -> (BTreeSet<Frontend>, BTreeSet<IpAddr>) {
    let claimed = desired.targets_of(service).flat_map(|(_, _, frontends)| frontends.iter().copied()).collect();
    let ips = state.services().get(service).map(|service| service.cluster_ips.iter().copied().collect());
    (claimed, ips.unwrap_or_default())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn following_equals_starting_anew(settings in settings(), history in history()) {
        let mut world = World::new(settings);
        for event in history {
            let again = event.clone();
            world.step(event).unwrap();
            prop_assert_eq!(format!("{:?}", world.desired), format!("{:?}", Desired::of(&world.state, world.view())));
            world.assert_in_force();
            assert_recounted(&world.state, &world.desired);
            // The same once more is nothing.
            world.state.apply(again);
            prop_assert!(world.state.changes().is_empty());
            let touched = world.desired.update(&world.state, &Default::default(), world.view());
            prop_assert_eq!(world.reconciler.sync(&world.desired, touched).unwrap().changes, 0);
            prop_assert_eq!(world.reconciler.check(&world.desired).unwrap(), None);
        }
    }

    #[test]
    fn the_order_of_events_about_different_objects_does_not_matter(
        settings in settings(), history in history(), order in any::<u64>(),
    ) {
        let mut in_order = World::new(settings.clone());
        let mut last = BTreeMap::new();
        for event in history {
            last.insert(object(&event), event.clone());
            in_order.follow(event);
        }
        let mut shuffled: Vec<_> = last.into_values().collect();
        let count = shuffled.len();
        shuffled.rotate_left(order as usize % count);
        if order % 2 == 1 {
            shuffled.reverse();
        }
        let mut other = World::new(settings);
        shuffled.into_iter().for_each(|event| drop(other.follow(event)));
        prop_assert_eq!(format!("{:?}", in_order.state), format!("{:?}", other.state));
        prop_assert_eq!(format!("{:?}", in_order.desired), format!("{:?}", other.desired));
    }

    #[test]
    fn a_change_of_one_service_touches_only_its_own_rows(settings in settings(), history in history(), last in event()) {
        let mut world = World::new(settings);
        for event in history {
            world.step(event).unwrap();
        }
        let mut services: BTreeSet<ObjectName> = match &last {
            Event::Service(service) => [service.name.clone()].into(),
            Event::ServiceGone(name) => [name.clone()].into(),
            Event::Slice(slice) => [slice.service.clone()].into(),
            _ => return Ok(()),
        };
        if let Event::Slice(slice) = &last {
            let owns = |name: &&ObjectName| world.state.slices_of(name).any(|other| other.name == slice.name);
            services.extend(["a", "b", "c", "d"].map(|name| ObjectName::new("default", name)).iter().filter(owns).cloned());
        }
        let look = |world: &World| -> Vec<_> {
            services.iter().map(|service| reach(&world.desired, &world.state, service)).collect()
        };
        let turns = |world: &World| -> BTreeSet<Turn> {
            let targets = services.iter().flat_map(|service| world.desired.targets_of(service));
            targets.map(|(_, target, _)| Turn::of(&target.name, target.family)).collect()
        };
        let mut own_turns = turns(&world);
        let mut reached = look(&world);
        world.fake().log.clear();
        let report = world.step(last).unwrap();
        prop_assert!(!report.full);
        reached.extend(look(&world));
        own_turns.extend(turns(&world));
        for change in std::mem::take(&mut world.fake().log) {
            if let Change::Add(Key::Turn(turn, _), _) | Change::Delete(Key::Turn(turn, _), _) = change {
                // A frontend that they take from another, or leave to it, moves that one's turn too.
                let moved = |(frontends, _): &(BTreeSet<Frontend>, BTreeSet<IpAddr>)| {
                    frontends.iter().any(|frontend| {
                        world.state.services().keys().flat_map(|name| world.desired.targets_of(name)).any(
                            |(_, target, claimed)| claimed.contains(frontend) && Turn::of(&target.name, target.family) == turn,
                        )
                    })
                };
                prop_assert!(own_turns.contains(&turn) || reached.iter().any(moved), "{turn:?} is none of {services:?}");
            }
            if let Change::Add(Key::Of(frontend, _), _) | Change::Delete(Key::Of(frontend, _), _) = change {
                let ours = reached.iter().any(|(frontends, ips)| {
                    frontends.contains(&frontend) || matches!(frontend, Frontend::Address { ip, .. } if ips.contains(&ip))
                });
                prop_assert!(ours, "{frontend} has nothing to do with {services:?}");
            }
        }
    }

    #[test]
    fn an_endpoint_more_or_less_changes_few_rows(settings in settings(), service in service(), count in 1..60u8, gone in any::<Index>()) {
        let mut settings = settings;
        if !matches!(settings.schedule.scheduler, Scheduler::Random | Scheduler::Rr) {
            settings.schedule.scheduler = Scheduler::Random;
        }
        let mut world = World::new(settings);
        let cost = |report: Report, world: &mut World| -> Result<(), TestCaseError> {
            let frontends = world.desired.frontends().count();
            // Of each frontend: a slot written, or deleted and another moved there, in two lists; the verdict and the
            // chain of affinity replaced. The address itself, once in each family. Chains of the new number of slots:
            // at most a policy's, two that pick and two behind affinity, and one that remembers, for each kind of key.
            let rows = frontends * (2 * 3 + 6) + 2;
            prop_assert!(!report.full && report.changes <= rows + frontends * 6, "{} frontends: {report:?}", frontends);
            Ok(())
        };
        // Where slots are positions, one endpoint more or less may move all of them.
        let mut service = service;
        service.scheduling = service.scheduling.filter(|asked| matches!(asked.scheduler, Some(Scheduler::Rr)));
        service.scheduling.iter_mut().for_each(|asked| asked.weights = Weights::default());
        let name = service.name.clone();
        let port = service.ports[0].clone();
        world.step(Event::Service(service)).unwrap();
        let slice = |ends: &[u8]| {
            let endpoint = |last: &u8| SliceEndpoint {
                ip: IpAddr::from([10, 244, 0, *last]),
                ready: true,
                serving: true,
                terminating: false,
                node: Some(if last.is_multiple_of(2) { "here".into() } else { "there".into() }),
                zone: None,
                pod: None,
                hints: None,
            };
            Event::Slice(EndpointSlice {
                name: name.clone(),
                service: name.clone(),
                family: Family::V4,
                ports: [SlicePort { name: port.name.clone(), protocol: port.protocol, port: 8080 }].into(),
                endpoints: ends.iter().map(endpoint).collect(),
                trigger_time: None,
            })
        };
        let mut ends: Vec<u8> = (1..=count).collect();
        world.step(slice(&ends)).unwrap();
        ends.push(count + 1);
        let report = world.step(slice(&ends)).unwrap();
        cost(report, &mut world)?;
        ends.remove(gone.index(ends.len()));
        let report = world.step(slice(&ends)).unwrap();
        cost(report, &mut world)?;
        world.assert_in_force();
    }

    #[test]
    fn chains_of_single_services_are_there_exactly_while_rows_need_them(settings in settings(), history in history()) {
        let mut world = World::new(settings);
        for event in history {
            world.step(event).unwrap();
            // The first look may have to read, the second deletes.
            world.reconciler.check(&world.desired).unwrap();
            world.reconciler.check(&world.desired).unwrap();
            let transient = |name: &Arc<str>| Chain::is_transient(name);
            let there: BTreeSet<_> = world.fake().chain_names().into_iter().filter(transient).collect();
            let rows = world.fake().rows();
            let wanted: BTreeSet<_> = world.anew(&rows).chains.into_keys().filter(transient).collect();
            prop_assert_eq!(there, wanted);
            prop_assert_eq!(&world.fake().complaints, &Vec::<String>::new());
        }
    }
}
