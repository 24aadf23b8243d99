//! An API server that is away, or answers wrongly. What is in force stays; what changed meanwhile is caught up with.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kubeferry_tests::apiserver::{Fault, Resource, Verb};
use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Recorded, Report, Traffic};
use kubeferry_tests::on_both_datapaths;

use crate::{PATIENCE, RIGHT, RIGHT_BY_TRIES};

/// How long after a failure an event of a watch makes the next failure a first one (`GOOD` in `proxy/src/watch/api/follow.rs`), and
/// something more.
const CALM: Duration = Duration::from_secs(6);

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

/// Changes something that each of the two watches tells, slices and Services, and waits until both are in force; how long that took.
fn changed_in_both(place: &Place, right: Duration) -> Result<Duration> {
    let mut last = 0;
    place.change(|objects| {
        objects.mark = 3 - objects.mark;
        last = objects.more;
        objects.more += 1;
    })?;
    let since = Instant::now();
    place.until_marked(right)?;
    let new = SocketAddr::from(([10, 96, 1, u8::try_from(1 + last)?], 80));
    let is_there = || Connection::attempt(place.client(), new)?.ask().ok();
    until_for(right.saturating_sub(since.elapsed()), "a new Service", is_there)
        .with_context(|| format!("the log:\n{}", place.log()))?;
    Ok(since.elapsed())
}

fn wrong_answers(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let server = place.server();
    for (name, fault) in [
        ("410 for all that is watched", None),
        ("429 with Retry-After of 1 s, 4 times for each", Some(Fault::Status(429, 4))),
        ("500, 4 times for each", Some(Fault::Status(500, 4))),
        ("503, 4 times for each", Some(Fault::Status(503, 4))),
        ("answers that are no JSON, 4 times for each", Some(Fault::Garbage(4))),
        ("answers that break off in the middle, 4 times for each", Some(Fault::HalfJson(4))),
    ] {
        let (right, seen) = Traffic::during(&place.ways(), PATIENCE, |traffic| {
            traffic.go_on()?;
            // Each of the two watches that lead to rows has its own: the next requests of both go wrong.
            for kind in [Resource::Service, Resource::EndpointSlice] {
                fault.into_iter().for_each(|fault| server.fault_on(kind, fault));
            }
            server.fault(Fault::Gone410);
            server.fault(Fault::CutConnections);
            let right = changed_in_both(&place, if fault.is_none() { RIGHT } else { RIGHT_BY_TRIES })?;
            let left = server.faults_left();
            ensure!(left == 0, "{name}: {left} did not hit");
            traffic.go_on()?;
            Ok(right)
        })
        .unwrap();
        report.add(name, &seen, right);
        place.nothing_seen(&seen).unwrap();
        // The next begins with short pauses between the tries.
        sleep(CALM);
        changed_in_both(&place, RIGHT).unwrap();
    }
    place.until_exact().unwrap();
}

on_both_datapaths! { a_server_that_is_away, wrong_answers, }
