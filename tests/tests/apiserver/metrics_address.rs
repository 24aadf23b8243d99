//! What the metrics address serves, whole where it can be.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use kubeferry::status::Response;
use kubeferry_tests::apiserver::Fault;
use serde_json::{Value, json};

use crate::node::{Node, service};

const BASE: &str = "http://127.0.0.1:10249";

fn ask(node: &Node, path: &str) -> Response {
    node.ask(&format!("{BASE}{path}"))
}

/// Sends a request of any kind; the code and the body of the answer.
fn request(node: &Node, method: &str, path: &str, accept: &str, body: &str) -> (u16, String) {
    let exchange = || {
        let mut stream = TcpStream::connect("127.0.0.1:10249")?;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = node.namespace.run(exchange).unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn has(answer: &Response, line: &str) -> bool {
    answer.headers.iter().any(|header| header.eq_ignore_ascii_case(line))
}

fn started(flags: &[&str]) -> Node {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1", "10.244.1.2"])).unwrap();
    let url = node.server.url();
    node.start(&[&["--server", &url], flags].concat());
    node.expect("a sync", &["10.96.0.1:80"]);
    node
}

#[test]
fn small_answers_are_kube_proxys() {
    let node = started(&[]);
    for (path, body) in [("/healthz", "ok"), ("/healthz/ping", "ok"), ("/proxyMode", "nftables")] {
        let answer = ask(&node, path);
        assert_eq!((answer.code, answer.body.as_str()), (200, body), "{path}");
        assert!(has(&answer, "content-type: text/plain; charset=utf-8"), "{path}: {:?}", answer.headers);
        assert!(has(&answer, "x-content-type-options: nosniff"), "{path}: {:?}", answer.headers);
    }
    assert_eq!(ask(&node, "/healthz?verbose").body, "[+]ping ok\nhealthz check passed\n");
    let slis = ask(&node, "/metrics/slis");
    assert!(has(&slis, "content-type: text/plain; version=0.0.4; charset=utf-8"), "{:?}", slis.headers);
    let check = "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n";
    assert!(slis.body.contains(check), "{}", slis.body);
    let total = "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 3\n";
    assert!(slis.body.contains(total), "{}", slis.body);
    assert_eq!(request(&node, "DELETE", "/metrics/slis", "*/*", ""), (200, "metrics reset\n".into()));
    assert!(!ask(&node, "/metrics/slis").body.contains("ping"));
    assert_eq!(ask(&node, "/no/such/path").code, 404);
}

#[test]
fn metrics_are_openmetrics_for_who_asks_for_it() {
    let node = started(&[]);
    let (code, open) = request(&node, "GET", "/metrics", "application/openmetrics-text; version=1.0.0", "");
    assert_eq!(code, 200);
    assert!(
        open.ends_with("# EOF\n") && open.contains("# TYPE kubeproxy_network_programming_duration_seconds histogram\n")
    );
    let plain = ask(&node, "/metrics");
    assert!(has(&plain, "content-type: text/plain; version=0.0.4; charset=utf-8"), "{:?}", plain.headers);
    assert!(!plain.body.contains("# EOF"));
    let names = |text: &str| {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned));
        types.map(|name| name.trim_end_matches("_total").trim_end_matches("_info").to_owned()).collect::<BTreeSet<_>>()
    };
    assert_eq!(names(&open), names(&plain.body), "the same in both");
}

#[test]
fn of_ipv6_they_are_at_its_loopback_address() {
    let node = started(&["--bind-address", "::"]);
    assert_eq!(node.ask("http://[::1]:10249/healthz").body, "ok");
    assert!(node.get("http://127.0.0.1:10249/healthz").is_none());
    assert_eq!(node.ask("http://[2001:db8:2::1]:10256/livez").code, 200);
}

