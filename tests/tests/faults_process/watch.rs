//! An API server that answers well and tells what is not so: lists that are older than what was seen, or empty; events out of
//! order; watches that end at once.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kubeferry_tests::apiserver::{Fault, Resource, Verb};
use kubeferry_tests::client::{patience, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Recorded, Report, Traffic};
use kubeferry_tests::on_both_datapaths;

use crate::answers::{caught_up_with, started};
use crate::{PATIENCE, RIGHT, RIGHT_BY_TRIES};

/// Has these kinds listed anew, wrongly at first.
fn lists_that_lie(place: &Place, kinds: &[Resource], fault: Fault) -> Result<(Duration, Recorded)> {
    Traffic::during(&place.ways(), PATIENCE, |traffic| {
        traffic.go_on()?;
        for kind in kinds.iter().copied() {
            place.server().fault_on(kind, Fault::Status(410, 1));
            place.server().fault_on(kind, fault);
        }
        let since = Instant::now();
        place.server().fault(Fault::CutConnections);
        while place.server().faults_left() > 0 {
            ensure!(
                since.elapsed() < patience(RIGHT_BY_TRIES),
                "the lists were not asked for; the log:\n{}",
                place.log()
            );
            ensure!(place.is_marked() || place.is_marked(), "what is over came back; the log:\n{}", place.log());
            sleep(Duration::from_millis(50));
        }
        place.mark()?;
        place.until_marked(RIGHT)?;
        let right = since.elapsed();
        ensure!(right <= patience(RIGHT_BY_TRIES), "right only after {right:?}; the log:\n{}", place.log());
        // By an event of the watch, after which the pauses between tries are short again.
        place.mark()?;
        place.until_marked(RIGHT)?;
        traffic.go_on()?;
        Ok(right)
    })
}

fn lists_that_are_not_so(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let old = place.server().version();
    place.mark().unwrap();
    place.until_marked(RIGHT).unwrap();
    let (slices, both) = ([Resource::EndpointSlice], [Resource::Service, Resource::EndpointSlice]);
    for (name, kinds, fault) in [
        ("two lists of slices that are older than what was seen", &slices[..], Fault::OldList(old, 2)),
        ("all Services and slices vanish from two lists and come back", &both[..], Fault::EmptyList(2)),
    ] {
        let (right, seen) = lists_that_lie(&place, kinds, fault).unwrap();
        report.add(name, &seen, right);
        place.nothing_seen(&seen).unwrap();
    }
    assert!(place.log().contains("is not believed yet"), "{}", place.log());
    place.until_exact().unwrap();
}

/// A list that lacks some objects is one of a cluster that has lost them: they are taken away. It is asked for once more a little later, and
/// they come back if that one has them. Whoever is in every list is served all the while.
fn lists_that_lack_some(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let server = place.server();
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, |traffic| {
        traffic.go_on()?;
        for kind in [Resource::Service, Resource::EndpointSlice] {
            // `mark` is before `web`.
            server.fault_on(kind, Fault::PartOfList(1));
        }
        server.fault(Fault::Gone410);
        let gone = || (server.faults_left() == 0 && !place.is_marked() && !place.is_marked()).then_some(());
        until_for(RIGHT, "the shorter lists to be in force", gone)?;
        traffic.go_on()?;
        let right = place.until_marked(RIGHT_BY_TRIES)?;
        traffic.go_on()?;
        Ok(right)
    })
    .unwrap();
    report.add("the Services and slices that half of a list lacks go, and come back with the next", &seen, right);
    place.nothing_seen(&seen).unwrap();
    place.until_exact().unwrap();
}

fn watches_that_are_not_so(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let old = place.server().version();
    place.mark().unwrap();
    place.until_marked(RIGHT).unwrap();
    let replay = || {
        for name in ["mark-ipv4", "mark-ipv6"] {
            place.server().replay(Resource::EndpointSlice, "default", name, old)?;
        }
        // It is listed anew, which takes what is changed next along.
        let listed = place.server().count(Verb::List, Resource::EndpointSlice);
        kubeferry_tests::client::until("a list after events out of order", || {
            (place.server().count(Verb::List, Resource::EndpointSlice) > listed).then_some(())
        })?;
        ensure!(place.is_marked() || place.is_marked(), "an old event was taken over; the log:\n{}", place.log());
        Ok(())
    };
    let (right, seen) = caught_up_with(&place, RIGHT, replay).unwrap();
    report.add("watch events out of order", &seen, right);
    place.nothing_seen(&seen).unwrap();
    let before = place.server().count(Verb::Watch, Resource::EndpointSlice);
    let (right, seen) = caught_up_with(&place, RIGHT_BY_TRIES, || {
        place.server().fault_on(Resource::EndpointSlice, Fault::ShortWatch(4));
        place.server().fault(Fault::CutConnections);
        Ok(())
    })
    .unwrap();
    report.add("watches that end at once, four times", &seen, right);
    place.nothing_seen(&seen).unwrap();
    let watches = place.server().count(Verb::Watch, Resource::EndpointSlice) - before;
    assert!(watches < 20, "{watches} watches were begun");
    place.until_exact().unwrap();
}

on_both_datapaths! { lists_that_are_not_so, lists_that_lack_some, watches_that_are_not_so, }
