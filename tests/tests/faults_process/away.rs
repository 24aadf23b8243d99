//! An API server that is away for minutes, as in an upgrade of the control plane: nothing that serves may depend on it, and
//! nothing may grow by asking it again.

use std::fs::{read_dir, read_to_string};
use std::thread::{Builder, scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kubeferry_tests::apiserver::{Fault, Resource};
use kubeferry_tests::client::{DEADLINE, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic};
use kubeferry_tests::load::{Client, Way};
use serde_json::json;

use crate::answers::started;
use crate::{PATIENCE, RIGHT_BY_TRIES};

/// How long it is away.
const AWAY: Duration = Duration::from_secs(150);
/// Between two requests of a client: for minutes, what tests of seconds ask would keep a CPU busy.
const PAUSE: Duration = Duration::from_millis(50);
/// How often its health is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(5);
/// Open files more than at the beginning that are none too many.
const FILES: usize = 4;
/// KiB of memory of its own more than at the beginning, likewise.
const MEMORY: u64 = 4096;
const HEARD: &str = "kubeferry_watch_last_heard_timestamp_seconds{kind=\"EndpointSlice\"}";
const ERRORS: &str = "kubeferry_watch_errors_total{kind=\"EndpointSlice\"}";

/// What the process has taken.
#[derive(Debug)]
struct Taken {
    files: usize,
    /// Memory that is its own, in KiB.
    memory: u64,
}

impl Taken {
    fn by(place: &Place) -> Result<Self> {
        let folder = format!("/proc/{}", place.pid()?);
        let status = read_to_string(format!("{folder}/status"))?;
        let own = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        let memory = own.context("no RssAnon")?.trim().parse()?;
        Ok(Self { files: read_dir(format!("{folder}/fd"))?.count(), memory })
    }
}

/// `/livez` and `/healthz` both say that all is well, as kube-proxy's do while no change waits.
fn is_well(place: &Place) -> Result<()> {
    for path in ["livez", "healthz"] {
        let url = format!("http://127.0.0.1:10256/{path}");
        let answer = place.node().run(|| kubeferry::status::get(&url, PATIENCE))??;
        ensure!(answer.code == 200, "{path}: {} {}", answer.code, answer.body);
    }
    Ok(())
}

/// The same until then.
fn stays_well(place: &Place, end: Instant) -> Result<()> {
    while Instant::now() < end {
        sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        is_well(place)?;
    }
    Ok(())
}

/// Gives `web` these endpoints, in slices that say when that was, as the controller's do.
fn give(place: &Place, endpoints: &[u8]) -> Result<()> {
    place.change(|objects| objects.web = endpoints.to_vec())?;
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    for mut slice in place.server().objects(Resource::EndpointSlice) {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] == "web" {
            slice["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
            place.server().put(slice)?;
        }
    }
    Ok(())
}

/// Whether new connections by every way come to this endpoint, each time.
fn all_come_to(place: &Place, server: &str) -> bool {
    let answered = |(from, to): Way<'_, dyn Client>| from.connect_within(to, DEADLINE / 10)?.ask();
    place.ways().into_iter().all(|way| (0..8).all(|_| answered(way).is_ok_and(|(name, _)| name == server)))
}

/// How many changes of slices were taken in after more than 40 s, in both families.
fn late(place: &Place) -> Option<f64> {
    let of = |family: &str| {
        let [all, soon] = ["count{", "bucket{le=\"40.0\","]
            .map(|part| place.metric(&format!("kubeferry_watch_lag_seconds_{part}ip_family=\"{family}\"}}")));
        Some(all? - soon?)
    };
    Some(of("IPv4")? + of("IPv6")?)
}

fn is_away_for_minutes(datapath: Datapath) {
    let place = started(datapath);
    let mut report = Report::new(&place.datapath);
    let late_before = late(&place).unwrap();
    let away = |traffic: &Traffic| {
        traffic.go_on()?;
        place.server().fault(Fault::Down);
        let began = Instant::now();
        // The first answer that fails to come costs memory of its own.
        sleep(2 * LOOK);
        let (before, heard, errors) = (Taken::by(&place)?, place.metric(HEARD), place.metric(ERRORS));
        // One endpoint goes, and the Service of one endpoint gets the other.
        let changes: [fn(&Place) -> Result<()>; 2] = [|place| give(place, &[2]), Place::mark];
        for (change, at) in changes.into_iter().zip([AWAY / 3, AWAY * 2 / 3]) {
            stays_well(&place, began + at)?;
            change(&place)?;
        }
        stays_well(&place, began + AWAY)?;
        let after = Taken::by(&place)?;
        println!("{}: {before:?}, then {after:?}", place.datapath.name());
        ensure!(after.files <= before.files + FILES, "{before:?}, then {after:?}");
        ensure!(after.memory <= before.memory + MEMORY, "{before:?}, then {after:?}");
        ensure!(place.metric(HEARD) == heard && heard.is_some(), "heard of what is away");
        ensure!(place.metric(ERRORS) > errors, "no failure was counted");
        ensure!(!all_come_to(&place, "web2") && !place.is_marked(), "nobody can know yet");
        traffic.go_on()?;
        // After long, the history is not what it was.
        place.server().compact();
        place.server().fault(Fault::Up);
        let since = Instant::now();
        let is_right = || (place.is_marked() && all_come_to(&place, "web2")).then_some(());
        until_for(RIGHT_BY_TRIES, "one endpoint less and another one more", is_right)?;
        let right = since.elapsed();
        traffic.go_on()?;
        is_well(&place)?;
        Ok(right)
    };
    let (right, seen) = Traffic::during_every(PAUSE, &place.ways(), PATIENCE, away).unwrap_or_else(|error| {
        panic!("{error:#}; the log:\n{}", place.log());
    });
    report.add(&format!("API server gone for {} s; from its return", AWAY.as_secs()), &seen, right);
    place.nothing_seen(&seen).unwrap();
    let told = || (late(&place)? >= late_before + 2.0).then_some(());
    until_for(PATIENCE, "the metric to tell how late the change was taken in", told).unwrap();
    place.until_exact().unwrap();
}

/// One test for both datapaths, since it mostly waits: the other tests go on beside it.
#[test]
fn a_server_that_is_away_for_minutes() {
    scope(|scope| {
        for datapath in [Datapath::Nftables, Datapath::ebpf().unwrap()] {
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            Builder::new().name(name).spawn_scoped(scope, || is_away_for_minutes(datapath)).unwrap();
        }
    });
}