#[test]
fn metrics_that_name_services_are_told_under_a_local_name_alone() {
    let get = |node: &Node, host: &str| {
        let exchange = || {
            let mut stream = TcpStream::connect("127.0.0.1:10249")?;
            stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = node.namespace.run(exchange).unwrap().unwrap();
        (answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap(), answer)
    };
    let node = started(&["--service-metrics", "connections"]);
    let named = || Some(get(&node, "localhost:10249").1).filter(|text| text.contains("service=\"web\""));
    node.until("a series of the Service", named);
    assert_eq!(get(&node, "kube-proxy.kube-system.svc:10249").0, 421);
}

#[test]
fn objects_are_counted_with_the_first_sync() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1", "10.244.1.2"])).unwrap();
    let url = node.server.url();
    node.start(&["--server", &url]);
    let synced = "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}";
    node.until("the first sync", || node.metric(synced).filter(|at| *at > 0.0));
    let counted = ["kubeferry_services", "kubeferry_service_ports{ip_family=\"IPv4\"}"].map(|name| node.metric(name));
    let ready = node.metric("kubeferry_endpoints{ip_family=\"IPv4\",state=\"ready\"}");
    assert_eq!((counted, ready), ([Some(1.0); 2], Some(2.0)));
}

#[test]
fn the_configuration_is_told_in_kube_proxys_shape() {
    let node = started(&["--nodeport-addresses", "192.0.2.0/24", "--bind-address-hard-fail"]);
    let answer = ask(&node, "/configz");
    assert!(has(&answer, "content-type: application/json"), "{:?}", answer.headers);
    let config: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        config,
        json!({"kubeproxy.config.k8s.io": {
            "Linux": {
                "Conntrack": {"MaxPerCore": 32768, "Min": 131072, "TCPEstablishedTimeout": "24h0m0s",
                    "TCPCloseWaitTimeout": "1h0m0s", "TCPBeLiberal": false, "UDPTimeout": "0s", "UDPStreamTimeout": "0s"},
                "MasqueradeAll": false,
                "OOMScoreAdj": -999,
            },
            "ClientConnection": {"Kubeconfig": "", "AcceptContentTypes": "application/json", "ContentType": "application/json"},
            "Logging": {"format": "text"},
            "HostnameOverride": "n1",
            "BindAddress": "0.0.0.0",
            "HealthzBindAddress": "0.0.0.0:10256",
            "MetricsBindAddress": "127.0.0.1:10249",
            "BindAddressHardFail": true,
            "EnableProfiling": false,
            "ShowHiddenMetricsForVersion": "",
            "Mode": "nftables",
            "NFTables": {"MasqueradeBit": 14},
            "DetectLocalMode": "ClusterCIDR",
            "DetectLocal": {"BridgeInterface": "", "ClusterCIDRs": ["10.244.0.0/16", "fd00:10:244::/48"], "InterfaceNamePrefix": ""},
            "NodePortAddresses": ["192.0.2.0/24"],
            "SyncPeriod": "30s",
            "MinSyncPeriod": "0s",
        }})
    );
}

const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees \
                       and is for debugging purposes only.";

