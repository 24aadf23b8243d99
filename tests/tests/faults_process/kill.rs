//! The process is killed, and started again.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kubeferry_tests::client::Running;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic, longer, seed};
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::random::Rng;

use crate::{PATIENCE, RIGHT};

/// Kills come while many rows are being written, while the objects are read, and while programs are loaded. Once, or again and
/// again for as long as [`longer`] says.
fn killed_at_random_moments(datapath: Datapath) {
    let end = Instant::now() + longer();
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    loop {
        let mut random = Rng::new(seed());
        let killed = |traffic: &Traffic| {
            traffic.go_on()?;
            for round in 0..10 {
                place.change(|objects| objects.more = if round % 2 == 0 { 150 } else { 20 })?;
                sleep(Duration::from_millis(random.below(250) as u64));
                place.launch()?;
            }
            place.mark()?;
            let right = place.until_marked(RIGHT)?;
            traffic.go_on()?;
            Ok(right)
        };
        let (right, seen) = Traffic::during(&place.ways(), PATIENCE, killed).unwrap();
        report.add("kill -9 at random moments, ten times, while 130 Services come or go", &seen, right);
        place.nothing_seen(&seen).unwrap();
        place.until_exact().unwrap();
        if Instant::now() >= end {
            break;
        }
    }
}

/// New processes are started beside those that are there, and the oldest are killed, wherever they are: some serve, some wait for
/// another to end.
fn a_storm_of_restarts(datapath: Datapath) {
    let mut random = Rng::new(seed());
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    let storm = |traffic: &Traffic| {
        traffic.go_on()?;
        let mut others = Vec::new();
        place.kill();
        for _ in 0..16 {
            others.push(Running::start_command(&mut place.command()?, place.node())?);
            sleep(Duration::from_millis(random.below(80) as u64));
            if others.len() > 3 {
                drop(others.remove(0));
            }
        }
        place.mark()?;
        let right = place.until_marked(RIGHT)?;
        // By those that the storm has left: another start would put right whatever they have not.
        place.until_exact()?;
        traffic.go_on()?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, storm).unwrap();
    report.add("restart storm: 16 starts within a second, up to four processes at a time", &seen, right);
    place.nothing_seen(&seen).unwrap();
}

on_both_datapaths! { killed_at_random_moments, a_storm_of_restarts, }
