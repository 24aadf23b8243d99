//! Another program writes into our maps.

use std::time::Duration;

use kubeferry_ebpf_common::TCP;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::site::{VIPS, at};

use super::trial::{Sees, Trial};
use kubeferry_tests::client::until_for;

/// Where the machine is so busy that reading all rows takes long, they are read every 30 s only (`SELDOM` of
/// `proxy/src/backend/ebpf/check.rs`).
const SELDOM: Duration = Duration::from_secs(30);

pub fn start(flags: &[&str]) -> (Trial, Pinned) {
    let mut trial = Trial::start(Datapath::ebpf().unwrap(), flags);
    trial.right += SELDOM;
    let pinned = Pinned::open(trial.site.places().bpffs()).unwrap();
    (trial, pinned)
}

#[test]
fn rows_that_are_deleted_or_overwritten_come_back() {
    let (trial, pinned) = start(&[]);
    trial.drifts("frontends deleted", Sees::NewFail, || assert!(pinned.delete_frontends().unwrap() > 0));
    trial.drifts("slots overwritten", Sees::NewFail, || {
        for vip in VIPS {
            assert!(pinned.clear_list(at(vip, 80), TCP).unwrap() > 0);
        }
    });
    trial.drifts("devices deleted", Sees::NewFail, || assert!(pinned.delete_devices().unwrap() > 0));
    trial.drifts("the configuration overwritten", Sees::NewFail, || pinned.clear_config().unwrap());
}

#[test]
fn a_map_that_somebody_fills_is_emptied_of_it() {
    let (trial, pinned) = start(&["--map-sizes", "frontends=1000"]);
    let before = pinned.frontends().unwrap();
    trial.drifts("the map of frontends filled by somebody", Sees::Nothing, || {
        assert_eq!(pinned.fill_frontends().unwrap(), 1000 - before);
    });
    let there = || (pinned.frontends().unwrap() == before).then_some(());
    until_for(trial.right, "the rows of nobody to go", there).unwrap();
}