#[test]
fn flags_and_status_are_told_as_by_kubernetes_components() {
    let node = started(&["--masquerade-all"]);
    let flags = ask(&node, "/flagz");
    assert_eq!(flags.code, 200);
    assert!(has(&flags, "content-type: text/plain; charset=utf-8"), "{:?}", flags.headers);
    let head = format!("\nkubeferry flags\n{WARNING}\n\n");
    let lines: Vec<_> = flags.body.strip_prefix(&head).unwrap_or_else(|| panic!("{}", flags.body)).lines().collect();
    let server = format!("server={}", node.server.url());
    for line in
        ["node-name=n1", "cluster-cidr=10.244.0.0/16,fd00:10:244::/48", "masquerade-all=true", "config=", &server]
    {
        assert!(lines.contains(&line), "{line} in {lines:?}");
    }
    assert!(lines.is_sorted_by_key(|line| line.split('=').next()), "{lines:?}");
    let status = ask(&node, "/statusz");
    assert!(has(&status, "content-type: text/plain; charset=utf-8"), "{:?}", status.headers);
    let head = format!("\nkubeferry statusz\n{WARNING}\n\nStarted: ");
    let rest = status.body.strip_prefix(&head).unwrap_or_else(|| panic!("{}", status.body));
    let rest: Vec<_> = rest.lines().collect();
    assert!(rest[0].contains(" UTC 20") && rest[1].starts_with("Up: 0 hr 0"), "{rest:?}");
    let version = format!("Binary version: {}", env!("CARGO_PKG_VERSION"));
    let paths = "Paths: /api/v1 /configz /flagz /healthz /metrics /proxyMode /status /statusz";
    assert_eq!(rest[2..], [&version, "Emulation version: 1.36", paths]);
    for (path, kind) in [("/flagz", "Flagz"), ("/statusz", "Statusz")] {
        let whole = |version: &str| format!("application/json;v={version};g=config.k8s.io;as={kind}");
        let json = format!("{}, {}", whole("v1beta1"), whole("v1alpha1"));
        let refused = (406, format!("media type not acceptable, must be: text/plain, {json}\n"));
        assert_eq!(request(&node, "GET", path, "application/json", ""), refused, "{path}");
        for version in ["v1beta1", "v1alpha1"] {
            let (code, body) = request(&node, "GET", path, &whole(version), "");
            assert_eq!(code, 200, "{body}");
            let mut told: Value = serde_json::from_str(&body).unwrap();
            let mut wanted = json!({
                "kind": kind, "apiVersion": format!("config.k8s.io/{version}"), "metadata": {"name": "kubeferry"},
            });
            if kind == "Flagz" {
                let pairs = lines.iter().map(|line| line.split_once('=').unwrap());
                wanted["flags"] = pairs.map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
            } else {
                let (started, up) = (told["startTime"].take(), told["uptimeSeconds"].take());
                assert!(started.as_str().is_some_and(|at| at.ends_with('Z')) && up.as_u64().is_some(), "{body}");
                wanted["startTime"] = Value::Null;
                wanted["uptimeSeconds"] = Value::Null;
                wanted["binaryVersion"] = env!("CARGO_PKG_VERSION").into();
                wanted["emulationVersion"] = "1.36".into();
                wanted["paths"] = paths.trim_start_matches("Paths: ").split(' ').collect();
            }
            assert_eq!(told, wanted, "{path}");
        }
    }
}

