//! kube-proxy's meaning of health (`pkg/proxy/healthcheck/proxy_health.go`), without clock and network.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use crate::state::objects::{Family, Node};

/// The time twice: to measure with, and to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Now {
    /// Never goes back.
    pub instant: Instant,
    /// The wall clock.
    pub wall: Timestamp,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { instant: Instant::now(), wall: Timestamp::now() }
    }
}

/// What of a family is done and what waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Progress {
    updated: Option<Timestamp>,
    queued: Option<Instant>,
}

/// What health depends on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthState {
    timeout: Duration,
    families: BTreeMap<Family, Progress>,
    eligible: bool,
    needs_node: bool,
    /// Since when what is in the kernel cannot be looked at, or not be repaired.
    unrepaired: Option<Instant>,
    /// When the run loop was last known to go on.
    beat: Instant,
}

/// A run loop gives a sign every 2 s or so; however short the timeout is, it may take this long on a busy machine.
const STILL: Duration = Duration::from_secs(20);

/// Health at a moment; serialized, it is the body of `/livez`, and with `node_eligible` that of `/healthz`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The newest successful sync of any family; the year 1 before the first, as Go writes its zero time.
    pub last_updated: String,
    /// The moment.
    pub current_time: String,
    /// Whether the node may get new traffic: it is known, not being deleted, and not marked by the cluster autoscaler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_eligible: Option<bool>,
    /// Whether no change has waited too long.
    pub healthy: bool,
    /// The same by family, `IPv4` and `IPv6`, for families that were synced.
    pub status: BTreeMap<&'static str, FamilyReport>,
}

/// The health of one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyReport {
    /// Its last successful sync.
    pub last_updated: String,
    /// Whether no change of it has waited too long.
    pub healthy: bool,
}

const NEVER: &str = "0001-01-01T00:00:00Z";

impl HealthState {
    /// See [`super::Health::new`].
    pub fn new(timeout: Duration, needs_node: bool, now: Now) -> Self {
        Self {
            timeout,
            families: BTreeMap::new(),
            eligible: !needs_node,
            needs_node,
            unrepaired: None,
            beat: now.instant,
        }
    }

    /// The run loop goes on.
    pub fn beat(&mut self, now: Now) {
        self.beat = now.instant;
    }

    /// Another time that a change may wait.
    pub fn change(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// A change waits; only the oldest counts.
    pub fn queued(&mut self, family: Family, now: Now) {
        self.families.entry(family).or_default().queued.get_or_insert(now.instant);
    }

    /// Nothing waits any more; the run loop goes on, however long that took.
    pub fn updated(&mut self, family: Family, now: Now) {
        self.beat(now);
        self.families.insert(family, Progress { updated: Some(now.wall), queued: None });
    }

    /// What is in the kernel cannot be looked at, or not be repaired; only since when counts, and no sync ends it.
    pub fn unrepaired(&mut self, now: Now) {
        self.unrepaired.get_or_insert(now.instant);
    }

    /// All of the kernel could be looked at, and repaired.
    pub fn repaired(&mut self) {
        self.unrepaired = None;
    }

    /// Our Node, or that it is gone.
    pub fn node(&mut self, node: Option<&Node>) {
        self.eligible = node.map_or(!self.needs_node, |node| !node.deleting && !node.to_be_deleted);
    }

    /// The health at this moment. A family is healthy before its first sync, while nothing of it waits, and while the oldest
    /// change has waited for less than the timeout; but where the run loop has stood still for that long, changes may wait that
    /// nobody knows of, and where nothing could be repaired for that long, something may be gone: none is then.
    pub fn report(&self, now: Now) -> Report {
        let for_long = |since: Option<Instant>| {
            since.is_some_and(|since| now.instant.saturating_duration_since(since) >= self.timeout)
        };
        let still = now.instant.saturating_duration_since(self.beat) >= self.timeout.max(STILL);
        let synced = self.families.iter().filter_map(|(family, progress)| Some((family, progress.updated?, progress)));
        let status: BTreeMap<_, _> = synced
            .clone()
            .map(|(family, updated, progress)| {
                let healthy = !still && !for_long(self.unrepaired) && !for_long(progress.queued);
                (family.as_str(), FamilyReport { last_updated: updated.to_string(), healthy })
            })
            .collect();
        let newest = synced.map(|(_, updated, _)| updated).max();
        Report {
            last_updated: newest.map_or_else(|| NEVER.to_owned(), |newest| newest.to_string()),
            current_time: now.wall.to_string(),
            node_eligible: Some(self.eligible),
            healthy: status.values().all(|family| family.healthy),
            status,
        }
    }
}

impl Report {
    /// The answer of `/healthz`: whether it is 200, and the body.
    pub fn healthz(self) -> (bool, Self) {
        let good = self.healthy && self.node_eligible == Some(true);
        (good, self.seen(good))
    }

