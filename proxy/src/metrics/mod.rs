//! The metrics at `/metrics`: kube-proxy's names where it has one (`pkg/proxy/metrics/metrics.go`), `kubeferry_` for ours.
//!
//! Both families are synced together, so a sync counts for each family that it carried.

mod features;
mod labels;
mod process;
mod registry;
mod rest_client;
mod slis;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Series;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::state::objects::Family;
use crate::traffic::{Counting, Port, Total};

use labels::{Code, Kind, Map, OfFamily, OfPolicy, OfResult, OfServicePort, OfState, Reason};
pub use labels::{Counts, EventResult, Policy};
pub use rest_client::RestClient;
pub use slis::Slis;
pub use text::Format;

type Histograms<L> = Series<L, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// What a successful sync did.
#[derive(Clone, PartialEq, Debug)]
pub struct SyncReport {
    /// Every row was compared, not only those of changed objects.
    pub full: bool,
    /// How long it took.
    pub took: Duration,
    /// Rows (and chains) written or deleted in the kernel.
    pub rows_written: usize,
    /// The families that it carried.
    pub families: Vec<Family>,
}

/// All metrics of a running proxy. Cheap to record from any thread; shared by reference.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sync: Histograms<OfFamily>,
    sync_full: Histograms<OfFamily>,
    sync_partial: Histograms<OfFamily>,
    last_sync: Series<OfFamily, Seconds>,
    last_queued: Series<OfFamily, Seconds>,
    programming: Histograms<OfFamily>,
    endpoints_pending: Gauge,
    endpoints_seen: Counter,
    services_pending: Gauge,
    services_seen: Counter,
    no_local_endpoints: Series<OfPolicy, Gauge>,
    healthz: Series<Code, Counter>,
    livez: Series<Code, Counter>,
    sync_failures: Series<OfFamily, Counter>,
    /// kube-proxy's, of chains of its own table that it removes later; there are none of ours.
    cleanup_failures: Series<OfFamily, Counter>,
    leftovers: Gauge,
    conntrack: Histograms<OfFamily>,
    conntrack_deleted: Series<OfFamily, Counter>,
    rows: Series<Map, Gauge>,
    packets: Series<Reason, Counter>,
    recounted: Counter,
    uncounted: Counter,
    service_connections: Series<OfServicePort, Counter>,
    service_active: Series<OfServicePort, Gauge>,
    service_packets: Series<OfServicePort, Counter>,
    service_bytes: Series<OfServicePort, Counter>,
    service_left_out: Gauge,
    rows_written: Counter,
    sync_rows: Histogram,
    drift_repairs: Counter,
    drift_rows: Counter,
    drift_unrepaired: Gauge,
    watch_errors: Series<Kind, Counter>,
    watch_events: Series<Kind, Counter>,
    watch_lists: Series<Kind, Counter>,
    watch_heard: Series<Kind, Seconds>,
    watch_lag: Histograms<OfFamily>,
    change_to_kernel: Histogram,
    services: Gauge,
    service_ports: Series<OfFamily, Gauge>,
    endpoints: Series<OfState, Gauge>,
    health_checks: Series<OfFamily, Gauge>,
    health_check_failures: Series<OfFamily, Counter>,
    events: Series<OfResult, Counter>,
    fallbacks: Gauge,
    ignored: Gauge,
    slis: Slis,
}

impl Metrics {
    /// A sync succeeded.
    pub fn sync_done(&self, report: &SyncReport) {
        let took = report.took.as_secs_f64();
        let part = if report.full { &self.sync_full } else { &self.sync_partial };
        let now = unix_seconds(SystemTime::now());
        for label in report.families.iter().map(|family| OfFamily::from(*family)) {
            self.sync.get_or_create(&label).observe(took);
            part.get_or_create(&label).observe(took);
            self.last_sync.get_or_create(&label).set(now);
        }
        self.rows_written.inc_by(report.rows_written as u64);
        self.sync_rows.observe(report.rows_written as f64);
    }