#[test]
fn debugging_is_there_on_request_alone() {
    let node = started(&[]);
    for path in ["/debug/pprof/", "/debug/pprof/profile", "/debug/flags/v"] {
        assert_eq!(ask(&node, path).code, 404, "{path}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\nenableProfiling: true\n";
    std::fs::write(file.path(), config).unwrap();
    let node = started(&["--config", &file.path().display().to_string()]);
    for path in ["/debug/pprof", "/debug/pprof/", "/debug/pprof/profile", "/debug/pprof/heap"] {
        let answer = ask(&node, path);
        assert_eq!(answer.code, 501, "{path}");
        assert!(answer.body.contains("no profiler") && answer.body.contains("perf record"), "{}", answer.body);
    }
    assert_eq!(ask(&node, "/debug/flags/v").code, 406);
    let debug = |node: &Node| node.log().lines().filter(|line| line.contains("DEBUG")).count();
    assert_eq!(debug(&node), 0);
    let set = (200, "successfully set klog.logging.verbosity to 4".to_owned());
    assert_eq!(request(&node, "PUT", "/debug/flags/v", "*/*", "4"), set);
    let bad = "{apiVersion: v1, kind: Service, metadata: {name: bad}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, \
        healthCheckNodePort: 31000, clusterIP: 10.96.0.9, ports: [{port: 80}]}}";
    node.server.apply(bad).unwrap();
    node.until("a line that is only there at that verbosity", || (debug(&node) > 0).then_some(()));
    assert_eq!(request(&node, "PUT", "/debug/flags/v", "*/*", "many").0, 400);
    assert!(ask(&node, "/statusz").body.contains("Paths: /api/v1 /configz /debug /flagz"));
}

/// kube-proxy's metrics of nftables mode, and of every component, that are here: name, type, labels.
const KUBE_PROXYS: &[(&str, &str, &str)] = &[
    ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", "ip_family,le"),
    ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", "ip_family,le"),
    ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", "ip_family,le"),
    ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", "ip_family"),
    ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "ip_family"),
    ("kubeproxy_network_programming_duration_seconds", "histogram", "ip_family,le"),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", ""),
    ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", ""),
    ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", ""),
    ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", ""),
    ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", "ip_family,traffic_policy"),
    ("kubeproxy_proxy_healthz_total", "counter", "code"),
    ("kubeproxy_proxy_livez_total", "counter", "code"),
    ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", "ip_family"),
    ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter", "ip_family"),
    ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", "ip_family,le"),
    ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", "ip_family"),
    ("process_cpu_seconds_total", "counter", ""),
    ("process_start_time_seconds", "gauge", ""),
    ("process_resident_memory_bytes", "gauge", ""),
    ("process_virtual_memory_bytes", "gauge", ""),
    ("process_virtual_memory_max_bytes", "gauge", ""),
    ("process_open_fds", "gauge", ""),
    ("process_max_fds", "gauge", ""),
    ("process_network_receive_bytes_total", "counter", ""),
    ("process_network_transmit_bytes_total", "counter", ""),
    ("rest_client_requests_total", "counter", "code,host,method"),
    ("rest_client_request_duration_seconds", "histogram", "host,le,verb"),
    ("kubernetes_feature_enabled", "gauge", "name,stage"),
];

#[test]
fn metrics_have_kube_proxys_names_types_and_labels() {
    let node = started(&[]);
    // The Events' client asks, too.
    node.until("a request to be counted", || {
        node.metric("kubeferry_events_total{result=\"posted\"}").filter(|n| *n >= 1.0)
    });
    let text = ask(&node, "/metrics").body;
    for (name, kind, labels) in KUBE_PROXYS {
        assert!(text.contains(&format!("\n# TYPE {name} {kind}\n")), "{name} is no {kind}");
        let series = if *kind == "histogram" { format!("{name}_bucket") } else { (*name).to_owned() };
        let line = text.lines().find_map(|line| line.strip_prefix(&series).filter(|rest| rest.starts_with([' ', '{'])));
        let line = line.unwrap_or_else(|| panic!("no series of {name}"));
        let found: BTreeSet<&str> = line
            .split_once('}')
            .map(|(labels, _)| {
                labels.trim_start_matches('{').split("\",").filter_map(|label| label.split('=').next()).collect()
            })
            .unwrap_or_default();
        let wanted: BTreeSet<&str> = labels.split(',').filter(|label| !label.is_empty()).collect();
        assert_eq!(found, wanted, "{name}");
    }
    let value = |name: &str| node.metric(name).unwrap_or_else(|| panic!("no {name}"));
    let host = node.server.address();
    assert!(value(&format!("rest_client_requests_total{{code=\"200\",host=\"{host}\",method=\"GET\"}}")) >= 4.0);
    assert_eq!(value(&format!("rest_client_requests_total{{code=\"201\",host=\"{host}\",method=\"POST\"}}")), 1.0);
    node.until("the endpoints to be counted", || {
        node.metric("kubeferry_endpoints{ip_family=\"IPv4\",state=\"ready\"}").filter(|n| *n == 2.0)
    });
    assert_eq!(value("kubeferry_services"), 1.0);
    assert_eq!(value("kubeferry_service_ports{ip_family=\"IPv4\"}"), 1.0);
    assert_eq!(value("kubeferry_endpoints{ip_family=\"IPv4\",state=\"local\"}"), 2.0);
    assert_eq!(value("kubeferry_rows{map=\"frontends4\"}"), 1.0);
    assert_eq!(value("kubeferry_drift_repairs_total"), 0.0);
    assert_eq!(value("kubeferry_watch_lists_total{kind=\"Service\"}"), 1.0);
    assert!(value("kubeferry_watch_last_heard_timestamp_seconds{kind=\"Service\"}") > 1.7e9);
    assert!(value("kubeferry_change_to_kernel_seconds_count") >= 1.0);
}

#[test]
fn what_happens_to_services_and_endpoints_is_counted_as_by_kube_proxy() {
    let node = started(&[]);
    let is = |name: &str, wanted: f64| {
        node.until(&format!("{name} to be {wanted}"), || node.metric(name).filter(|value| *value == wanted))
    };
    let (services, endpoints) =
        ("kubeproxy_sync_proxy_rules_service_changes", "kubeproxy_sync_proxy_rules_endpoint_changes");
    let before = [services, endpoints].map(|name| node.metric(&format!("{name}_total")).unwrap());
    let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}";
    let queued_before = node.metric(queued).unwrap();
    // Nobody of them is here.
    let away = service("away", "10.96.0.2", &["10.244.2.1"]).replace("nodeName: n1", "nodeName: n2");
    node.server.apply(&away.replace("internalTrafficPolicy: Cluster", "internalTrafficPolicy: Local")).unwrap();
    is(&format!("{services}_total"), before[0] + 1.0);
    is(&format!("{endpoints}_total"), before[1] + 1.0);
    for (policy, ports) in [("internal", 1.0), ("external", 0.0)] {
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        is(&format!("{name}{{ip_family=\"IPv4\",traffic_policy=\"{policy}\"}}"), ports);
    }
    is(&format!("{services}_pending"), 0.0);
    is(&format!("{endpoints}_pending"), 0.0);
    node.until("a later sync", || node.metric(queued).filter(|time| *time > queued_before));
    assert_eq!(node.ask("http://127.0.0.1:10256/livez").code, 200);
    is("kubeproxy_proxy_livez_total{code=\"200\"}", 1.0);
}