    /// The answer of `/livez`: whether it is 200, and the body.
    pub fn livez(self) -> (bool, Self) {
        let good = self.healthy;
        (good, Self { node_eligible: None, ..self }.seen(good))
    }

    /// Where all is well kube-proxy tells the present as the last update, as it did when it synced all the time.
    fn seen(self, good: bool) -> Self {
        if good { Self { last_updated: self.current_time.clone(), ..self } } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    struct Clock(Instant);

    impl Clock {
        /// So many seconds after the start.
        fn at(&self, seconds: u64) -> Now {
            let wall = Timestamp::from_second(1_700_000_000 + seconds.cast_signed()).unwrap();
            Now { instant: self.0 + Duration::from_secs(seconds), wall }
        }
    }

    fn node() -> Node {
        Node {
            name: "n".into(),
            zone: None,
            primary_ips: Vec::new(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            deleting: false,
            to_be_deleted: false,
        }
    }

    fn started() -> (HealthState, Clock) {
        let clock = Clock(Instant::now());
        (HealthState::new(TIMEOUT, false, clock.at(0)), clock)
    }

    /// The health at this moment, where the run loop goes on.
    fn report(state: &mut HealthState, now: Now) -> Report {
        state.beat(now);
        state.report(now)
    }

    #[test]
    fn healthy_before_the_first_sync_however_long_it_takes() {
        let (mut state, clock) = started();
        assert!(report(&mut state, clock.at(0)).healthy);
        state.queued(Family::V4, clock.at(0));
        let report = report(&mut state, clock.at(1000));
        assert!(report.healthy && report.status.is_empty());
        assert_eq!(report.last_updated, NEVER);
    }

    #[test]
    fn the_oldest_waiting_change_of_each_family_counts() {
        let (mut state, clock) = started();
        state.updated(Family::V4, clock.at(1));
        state.updated(Family::V6, clock.at(2));
        assert!(report(&mut state, clock.at(1000)).healthy, "nothing waits");
        state.queued(Family::V6, clock.at(100));
        state.queued(Family::V6, clock.at(150));
        assert!(report(&mut state, clock.at(159)).healthy);
        let late = report(&mut state, clock.at(160));
        assert!(!late.healthy && late.status["IPv4"].healthy && !late.status["IPv6"].healthy);
        assert_eq!(late.last_updated, clock.at(2).wall.to_string());
        state.updated(Family::V4, clock.at(161));
        assert!(!report(&mut state, clock.at(162)).healthy, "another family's sync does not help");
        state.updated(Family::V6, clock.at(163));
        assert!(report(&mut state, clock.at(10_000)).healthy);
    }

    #[test]
    fn a_run_loop_that_stands_still_is_not_healthy_though_nothing_is_known_to_wait() {
        let (mut state, clock) = started();
        assert!(state.report(clock.at(1000)).healthy, "a first sync may take long");
        state.beat(clock.at(1000));
        state.updated(Family::V4, clock.at(1000));
        assert!(state.report(clock.at(1059)).healthy);
        let late = state.report(clock.at(1060));
        assert!(!late.healthy && !late.status["IPv4"].healthy);
        assert!(!late.clone().healthz().0 && !late.livez().0);
        state.beat(clock.at(1061));
        assert!(state.report(clock.at(1062)).healthy);
        state.change(Duration::from_secs(1));
        assert!(state.report(clock.at(1080)).healthy, "it is not heard of every second");
        assert!(!state.report(clock.at(1081)).healthy);
    }

    #[test]
    fn what_cannot_be_repaired_makes_unhealthy_in_time_though_something_is_synced_every_second() {
        let (mut state, clock) = started();
        state.updated(Family::V4, clock.at(0));
        for second in 100..300 {
            state.unrepaired(clock.at(second));
            state.queued(Family::V4, clock.at(second));
            state.updated(Family::V4, clock.at(second));
            assert_eq!(report(&mut state, clock.at(second)).livez().0, second < 160, "{second}");
        }
        state.repaired();
        assert!(report(&mut state, clock.at(300)).livez().0);
        state.unrepaired(clock.at(400));
        assert!(report(&mut state, clock.at(459)).livez().0, "it begins anew");
        assert!(!report(&mut state, clock.at(460)).healthz().0);
    }

    #[test]
    fn a_wall_clock_that_jumps_is_only_shown() {
        let (mut state, clock) = started();
        state.updated(Family::V4, clock.at(0));
        state.queued(Family::V4, clock.at(10));
        for jump in [-1_000_000, 1_000_000] {
            let at = |seconds| {
                let now = clock.at(seconds);
                Now { wall: now.wall + jiff::SignedDuration::from_secs(jump), ..now }
            };
            assert!(report(&mut state, at(69)).healthy, "{jump}");
            let late = report(&mut state, at(70));
            assert!(!late.healthy && late.current_time == at(70).wall.to_string(), "{jump}");
        }
    }

    #[test]
    fn livez_does_not_look_at_the_node() {
        let (mut state, clock) = started();
        state.updated(Family::V4, clock.at(0));
        for bad in [Node { deleting: true, ..node() }, Node { to_be_deleted: true, ..node() }] {
            state.node(Some(&bad));
            let (good, body) = report(&mut state, clock.at(5)).healthz();
            assert!(!good && body.healthy && body.node_eligible == Some(false));
            assert_eq!(body.last_updated, clock.at(0).wall.to_string());
            let (good, body) = report(&mut state, clock.at(5)).livez();
            assert!(good && body.node_eligible.is_none());
            assert_eq!(body.last_updated, clock.at(5).wall.to_string());
            state.node(Some(&node()));
            assert!(report(&mut state, clock.at(5)).healthz().0);
        }
    }

    #[test]
    fn an_unknown_node_is_eligible_only_where_none_is_needed() {
        let clock = Clock(Instant::now());
        for needed in [true, false] {
            let mut state = HealthState::new(TIMEOUT, needed, clock.at(0));
            assert_eq!(report(&mut state, clock.at(0)).node_eligible, Some(!needed));
            state.node(Some(&node()));
            assert_eq!(report(&mut state, clock.at(0)).node_eligible, Some(true));
            state.node(None);
            assert_eq!(report(&mut state, clock.at(0)).node_eligible, Some(!needed));
        }
    }

    #[test]
    fn the_body_is_kube_proxys() {
        let (mut state, clock) = started();
        state.updated(Family::V4, clock.at(0));
        let (_, body) = report(&mut state, clock.at(2)).healthz();
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            "{\"lastUpdated\":\"2023-11-14T22:13:22Z\",\"currentTime\":\"2023-11-14T22:13:22Z\",\"nodeEligible\":true,\
             \"healthy\":true,\"status\":{\"IPv4\":{\"lastUpdated\":\"2023-11-14T22:13:20Z\",\"healthy\":true}}}"
        );
        let (_, body) = report(&mut state, clock.at(2)).livez();
        assert!(!serde_json::to_string(&body).unwrap().contains("nodeEligible"));
    }
}
