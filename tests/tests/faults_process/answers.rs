//! An API server that is away, or answers wrongly. What is in force stays; what changed meanwhile is caught up with.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use kubeferry_tests::apiserver::{Fault, Resource, Verb};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Recorded, Report, Traffic};
use kubeferry_tests::on_both_datapaths;

use crate::{PATIENCE, RIGHT, RIGHT_BY_TRIES};

/// A place that serves, with every watch running.
pub fn started(datapath: Datapath) -> Place {
    let place = Place::of_server(datapath).unwrap();
    place.start().unwrap();
    let watched = || {
        let all = Resource::WATCHED.into_iter().all(|kind| place.server().count(Verb::Watch, kind) > 0);
        all.then_some(())
    };
    kubeferry_tests::client::until("a watch of every kind", watched).unwrap();
    place
}

/// Has `harm` done under traffic, then something changed, and waits until that is in force: at most for `right`.
pub fn caught_up_with(
    place: &Place,
    right: Duration,
    harm: impl FnOnce() -> Result<()>,
) -> Result<(Duration, Recorded)> {
    Traffic::during(&place.ways(), PATIENCE, |traffic| {
        traffic.go_on()?;
        harm()?;
        place.mark()?;
        let right = place.until_marked(right)?;
        traffic.go_on()?;
        Ok(right)
    })
}

fn a_server_that_is_away(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let server = place.server();
    let away = |traffic: &Traffic| {
        traffic.go_on()?;
        server.fault(Fault::Down);
        for _ in 0..3 {
            place.mark()?;
            sleep(Duration::from_secs(1));
        }
        ensure!(!place.is_marked(), "nobody can know yet");
        traffic.go_on()?;
        // After long, the history is not what it was.
        server.compact();
        server.fault(Fault::Up);
        let right = place.until_marked(RIGHT_BY_TRIES)?;
        traffic.go_on()?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, away).unwrap();
    report.add("API server gone for 3 s; from its return", &seen, right);
    place.nothing_seen(&seen).unwrap();
    let flapping = || {
        for _ in 0..8 {
            server.fault(Fault::Down);
            place.mark()?;
            sleep(Duration::from_millis(150));
            server.fault(Fault::Up);
            sleep(Duration::from_millis(150));
        }
        Ok(())
    };
    let (right, seen) = caught_up_with(&place, RIGHT_BY_TRIES, flapping).unwrap();
    report.add("API server down and up every 150 ms, eight times; from the last", &seen, right);
    place.nothing_seen(&seen).unwrap();
    place.until_exact().unwrap();
}

fn wrong_answers(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    for (name, fault) in [
        ("410 for all that is watched", None),
        ("429 with Retry-After of 1 s, 4 times", Some(Fault::Status(429, 4))),
        ("500, 4 times", Some(Fault::Status(500, 4))),
        ("503, 4 times", Some(Fault::Status(503, 4))),
        ("answers that are no JSON, 4 times", Some(Fault::Garbage(4))),
        ("answers that break off in the middle, 4 times", Some(Fault::HalfJson(4))),
    ] {
        let harm = || {
            if let Some(fault) = fault {
                place.server().fault(fault);
            }
            place.server().fault(Fault::Gone410);
            place.server().fault(Fault::CutConnections);
            Ok(())
        };
        let right = if fault.is_none() { RIGHT } else { RIGHT_BY_TRIES };
        let (right, seen) = caught_up_with(&place, right, harm).unwrap();
        report.add(name, &seen, right);
        place.nothing_seen(&seen).unwrap();
    }
    place.until_exact().unwrap();
}

on_both_datapaths! { a_server_that_is_away, wrong_answers, }