#[test]
fn a_change_is_timed_from_the_cluster_to_here_and_to_the_kernel() {
    let node = started(&[]);
    let lags = ["kubeferry_watch_lag_seconds_count", "kubeproxy_network_programming_duration_seconds_count"]
        .map(|name| format!("{name}{{ip_family=\"IPv4\"}}"));
    assert_eq!(lags.each_ref().map(|name| node.metric(name)), [Some(0.0); 2], "the first had no time");
    for (count, endpoint) in [(1.0, "10.244.1.3"), (2.0, "10.244.1.4")] {
        let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output().unwrap();
        let now = String::from_utf8(output.stdout).unwrap();
        let annotation = format!("annotations: {{endpoints.kubernetes.io/last-change-trigger-time: '{}'}}", now.trim());
        let slice = crate::node::slice("web", &["10.244.1.1", endpoint]);
        let slice = slice.replace("namespace: default, labels", &format!("namespace: default, {annotation}, labels"));
        node.server.apply(&slice).unwrap();
        for name in &lags {
            node.until(&format!("{name} to be {count}"), || node.metric(name).filter(|n| *n == count));
        }
    }
}

#[test]
fn refusals_of_the_api_server_are_counted_by_code() {
    let mut node = Node::new();
    node.server.fault(Fault::Status(500, 2));
    node.run();
    let host = node.server.address();
    let name = format!("rest_client_requests_total{{code=\"500\",host=\"{host}\",method=\"GET\"}}");
    node.until("both to be counted", || node.metric(&name).filter(|n| *n == 2.0));
}