    /// A sync failed: nothing of it is in force.
    pub fn sync_failed(&self, families: &[Family]) {
        for family in families {
            self.sync_failures.get_or_create(&(*family).into()).inc();
        }
    }

    /// So many things that another proxy or datapath left, or may have left, could not be removed at the last look.
    pub fn leftovers(&self, count: usize) {
        self.leftovers.set(gauge(count));
    }

    /// A sync was asked for, by a change or by the clock.
    pub fn sync_queued(&self, families: &[Family]) {
        let now = unix_seconds(SystemTime::now());
        for family in families {
            self.last_queued.get_or_create(&(*family).into()).set(now);
        }
    }

    /// So many more changes of Services and of EndpointSlices were seen.
    pub fn changes_seen(&self, services: u64, endpoints: u64) {
        self.services_seen.inc_by(services);
        self.endpoints_seen.inc_by(endpoints);
    }

    /// So many changes of Services and of EndpointSlices wait for a sync now.
    pub fn changes_pending(&self, services: usize, endpoints: usize) {
        self.services_pending.set(gauge(services));
        self.endpoints_pending.set(gauge(endpoints));
    }

    /// A change of a slice reached the kernel, so long after the annotation `endpoints.kubernetes.io/last-change-trigger-time`
    /// of the slice. kube-proxy's rule: only times after the process started, and no deletions.
    pub fn programmed(&self, family: Family, after: Duration) {
        self.programming.get_or_create(&family.into()).observe(after.as_secs_f64());
    }

    /// A change of a slice was taken in so long after the same annotation.
    pub fn watched(&self, family: Family, after: Duration) {
        self.watch_lag.get_or_create(&family.into()).observe(after.as_secs_f64());
    }

    /// A sync brought its oldest change into the kernel so long after it was taken in.
    pub fn in_kernel(&self, after: Duration) {
        self.change_to_kernel.observe(after.as_secs_f64());
    }

    /// What is known of the watch of a kind: objects received and full lists so far, and when it was last heard of.
    pub fn watch(&self, kind: &str, events: u64, lists: u64, heard: Option<jiff::Timestamp>) {
        let label = Kind { kind: kind.to_owned() };
        self.watch_events.get_or_create(&label).inner().store(events, Ordering::Relaxed);
        self.watch_lists.get_or_create(&label).inner().store(lists, Ordering::Relaxed);
        if let Some(heard) = heard {
            self.watch_heard.get_or_create(&label).set(heard.as_millisecond() as f64 / 1000.0);
        }
    }

    /// How many Services and endpoints there are now.
    pub fn counts(&self, counts: &Counts) {
        self.services.set(gauge(counts.services));
        for family in Family::BOTH {
            let at = family as usize;
            self.service_ports.get_or_create(&family.into()).set(gauge(counts.ports[at]));
            for (state, number) in [("ready", counts.ready), ("serving", counts.serving), ("local", counts.local)] {
                let label = OfState { ip_family: family.as_str(), state };
                self.endpoints.get_or_create(&label).set(gauge(number[at]));
            }
        }
    }

    /// So many health check node ports of a family are open now.
    pub fn health_checks(&self, family: Family, open: usize) {
        self.health_checks.get_or_create(&family.into()).set(gauge(open));
    }

    /// A health check node port could not be opened and will be tried again.
    pub fn health_check_failed(&self, family: Family) {
        self.health_check_failures.get_or_create(&family.into()).inc();
    }

    /// This became of an Event.
    pub fn event(&self, result: EventResult) {
        self.events.get_or_create(&OfResult { result: result.as_str() }).inc();
    }

    /// So many Services ask for a scheduler that they do not get.
    pub fn fallbacks(&self, services: usize) {
        self.fallbacks.set(gauge(services));
    }

    /// What `/metrics/slis` tells.
    pub fn slis(&self) -> &Slis {
        &self.slis
    }

