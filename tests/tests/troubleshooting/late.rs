//! Section 8, changes come late: each cause that the page names, and where it shows.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::until;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::MANIFESTS;
use serde_json::Value;

use super::page::{code, commands, section, shows};
use super::served::{Served, entered};

/// What `kubeferry status` prints; the page shows its lines about syncs.
fn status(served: &Served) -> String {
    let section = section(8);
    let (text, is_well) = entered(served.node(), &commands(&section, "kubeferry status")[0]);
    assert_eq!(is_well, !text.contains(", failed, "), "{text}");
    shows(&section, "last sync", &text);
    text
}

/// The Service with another address more.
fn with_address(last: u8) -> String {
    MANIFESTS
        .replace("  clusterIP: 10.96.0.10\n", &format!("  clusterIP: 10.96.0.10\n  externalIPs: [192.0.2.{last}]\n"))
}

/// The seconds in a histogram, and how many were counted.
fn histogram(served: &Served, name: &str) -> (f64, f64) {
    let metrics = served.get("/metrics");
    let all = |end: &str| -> f64 {
        let lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{end}")));
        lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
    };
    (all("_sum"), all("_count"))
}

/// The server that has told of a change late, and not this proxy: the one histogram has what the other has not.
fn what_was_late_before_it_came_here_is_told_apart(datapath: Datapath) {
    let served = Served::start(datapath, MANIFESTS, &[]);
    let of_the_page = |start: &str| {
        let all = code(&section(8));
        all.into_iter().find(|code| code.starts_with(start) && code.ends_with("_seconds")).unwrap()
    };
    let names = [of_the_page("kubeferry_change_"), of_the_page("kubeproxy_network_")];
    let before = names.each_ref().map(|name| histogram(&served, name));
    // Changes of before the start are nobody's.
    let changed = Timestamp::now();
    let waited = Duration::from_secs(6);
    std::thread::sleep(waited);
    let annotated = format!(
        "{{name: web-1, namespace: default, annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{changed}'}},"
    );
    let second = ", {addresses: [10.244.1.2], nodeName: worker-1}";
    served.change(&MANIFESTS.replace("{name: web-1, namespace: default,", &annotated).replace(second, ""));
    let after = names.each_ref().map(|name| histogram(&served, name));
    let more = [0, 1].map(|at| (after[at].0 - before[at].0, after[at].1 - before[at].1));
    assert!(more.iter().all(|(_, count)| *count >= 1.0), "{more:?}");
    let late = more[1].0 / more[1].1 - more[0].0 / more[0].1;
    assert!(late >= waited.as_secs_f64() - 1.0, "{more:?}");
    let sync = served.json("/api/v1/history")["items"][0].clone();
    let [kernel, cluster] = ["changeToKernelSeconds", "lagSeconds"].map(|field| sync[field].as_f64().unwrap());
    assert!(cluster - kernel >= waited.as_secs_f64() - 1.0, "{sync:#}");
    status(&served);
}

fn a_min_sync_period_saves_changes_up(datapath: Datapath) {
    assert!(section(8).contains("`minSyncPeriod` is set"));
    let mut served = Served::start(datapath, MANIFESTS, &[]);
    served.restart(&["--iptables-min-sync-period", "5s"]);
    let history = || served.json("/api/v1/history")["items"].as_array().unwrap().clone();
    let first = history();
    // One is in force when the period is over, and the next waits for another.
    let mut last = first.clone();
    for number in [70, 71] {
        served.web.write(&with_address(number)).unwrap();
        let waits = || (status(&served).contains(" 1 change waiting")).then_some(());
        until("a change to wait", waits).unwrap();
        last = until("it to be in force", || Some(history()).filter(|now| now.len() > last.len())).unwrap();
    }
    let at = |sync: &Value| sync["at"].as_str().unwrap().parse::<Timestamp>().unwrap();
    for pair in last.windows(2) {
        let between = at(&pair[0]).duration_since(at(&pair[1])).as_secs_f64();
        // The clock of what is told is read a little later than that of the pace.
        assert!(between > 4.75, "{last:#?}");
    }
    assert!(status(&served).contains(" 0 changes waiting"));
}

on_both_datapaths! {
    what_was_late_before_it_came_here_is_told_apart,
    a_min_sync_period_saves_changes_up,
}

/// The kernel takes no row any more.
#[test]
fn syncs_that_fail_are_told_with_their_error_and_pause_longer_and_longer() {
    let datapath = Datapath::ebpf().unwrap();
    let Datapath::Ebpf(places) = &datapath else { unreachable!() };
    let bpffs = places.bpffs().to_owned();
    let served = Served::start(datapath, MANIFESTS, &[]);
    Pinned::open(&bpffs).unwrap().freeze_frontends().unwrap();
    let began = Instant::now();
    served.web.write(&with_address(70)).unwrap();
    let failed = || {
        let last = served.json("/api/v1/history")["items"][0].clone();
        (last["failedTimes"].as_i64() >= Some(4)).then_some(last)
    };
    let last = until("four failures", failed).unwrap();
    let (times, passed) = (last["failedTimes"].as_i64().unwrap(), began.elapsed());
    // After so many failures, the pauses before them are over: 200 ms, and each twice the one before.
    let pauses = 0.2 * (2_f64.powi(i32::try_from(times).unwrap() - 1) - 1.0);
    assert!(passed.as_secs_f64() >= pauses, "{times} failures in {passed:?}");
    let text = status(&served);
    let error = last["error"].as_str().unwrap();
    assert!(text.contains(error), "{error:?} is not in {text}");
    assert!(text.contains(", failed, ") && text.contains(" 1 change waiting"), "{text}");
}
