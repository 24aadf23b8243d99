//! Signals: at random moments of a start, twice, and one that nobody expects.

use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic, seed};
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::random::Rng;
use rustix::process::Signal;
use std::os::unix::process::ExitStatusExt;

use crate::{PATIENCE, RIGHT};

/// Every one of them ends it, soon and well: none is lost between the steps of a start. The last come when it serves, if a start takes as
/// long as the one that was measured.
fn told_to_end_during_its_start(datapath: Datapath) {
    let mut random = Rng::new(seed());
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    place.kill();
    place.change(|objects| objects.more = 60).unwrap();
    place.mark().unwrap();
    place.launch().unwrap();
    let start = place.until_marked(RIGHT).unwrap();
    let most = usize::try_from(start.as_millis()).unwrap() * 3 / 2;
    println!("a start takes {start:?}");
    let told = |traffic: &Traffic| {
        traffic.go_on()?;
        for round in 0..12 {
            place.change(|objects| objects.more = if round % 2 == 0 { 0 } else { 60 })?;
            place.launch()?;
            sleep(Duration::from_millis(random.below(most) as u64));
            place.signal(Signal::TERM)?;
            let status = place.ended()?;
            // Before it has come to say so, the signal ends it by itself.
            ensure!(status.success() || status.signal() == Some(libc::SIGTERM), "{status}; the log:\n{}", place.log());
        }
        place.launch()?;
        place.mark()?;
        let right = place.until_marked(RIGHT)?;
        traffic.go_on()?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, told).unwrap();
    report.add("SIGTERM at random moments of a start, twelve times", &seen, right);
    place.nothing_seen(&seen).unwrap();
    place.until_exact().unwrap();
}

fn signals_that_come_twice_or_are_not_expected(datapath: Datapath) {
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    for (fault, signals, is_clean) in [
        ("SIGTERM twice", [Signal::TERM, Signal::TERM], true),
        ("SIGINT, then SIGTERM", [Signal::INT, Signal::TERM], true),
        ("SIGHUP, which ends it", [Signal::HUP, Signal::HUP], false),
    ] {
        // Who runs the tests may ignore SIGHUP (nohup), which is inherited.
        place.launch_with(&mut place.command_under(&["env", "--default-signal=HUP"]).unwrap()).unwrap();
        place.until_served().unwrap();
        // What an earlier one left in force serves, too: this one has to have come as far as to follow changes.
        place.mark().unwrap();
        place.until_marked(RIGHT).unwrap();
        let ended = |traffic: &Traffic| {
            traffic.go_on()?;
            place.signal(signals[0])?;
            // It may have ended already.
            drop(place.signal(signals[1]));
            let status = place.ended()?;
            ensure!(status.success() == is_clean, "{fault}: {status}; the log:\n{}", place.log());
            traffic.go_on()?;
            place.launch()?;
            place.mark()?;
            let right = place.until_marked(RIGHT)?;
            traffic.go_on()?;
            Ok(right)
        };
        let (right, seen) = Traffic::during(&place.ways(), PATIENCE, ended).unwrap();
        report.add(fault, &seen, right);
        place.nothing_seen(&seen).unwrap();
    }
    place.until_exact().unwrap();
}

on_both_datapaths! { told_to_end_during_its_start, signals_that_come_twice_or_are_not_expected, }
