//! Endpoints that come and go every 10 ms, as far as the machine can.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Objects, Report};
use kubeferry_tests::on_both_datapaths;

use crate::RIGHT;
use crate::answers::{caught_up_with, started};

const CHANGES: u32 = 400;
const EACH: Duration = Duration::from_millis(10);
/// How many of them there have to be within one second, the fastest, or it was not tried.
const IN_A_SECOND: usize = 90;

/// The pod itself serves all the time, as one does whose readiness probe flaps: no request may fail, and no connection that is
/// open.
fn slices_that_flap(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let mut changed = Vec::new();
    let flap = || {
        let began = Instant::now();
        for round in 1..=CHANGES {
            let web = if round % 2 == 0 { vec![1, 2] } else { vec![1] };
            let objects = Objects { web, ..Objects::default() };
            objects.web_slices().iter().try_for_each(|slice| place.server().apply(slice))?;
            changed.push(began.elapsed());
            sleep((EACH * round).saturating_sub(began.elapsed()));
        }
        Ok(())
    };
    let (right, seen) = caught_up_with(&place, RIGHT, flap).unwrap();
    let since =
        |from: Duration| changed.iter().filter(move |at| (from..from + Duration::from_secs(1)).contains(*at)).count();
    let rate = changed.iter().copied().map(since).max().unwrap_or_default();
    report.add(&format!("EndpointSlices that flap {CHANGES} times, {rate} of them within a second"), &seen, right);
    place.nothing_seen(&seen).unwrap();
    assert!(rate >= IN_A_SECOND, "only {rate} changes in a second, the fastest: the machine has too much else to do");
    place.until_exact().unwrap();
}

on_both_datapaths! { slices_that_flap, }
