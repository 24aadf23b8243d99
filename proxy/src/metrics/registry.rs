//! The names, help texts and buckets of all metrics, and their first values: a series is there from the start, so that a
//! rate of it needs no guess.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets, linear_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use super::process::Process;
use super::{
    Code, Counts, EventResult, Histograms, Kind, Metrics, OfPolicy, OfResult, Policy, RestClient, Series, Slis,
    features,
};
use crate::state::event;
use crate::state::objects::Family;
use crate::version;

/// 1 ms, doubled 14 times: up to 16.384 s.
fn durations() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// The buckets of the network programming latency SLI.
fn programming() -> Histogram {
    Histogram::new(
        [0.25, 0.5]
            .into_iter()
            .chain(linear_buckets(1.0, 1.0, 59))
            .chain(linear_buckets(60.0, 5.0, 12))
            .chain(linear_buckets(120.0, 30.0, 7)),
    )
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        Self::with(&RestClient::default())
    }

    /// All metrics, at zero, with the requests that are counted elsewhere.
    pub fn with(requests: &RestClient) -> Self {
        let mut r = Registry::default();
        // prometheus-client appends `_total` to the names of counters.
        let metrics = Self {
            sync: histograms(&mut r, "sync_proxy_rules_duration_seconds", "Duration of a sync", durations),
            sync_full: histograms(
                &mut r,
                "sync_full_proxy_rules_duration_seconds",
                "Duration of a sync that compared every row",
                durations,
            ),
            sync_partial: histograms(
                &mut r,
                "sync_partial_proxy_rules_duration_seconds",
                "Duration of a sync of the rows of changed objects",
                durations,
            ),
            last_sync: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When a sync last succeeded",
            ),
            last_queued: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a sync was last asked for",
            ),
            programming: histograms(
                &mut r,
                "network_programming_duration_seconds",
                "Time from the change of a pod or Service to the kernel",
                programming,
            ),
            endpoints_pending: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "Changes of EndpointSlices that wait for a sync",
            ),
            endpoints_seen: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_endpoint_changes",
                "Changes of EndpointSlices so far",
            ),
            services_pending: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "Changes of Services that wait for a sync",
            ),
            services_seen: series(&mut r, "kubeproxy_sync_proxy_rules_service_changes", "Changes of Services so far"),
            no_local_endpoints: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Service ports with a Local policy that have endpoints, but none here",
            ),
            healthz: series(&mut r, "kubeproxy_proxy_healthz", "Answers of /healthz"),
            livez: series(&mut r, "kubeproxy_proxy_livez", "Answers of /livez"),
            sync_failures: series(&mut r, "kubeproxy_sync_proxy_rules_nftables_sync_failures", "Syncs that failed"),
            cleanup_failures: series(
                &mut r,
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures",
                "Stale chains of our own table that could not be removed: there are none, chains go in the transaction of their rows",
            ),
            leftovers: series(
                &mut r,
                "kubeferry_leftovers",
                "What another proxy or datapath left, or may have left, and could not be removed at the last look",
            ),
            conntrack: histograms(
                &mut r,
                "conntrack_reconciler_sync_duration_seconds",
                "Duration of a cleanup of stale UDP entries",
                durations,
            ),
            conntrack_deleted: series(
                &mut r,
                "kubeproxy_conntrack_reconciler_deleted_entries",
                "Stale UDP entries deleted",
            ),
            rows: series(&mut r, "kubeferry_rows", "Rows of a map of the kernel"),
            packets: series(
                &mut r,
                "kubeferry_ebpf_packets",
                "Packets of the eBPF datapath that came to this: new connections, refusals, drops",
            ),
            recounted: series(
                &mut r,
                "kubeferry_ebpf_recounted_connections",
                "Connections by which counts of active connections were found wrong and put right",
            ),
            uncounted: series(
                &mut r,
                "kubeferry_uncounted_connections",
                "Connections of which packets and bytes were not counted: too many ended at once",
            ),
            service_connections: series(
                &mut r,
                "kubeferry_service_connections",
                "New connections of a service port (--service-metrics)",
            ),
            service_active: series(
                &mut r,
                "kubeferry_service_active_connections",
                "Connections of a service port that have not ended (--service-metrics)",
            ),
            service_packets: series(
                &mut r,
                "kubeferry_service_packets",
                "Packets of a service port, both ways; with eBPF of connections that packets are translated for (--service-metrics=full)",
            ),
            service_bytes: series(
                &mut r,
                "kubeferry_service_bytes",
                "Bytes of a service port, both ways, from the IP header on, of such connections (--service-metrics=full)",
            ),
            service_left_out: series(
                &mut r,
                "kubeferry_service_ports_left_out",
                "Service ports without series, because there are more than 25000 of them (--service-metrics)",
            ),
            rows_written: series(&mut r, "kubeferry_rows_written", "Rows written to or deleted from the kernel"),
            sync_rows: {
                let histogram = Histogram::new(exponential_buckets(1.0, 4.0, 11));
                r.register("kubeferry_sync_rows", "Rows written or deleted by one sync", histogram.clone());
                histogram
            },
            drift_repairs: series(&mut r, "kubeferry_drift_repairs", "Times that the kernel differed and was repaired"),
            drift_rows: series(
                &mut r,
                "kubeferry_drift_repaired_rows",
                "Rows that differed in the kernel and were repaired",
            ),
            drift_unrepaired: series(
                &mut r,
                "kubeferry_drift_unrepaired",
                "1 while the kernel cannot be looked at, or what differs there cannot be repaired",
            ),
            watch_errors: series(&mut r, "kubeferry_watch_errors", "Failures of the watch of a kind of object"),
            watch_events: series(&mut r, "kubeferry_watch_events", "Objects of a kind received, listed or watched"),
            watch_lists: series(&mut r, "kubeferry_watch_lists", "Full lists of a kind of object"),
            watch_heard: series(
                &mut r,
                "kubeferry_watch_last_heard_timestamp_seconds",
                "When the source of a kind of object was last heard of",
            ),
            watch_lag: ours(
                &mut r,
                "kubeferry_watch_lag_seconds",
                "Time from the change of a pod or Service until its EndpointSlice was taken in",
            ),
            change_to_kernel: {
                let histogram = Histogram::new(exponential_buckets(0.0001, 2.0, 18));
                let help = "Time from the oldest change of a sync being taken in until it was in the kernel";
                r.register("kubeferry_change_to_kernel_seconds", help, histogram.clone());
                histogram
            },
            services: series(&mut r, "kubeferry_services", "Services that are served"),
            service_ports: series(&mut r, "kubeferry_service_ports", "Service ports that are served"),
            endpoints: series(
                &mut r,
                "kubeferry_endpoints",
                "Endpoints of service ports: ready, serving (ready, or terminating and still answering), ready on this node",
            ),
            health_checks: series(&mut r, "kubeferry_health_check_node_ports", "Health check node ports that are open"),
            health_check_failures: series(
                &mut r,
                "kubeferry_health_check_node_port_failures",
                "Times that a health check node port could not be opened",
            ),
            events: series(&mut r, "kubeferry_events", "Kubernetes Events by what became of them"),
            fallbacks: series(
                &mut r,
                "kubeferry_scheduler_fallbacks",
                "Services that ask for a scheduler and get the node's, because it is unknown or this datapath cannot do it",
            ),
            ignored: series(&mut r, "kubeferry_ignored_objects", "Objects that are left out, whole or in part"),
            slis: Slis::default(),
            registry: Registry::default(),
        };
        requests.register(&mut r);
        features::register(&mut r);
        let build = Info::new([("version", version::VERSION), ("commit", version::COMMIT)]);
        r.register("kubeferry_build", "Version and commit of this program", build);
        r.register_collector(Box::new(Process));
        metrics.start_at_zero();
        Self { registry: r, ..metrics }
    }

    fn start_at_zero(&self) {
        for family in Family::BOTH {
            let label = family.into();
            for histograms in [&self.sync, &self.sync_full, &self.sync_partial, &self.programming, &self.conntrack] {
                drop(histograms.get_or_create(&label));
            }
            drop(self.last_sync.get_or_create(&label));
            drop(self.last_queued.get_or_create(&label));
            drop(self.sync_failures.get_or_create(&label));
            drop(self.cleanup_failures.get_or_create(&label));
            drop(self.watch_lag.get_or_create(&label));
            drop(self.health_checks.get_or_create(&label));
            drop(self.health_check_failures.get_or_create(&label));
            drop(self.conntrack_deleted.get_or_create(&label));
            for policy in [Policy::Internal, Policy::External] {
                let label = OfPolicy { ip_family: family.as_str(), traffic_policy: policy.as_str() };
                drop(self.no_local_endpoints.get_or_create(&label));
            }
        }
        for code in ["200", "503"] {
            drop(self.healthz.get_or_create(&Code { code }));
            drop(self.livez.get_or_create(&Code { code }));
        }
        use event::Kind::{EndpointSlice, Manifest, Node, Service, ServiceCidr};
        for kind in [Service, EndpointSlice, Node, ServiceCidr, Manifest] {
            drop(self.watch_errors.get_or_create(&Kind { kind: kind.as_str().to_owned() }));
            self.watch(kind.as_str(), 0, 0, None);
        }
        for result in EventResult::ALL {
            drop(self.events.get_or_create(&OfResult { result: result.as_str() }));
        }
        self.counts(&Counts::default());
    }
}

fn series<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

/// A histogram by family, of ours, with the buckets of the network programming latency.
fn ours<L>(registry: &mut Registry, name: &str, help: &str) -> Histograms<L>
where
    L: Clone + std::hash::Hash + Eq,
    Histograms<L>: prometheus_client::registry::Metric + Clone,
{
    let histograms: Histograms<L> = Series::new_with_constructor(programming);
    registry.register(name, help, histograms.clone());
    histograms
}

/// kube-proxy's histograms, all by family.
fn histograms<L>(registry: &mut Registry, name: &str, help: &str, new: fn() -> Histogram) -> Histograms<L>
where
    L: Clone + std::hash::Hash + Eq,
    Histograms<L>: prometheus_client::registry::Metric + Clone,
{
    let histograms = Series::new_with_constructor(new);
    registry.register(format!("kubeproxy_{name}"), help, histograms.clone());
    histograms
}
