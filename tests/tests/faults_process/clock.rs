//! Clocks that jump.

use std::thread::sleep;
use std::time::Duration;

use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic};
use kubeferry_tests::load::Kept;
use kubeferry_tests::on_both_datapaths;

use crate::{PATIENCE, RIGHT};

/// Ahead, and behind: the clock that only counts up (CLOCK_MONOTONIC) of a container with a time namespace, or of one
/// that was moved. The kernel's own goes on, and with it the ages of connections: those that are idle have to live.
fn a_monotonic_clock_that_is_another(datapath: Datapath) {
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    let ways = place.ways();
    let mut idle = Kept::open(&ways).unwrap();
    sleep(Duration::from_secs(1));
    // Connections are looked at when a proxy begins, and every 5 s.
    for (name, offset, looked) in [("10 days ahead", "864000", 6), ("30 s behind", "-30", 1)] {
        let moved = |traffic: &Traffic| {
            traffic.go_on()?;
            let starter =
                ["unshare", "--time", "--monotonic", offset, "--boottime", offset, "--fork", "--kill-child", "--"];
            place.launch_with(&mut place.command_under(&starter)?)?;
            place.mark()?;
            let right = place.until_marked(RIGHT)?;
            sleep(Duration::from_secs(looked));
            traffic.go_on()?;
            Ok(right)
        };
        let (right, seen) = Traffic::during(&ways, PATIENCE, moved).unwrap();
        report.add(&format!("monotonic clock {name}, by a time namespace"), &seen, right);
        place.nothing_seen(&seen).unwrap();
        idle.ask().unwrap_or_else(|error| panic!("{name}: a connection that was idle: {error:#}\n{}", place.log()));
    }
    place.until_exact().unwrap();
}

on_both_datapaths! { a_monotonic_clock_that_is_another, }
