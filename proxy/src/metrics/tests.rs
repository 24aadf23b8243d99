use std::collections::BTreeMap;

use super::*;
use crate::desired::target::ServicePortName;
use crate::state::objects::{ObjectName, Protocol};

/// name with labels → value, and name → type, of Prometheus text; panics where it is not well formed.
fn read(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let (mut values, mut types) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(values.insert(name.to_owned(), value).is_none(), "{name} twice");
            let bare = name.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| bare.strip_suffix(end)).unwrap_or(bare);
            assert!(types.contains_key(family) || types.contains_key(bare), "{line} has no type");
        }
    }
    (values, types)
}

#[test]
fn names_and_types_are_kube_proxys() {
    let (_, types) = read(&Metrics::new().text(Format::Prometheus));
    for (name, kind) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge"),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge"),
        ("kubeproxy_network_programming_duration_seconds", "histogram"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter"),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge"),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "counter"),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge"),
        ("kubeproxy_proxy_healthz_total", "counter"),
        ("kubeproxy_proxy_livez_total", "counter"),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter"),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram"),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter"),
        ("kubeferry_rows_written_total", "counter"),
        ("kubeferry_drift_repairs_total", "counter"),
        ("kubeferry_drift_repaired_rows_total", "counter"),
        ("kubeferry_drift_unrepaired", "gauge"),
        ("kubeferry_watch_errors_total", "counter"),
        ("kubeferry_ignored_objects", "gauge"),
        ("kubeferry_sync_rows", "histogram"),
        ("kubeferry_build_info", "gauge"),
        ("process_cpu_seconds_total", "counter"),
        ("process_resident_memory_bytes", "gauge"),
    ] {
        assert_eq!(types.get(name).map(String::as_str), Some(kind), "{name}");
    }
}

#[test]
fn everything_recorded_can_be_read() {
    let metrics = Metrics::new();
    let report =
        SyncReport { full: true, took: Duration::from_millis(3), rows_written: 7, families: Family::BOTH.to_vec() };
    metrics.sync_done(&report);
    metrics.sync_done(&SyncReport { full: false, families: vec![Family::V4], ..report });
    metrics.sync_failed(&[Family::V6]);
    metrics.sync_queued(&[Family::V4]);
    metrics.changes_seen(2, 3);
    metrics.changes_pending(1, 2);
    metrics.programmed(Family::V4, Duration::from_millis(300));
    metrics.no_local_endpoints(Family::V6, Policy::External, 4);
    metrics.conntrack_cleaned(Family::V4, Duration::from_millis(1), 9);
    metrics.rows("frontends4", 5);
    metrics.drift_repaired(2);
    metrics.drift_stays(true);
    metrics.watch_error("Service");
    metrics.ignored(6);
    metrics.leftovers(3);
    metrics.watched(Family::V4, Duration::from_millis(300));
    metrics.in_kernel(Duration::from_micros(300));
    metrics.watch("Service", 8, 2, Some(jiff::Timestamp::from_second(1_700_000_000).unwrap()));
    metrics.counts(&Counts { services: 3, ports: [4, 1], ready: [5, 0], serving: [6, 0], local: [2, 0] });
    metrics.health_checks(Family::V6, 2);
    metrics.health_check_failed(Family::V4);
    metrics.event(EventResult::Posted);
    metrics.event(EventResult::Dropped);
    metrics.fallbacks(4);
    metrics.healthz(true);
    metrics.livez(false);
    let (values, _) = read(&metrics.text(Format::Prometheus));
    for (name, value) in [
        ("kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}", 2.0),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}", 1.0),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}", 0.0),
        ("kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.002\",ip_family=\"IPv4\"}", 0.0),
        ("kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"}", 2.0),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"}", 1.0),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"}", 0.0),
        ("kubeproxy_sync_proxy_rules_service_changes_total", 2.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", 3.0),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", 1.0),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", 2.0),
        ("kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"}", 1.0),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"}", 4.0),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"}", 9.0),
        ("kubeferry_rows{map=\"frontends4\"}", 5.0),
        ("kubeferry_rows_written_total", 14.0),
        ("kubeferry_sync_rows_count", 2.0),
        ("kubeferry_drift_repairs_total", 1.0),
        ("kubeferry_drift_repaired_rows_total", 2.0),
        ("kubeferry_drift_unrepaired", 1.0),
        ("kubeferry_watch_errors_total{kind=\"Service\"}", 1.0),
        ("kubeferry_ignored_objects", 6.0),
        ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total{ip_family=\"IPv6\"}", 0.0),
        ("kubeferry_leftovers", 3.0),
        ("kubeferry_watch_lag_seconds_bucket{le=\"0.5\",ip_family=\"IPv4\"}", 1.0),
        ("kubeferry_change_to_kernel_seconds_bucket{le=\"0.0004\"}", 1.0),
        ("kubeferry_change_to_kernel_seconds_bucket{le=\"0.0002\"}", 0.0),
        ("kubeferry_watch_events_total{kind=\"Service\"}", 8.0),
        ("kubeferry_watch_lists_total{kind=\"Service\"}", 2.0),
        ("kubeferry_watch_last_heard_timestamp_seconds{kind=\"Service\"}", 1.7e9),
        ("kubeferry_services", 3.0),
        ("kubeferry_service_ports{ip_family=\"IPv6\"}", 1.0),
        ("kubeferry_endpoints{ip_family=\"IPv4\",state=\"ready\"}", 5.0),
        ("kubeferry_endpoints{ip_family=\"IPv4\",state=\"serving\"}", 6.0),
        ("kubeferry_endpoints{ip_family=\"IPv4\",state=\"local\"}", 2.0),
        ("kubeferry_health_check_node_ports{ip_family=\"IPv6\"}", 2.0),
        ("kubeferry_health_check_node_port_failures_total{ip_family=\"IPv4\"}", 1.0),
        ("kubeferry_events_total{result=\"posted\"}", 1.0),
        ("kubeferry_events_total{result=\"dropped\"}", 1.0),
        ("kubeferry_events_total{result=\"failed\"}", 0.0),
        ("kubeferry_scheduler_fallbacks", 4.0),
        ("kubeproxy_proxy_healthz_total{code=\"200\"}", 1.0),
        ("kubeproxy_proxy_livez_total{code=\"503\"}", 1.0),
    ] {
        assert_eq!(values.get(name), Some(&value), "{name}");
    }
    let after_2020 = |name: &str| values[name] > 1_577_836_800.0;
    assert!(after_2020("kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}"));
    assert!(after_2020("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}"));
    assert!(after_2020("process_start_time_seconds"));
    assert!(values["process_resident_memory_bytes"] > 0.0);
}