    /// So many service ports have this policy set to Local, no local endpoint, and endpoints elsewhere.
    pub fn no_local_endpoints(&self, family: Family, policy: Policy, ports: usize) {
        let label = OfPolicy { ip_family: family.as_str(), traffic_policy: policy.as_str() };
        self.no_local_endpoints.get_or_create(&label).set(gauge(ports));
    }

    /// Stale UDP entries of a family were cleaned up.
    pub fn conntrack_cleaned(&self, family: Family, took: Duration, deleted: u64) {
        self.conntrack.get_or_create(&family.into()).observe(took.as_secs_f64());
        self.conntrack_deleted.get_or_create(&family.into()).inc_by(deleted);
    }

    /// A map of the kernel holds so many rows now.
    pub fn rows(&self, map: &str, rows: usize) {
        self.rows.get_or_create(&Map { map: map.to_owned() }).set(gauge(rows));
    }

    /// The BPF programs have counted so many packets for this reason.
    pub fn packets(&self, reason: &'static str, packets: u64) {
        self.packets.get_or_create(&Reason { reason }).inner().store(packets, Ordering::Relaxed);
    }

    /// Counts of active connections were wrong by so many connections so far.
    pub fn recounted(&self, connections: u64) {
        self.recounted.inner().store(connections, Ordering::Relaxed);
    }

    /// What so many connections carried was not counted so far: too many ended at once.
    pub fn uncounted(&self, connections: u64) {
        self.uncounted.inner().store(connections, Ordering::Relaxed);
    }

    /// What a service port got, as far as it is counted.
    pub fn service_port(&self, port: &Port, total: &Total, counting: Counting) {
        let label = OfServicePort::from(port);
        let set = |series: &Series<OfServicePort, Counter>, value| {
            series.get_or_create(&label).inner().store(value, Ordering::Relaxed);
        };
        set(&self.service_connections, total.connections);
        if counting.active {
            self.service_active.get_or_create(&label).set(i64::try_from(total.active).unwrap_or(i64::MAX));
        }
        if counting.packets {
            set(&self.service_packets, total.packets);
            set(&self.service_bytes, total.bytes);
        }
    }

    /// So many service ports have no series, because they are too many.
    pub fn service_ports_left_out(&self, ports: usize) {
        self.service_left_out.set(gauge(ports));
    }

    /// A service port is there no more.
    pub fn service_port_gone(&self, port: &Port) {
        let label = OfServicePort::from(port);
        for series in [&self.service_connections, &self.service_packets, &self.service_bytes] {
            series.remove(&label);
        }
        self.service_active.remove(&label);
    }

    /// The kernel was found to differ from what was written, in so many rows, and was repaired.
    pub fn drift_repaired(&self, rows: usize) {
        self.drift_repairs.inc();
        self.drift_rows.inc_by(rows as u64);
    }

    /// Whether the kernel cannot be looked at, or not be repaired.
    pub fn drift_stays(&self, stays: bool) {
        self.drift_unrepaired.set(stays.into());
    }

    /// A watch of this kind of object failed and will be tried again.
    pub fn watch_error(&self, kind: &str) {
        self.watch_errors.get_or_create(&Kind { kind: kind.to_owned() }).inc();
    }

    /// So many objects are left out at the moment, whole or in part.
    pub fn ignored(&self, objects: usize) {
        self.ignored.set(gauge(objects));
    }

    /// `/healthz` was answered.
    pub(crate) fn healthz(&self, healthy: bool) {
        self.healthz.get_or_create(&code(healthy)).inc();
    }

    /// `/livez` was answered.
    pub(crate) fn livez(&self, healthy: bool) {
        self.livez.get_or_create(&code(healthy)).inc();
    }

    /// The text of `/metrics`.
    pub fn text(&self, format: Format) -> String {
        text::encode(&self.registry, format)
    }
}

fn code(healthy: bool) -> Code {
    Code { code: if healthy { "200" } else { "503" } }
}

fn gauge(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests;
