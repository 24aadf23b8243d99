//! Endpoints that come and go a hundred times a second.

use std::thread::sleep;
use std::time::{Duration, Instant};

use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Objects, Report};
use kubeferry_tests::on_both_datapaths;

use crate::RIGHT;
use crate::answers::{caught_up_with, started};

const CHANGES: u32 = 400;
const EACH: Duration = Duration::from_millis(10);

/// The pod itself serves all the time, as one does whose readiness probe flaps: no request may fail, and no connection that is
/// open.
fn slices_that_flap(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let mut took = Duration::ZERO;
    let flap = || {
        let began = Instant::now();
        for round in 1..=CHANGES {
            let web = if round % 2 == 0 { vec![1, 2] } else { vec![1] };
            let objects = Objects { web, ..Objects::default() };
            objects.web_slices().iter().try_for_each(|slice| place.server().apply(slice))?;
            sleep((EACH * round).saturating_sub(began.elapsed()));
        }
        took = began.elapsed();
        Ok(())
    };
    let (right, seen) = caught_up_with(&place, flap).unwrap();
    let rate = f64::from(CHANGES) / took.as_secs_f64();
    report.add(&format!("EndpointSlices that flap {rate:.0} times a second, {CHANGES} times"), &seen, right);
    place.none_failed(&seen).unwrap();
    assert!(right < RIGHT);
    place.until_exact().unwrap();
}

on_both_datapaths! { slices_that_flap, }
