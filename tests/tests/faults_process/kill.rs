//! The process is killed, and started again.

use std::thread::sleep;
use std::time::Duration;

use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic, seed};
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::random::Rng;

/// How long a client waits for an answer: with less, a busy machine would be a fault.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long anything may take until it is right again.
pub const RIGHT: Duration = Duration::from_secs(60);

/// Kills come while many rows are being written, while the objects are read, and while programs are loaded.
fn killed_at_random_moments(datapath: Datapath) {
    let mut random = Rng::new(seed());
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
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
    place.none_failed(&seen).unwrap();
    place.until_exact().unwrap();
}

on_both_datapaths! { killed_at_random_moments, }