/// docs/observing.md has every metric with its type, and no others.
#[test]
fn the_page_for_operators_names_all_metrics() {
    let page = include_str!("../../../docs/observing.md");
    let page = page.split_once("## Metrics").unwrap().1;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let told: BTreeMap<&str, &str> = rows.map(|(name, rest)| (name, rest.split(" | ").next().unwrap())).collect();
    let requests = RestClient::default();
    requests.answered("10.0.0.1:6443", "GET", Some(200), Duration::from_millis(1));
    let metrics = Metrics::with(&requests);
    // What has no series before there is something to tell.
    metrics.rows("frontends4", 1);
    metrics.packets("new", 1);
    metrics.watch("Service", 1, 1, Some(jiff::Timestamp::now()));
    let name = ServicePortName { service: ObjectName::new("ns", "web"), port: "".into(), protocol: Protocol::Tcp };
    metrics.service_port(
        &(name, Family::V4),
        &Total::default(),
        Counting { connections: true, active: true, packets: true, forgets: false },
    );
    let (_, types) = read(&metrics.text(Format::Prometheus));
    for (name, kind) in &types {
        assert_eq!(told.get(name.as_str()), Some(&kind.as_str()), "{name}");
    }
    for name in told.keys() {
        assert!(types.contains_key(*name), "{name} is no metric");
    }
}

#[test]
fn network_programming_has_the_buckets_of_the_sli() {
    let (values, _) = read(&Metrics::new().text(Format::Prometheus));
    let name = "kubeproxy_network_programming_duration_seconds_bucket{";
    let of_v4: Vec<&String> = values.keys().filter(|k| k.starts_with(name) && k.contains("IPv4")).collect();
    // 2 + 59 + 12 + 7 and the infinite one.
    assert_eq!(of_v4.len(), 81);
    for bound in ["0.25", "59.0", "60.0", "115.0", "120.0", "300.0", "+Inf"] {
        assert!(of_v4.iter().any(|key| key.contains(&format!("le=\"{bound}\""))), "{bound}");
    }
}

#[test]
fn open_metrics_where_it_is_asked_for() {
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3";
    assert_eq!(Format::accepted(accept), Format::OpenMetrics);
    assert_eq!(Format::accepted("*/*"), Format::Prometheus);
    let text = Metrics::new().text(Format::OpenMetrics);
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# TYPE kubeferry_rows_written counter\nkubeferry_rows_written_total 0\n"));
    assert!(!Metrics::new().text(Format::Prometheus).contains("# EOF"));
}
