//! A node under requests from everywhere, and a fault in the midst of them.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kubeferry_tests::client::{patience, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Recorded, Report, Traffic};
use kubeferry_tests::load::{Client, Kept, Way};
use kubeferry_tests::site::{LOAD_BALANCER_IPS, NODE_IPS, Site, VIPS, at};

/// How long what a test waits for may take, where that is no measure: generous, the machine is busy.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// How long a fault may be seen, and how long the proxy may take to put right what nobody sees, where a trial has no time of its own: six
/// times what was measured on an overloaded machine (4.7 s, `docs/reliability.md`). It is there to find what takes ten times as long as
/// it did, and is no measure.
pub const RIGHT: Duration = Duration::from_secs(30);
/// A request that is not answered within this time has failed: long enough for a packet that was lost once.
const ANSWER: Duration = Duration::from_secs(3);
/// Endpoints: two on the node, and one beyond it.
pub const EVERYWHERE: [&str; 3] = ["1", "2", "remote"];

/// What clients may see of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sees {
    /// Every request is answered, and in time ([`Recorded::nothing_seen`]).
    Nothing,
    /// What is begun before all is right again may fail.
    NewFail,
}

/// A node that serves.
pub struct Trial {
    pub site: Site,
    /// How long a fault may be seen, from its beginning, and last, from the end of the harm, which may itself take its time.
    pub right: Duration,
    report: Mutex<Report>,
}

impl Trial {
    /// A node with these flags more, which serves.
    pub fn start(datapath: Datapath, flags: &[&str]) -> Self {
        let trial = Self::build(datapath, flags, None);
        trial.site.run().unwrap();
        trial.site.until_served().unwrap();
        trial
    }

    /// A node that nobody serves yet; `tools` has programs in the place of the system's.
    pub fn build(datapath: Datapath, flags: &[&str], tools: Option<&Path>) -> Self {
        let report = Mutex::new(Report::new(&datapath));
        let site = Site::build(datapath, &EVERYWHERE, flags, tools.map(Path::to_owned)).unwrap();
        Self { site, right: RIGHT, report }
    }

    /// Who asks whom.
    pub fn ways(&self) -> Vec<Way<'_>> {
        let site = &self.site;
        vec![
            (site.client(), at(VIPS[0], 80)),
            (site.client(), at(NODE_IPS[1], 30080)),
            (site.outside(), at(NODE_IPS[0], 30080)),
            (site.outside(), at(LOAD_BALANCER_IPS[1], 80)),
            (site.node(), at(VIPS[1], 80)),
            (site.node(), at(VIPS[0], 80)),
        ]
    }

    /// Times that drift was repaired, and rows.
    pub fn drift(&self) -> (u64, u64) {
        let status = self.status();
        let [repairs, rows] = ["repairs", "rows"].map(|field| status["drift"][field].as_u64().unwrap());
        (repairs, rows)
    }

    /// The document of `kubeferry status`, which itself fails where something is wrong.
    pub fn status(&self) -> serde_json::Value {
        let status = || serde_json::from_str(&self.get("status")?).ok();
        until_for(PATIENCE, "the status", status).unwrap()
    }

    fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://127.0.0.1:10249/{path}");
        let get = || kubeferry::status::get(&url, PATIENCE).ok();
        Some(self.site.node().run(get).unwrap()?.body)
    }

    /// A value of `/metrics`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let body = self.get("metrics")?;
        body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Does `harm` while requests come from everywhere, waits until it has been counted as drift, and until all are
    /// answered.
    pub fn drifts(&self, fault: &str, sees: Sees, harm: impl FnOnce()) -> Recorded {
        let (before, _) = self.drift();
        self.suffers(fault, sees, harm, || (self.drift().0 > before).then_some(()))
    }

    /// Does `harm` while requests come from everywhere; waits until it is `over`, and until all are answered. Connections that
    /// are open and silent meanwhile go on.
    pub fn suffers(&self, fault: &str, sees: Sees, harm: impl FnOnce(), over: impl FnMut() -> Option<()>) -> Recorded {
        let mut kept = Kept::open(&self.ways()).unwrap();
        let seen = self.watches(fault, sees, harm, over);
        kept.ask().unwrap_or_else(|error| panic!("{fault}: a connection that was open: {error:#}"));
        seen
    }

    /// The same, but nothing is asked of connections that were silent.
    pub fn watches(&self, fault: &str, sees: Sees, harm: impl FnOnce(), over: impl FnMut() -> Option<()>) -> Recorded {
        self.watches_by(&self.ways(), fault, sees, harm, over)
    }

    /// The same by these ways alone.
    pub fn watches_by<C: Client + ?Sized>(
        &self,
        ways: &[Way<'_, C>],
        fault: &str,
        sees: Sees,
        harm: impl FnOnce(),
        over: impl FnMut() -> Option<()>,
    ) -> Recorded {
        let ran = Traffic::during(ways, ANSWER, |traffic| {
            traffic.go_on()?;
            let began = Instant::now();
            harm();
            let harmed = Instant::now();
            until_for(PATIENCE, "it to be over", over)?;
            let since_harm = harmed.elapsed();
            traffic.go_on()?;
            Ok((began, since_harm))
        });
        let ((began, since_harm), seen) = ran.unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        // What clients see of it, or where that is nothing, what the proxy does about it once the harm is done.
        let right = if seen.failures.is_empty() { since_harm } else { seen.wrong_for(began) };
        self.report.lock().unwrap().add(fault, &seen, right);
        assert!(seen.failures.iter().all(|failure| failure.ended >= began), "{fault}: {:?}", seen.none_failed());
        is_soon_right(self.right, seen.wrong_for(began), since_harm)
            .unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        // Also where the proxy calls it repaired and everybody is answered.
        self.site.until_exact_within(self.right).unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        if sees == Sees::Nothing {
            seen.nothing_seen().unwrap_or_else(|error| panic!("{fault}: {error:#}"));
        }
        seen
    }
}

/// Fails where clients saw a fault for longer than they may, or where it lasted too long after the harm.
fn is_soon_right(within: Duration, wrong_for: Duration, since_harm: Duration) -> Result<()> {
    let most = patience(within);
    ensure!(wrong_for <= most, "clients saw it for {wrong_for:?}: {most:?} at most");
    ensure!(since_harm <= most, "it was over {since_harm:?} after it was done: {most:?} at most");
    Ok(())
}

#[test]
fn what_is_seen_or_lasts_too_long_is_noticed() {
    let (soon, late) = (patience(RIGHT), patience(RIGHT) + Duration::from_millis(1));
    is_soon_right(RIGHT, soon, soon).unwrap();
    assert!(is_soon_right(RIGHT, late, soon).unwrap_err().to_string().contains("clients saw it for"));
    assert!(is_soon_right(RIGHT, soon, late).unwrap_err().to_string().contains("it was over"));
    is_soon_right(2 * RIGHT, late, late).unwrap();
}
