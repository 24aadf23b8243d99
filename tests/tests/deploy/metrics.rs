//! Alerts and the dashboard speak of metrics and labels that a running proxy has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::LazyLock;

use kubeferry_tests::binary;
use kubeferry_tests::bpf::Places;
use kubeferry_tests::client::{DEADLINE, Running, until};
use kubeferry_tests::netns::Netns;
use serde_json::Value;

use super::manifests::PrometheusRule;
use super::{folder, objects_with};

/// What Prometheus makes itself, and the labels that it and our PodMonitor put on each series.
const OF_PROMETHEUS: [&str; 1] = ["up"];
pub const LABELS_OF_TARGETS: [&str; 3] = ["job", "instance", "node"];
/// What the dashboard and the alert of kubernetes-mixin read of kube-proxy, but for `go_goroutines` (there is no
/// Go) and `rest_client_*`, which a proxy has that speaks with an API server.
pub const OF_KUBE_PROXYS_DASHBOARD: [&str; 8] = [
    "absent(up{job=\"kube-proxy\"})",
    "sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{job=\"kube-proxy\",instance=~\"x\"}[5m]))",
    "histogram_quantile(0.99,rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job=\"kube-proxy\"}[5m]))",
    "sum(rate(kubeproxy_network_programming_duration_seconds_count{job=\"kube-proxy\"}[5m])) by (instance)",
    "histogram_quantile(0.99, sum(rate(kubeproxy_network_programming_duration_seconds_bucket{}[5m])) by (instance, le))",
    "process_resident_memory_bytes{job=\"kube-proxy\"}",
    "rate(process_cpu_seconds_total{job=\"kube-proxy\"}[5m])",
    "max(kubeproxy_sync_proxy_rules_last_timestamp_seconds{job=\"kube-proxy\"}) by (instance)",
];
/// Words of the language that are no metrics.
const WORDS: [&str; 22] = [
    "and",
    "or",
    "unless",
    "on",
    "by",
    "without",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "sum",
    "max",
    "min",
    "count",
    "topk",
    "rate",
    "increase",
    "histogram_quantile",
    "absent",
    "time",
    "label_values",
];

const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.244.1.1]}]
";

/// Samples of a metric: the names of their labels. Empty where there are none yet.
type Exposed = BTreeMap<String, BTreeSet<String>>;

/// What proxies of both datapaths tell that serve one Service: their `/metrics`, one after the other.
pub fn exposed() -> &'static str {
    static EXPOSED: LazyLock<String> = LazyLock::new(of_both_datapaths);
    &EXPOSED
}

fn of_both_datapaths() -> String {
    let namespaces = [Netns::new("metrics").unwrap(), Netns::new("metrics-ebpf").unwrap()];
    let places = Places::new().unwrap();
    let manifests = tempfile::tempdir().unwrap();
    fs::write(manifests.path().join("web.yaml"), MANIFESTS).unwrap();
    let mut exposed = String::new();
    for (namespace, ebpf) in namespaces.iter().zip([false, true]) {
        let mut command = Command::new(binary::path().unwrap());
        command
            .args(["run", "--node-name", "n1", "--node-addresses", "192.0.2.1", "--manifests"])
            .arg(manifests.path());
        if ebpf {
            places.apply(&mut command).args(["--service-metrics", "connections"]);
        }
        let log = manifests.path().join(format!("log-{ebpf}"));
        command.stderr(fs::File::create(&log).unwrap());
        let _running = Running::start_command(&mut command, namespace).unwrap();
        let text = until("/metrics with a sync", || {
            let get = || kubeferry::status::get("http://127.0.0.1:10249/metrics", DEADLINE).ok();
            let body = namespace.run(get).unwrap()?.body;
            let last: &[&str] = match ebpf {
                true => &["kubeferry_service_connections_total{", "kubeferry_ebpf_packets_total{"],
                false => &["kubeferry_rows{"],
            };
            let is_told = |name: &&str| body.lines().any(|line| line.starts_with(*name));
            last.iter().all(is_told).then_some(body)
        });
        let text = text.unwrap_or_else(|error| panic!("{error:#}; the log:\n{}", fs::read_to_string(&log).unwrap()));
        exposed += &text;
    }
    exposed
}

fn parse(text: &str) -> Exposed {
    let mut exposed = Exposed::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            for suffix in suffixes {
                exposed.entry(format!("{name}{suffix}")).or_default();
            }
        } else if !line.starts_with('#') {
            let (name, labels) = line.split_once(['{', ' ']).unwrap();
            let labels = if line.contains('{') { labels } else { "" };
            let names =
                labels.split("=\"").filter_map(|part| part.rsplit([',', '"']).next()).filter(|name| is_name(name));
            exposed.get_mut(name).unwrap_or_else(|| panic!("{line} has no type")).extend(names.map(str::to_owned));
        }
    }
    exposed
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The metrics that an expression reads, and the labels that it names of any of them.
pub fn read(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    // Without what is in quotes and in brackets: values of labels, times.
    let mut plain = String::new();
    let mut skip_to = None;
    for c in expression.chars() {
        match (skip_to, c) {
            (Some(end), c) if c == end => skip_to = None,
            (Some(_), _) => {}
            (None, '"') => skip_to = Some('"'),
            (None, '[') => skip_to = Some(']'),
            (None, c) => plain.push(c),
        }
    }
    let mut words = Vec::new();
    let mut word = String::new();
    for c in plain.chars().chain([' ']) {
        if c.is_ascii_alphanumeric() || c == '_' {
            word.push(c);
            continue;
        }
        if !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if !c.is_whitespace() {
            words.push(c.to_string());
        }
    }
    let (mut in_braces, mut in_list, mut before) = (false, false, String::new());
    for word in words {
        match word.as_str() {
            "{" => in_braces = true,
            "}" => in_braces = false,
            "(" if ["by", "on", "without", "ignoring"].contains(&before.as_str()) => in_list = true,
            ")" => in_list = false,
            word if !is_name(word) || WORDS.contains(&word) => {}
            word if in_braces || in_list => drop(labels.insert(word.to_owned())),
            word => drop(metrics.insert(word.to_owned())),
        }
        before = word;
    }
    (metrics, labels)
}

fn check(exposed: &Exposed, place: &str, expression: &str) {
    let (metrics, labels) = read(expression);
    assert!(!metrics.is_empty(), "{place} reads nothing: {expression}");
    let mut known: BTreeSet<String> = LABELS_OF_TARGETS.iter().map(|label| (*label).to_owned()).collect();
    for metric in metrics.iter().filter(|metric| !OF_PROMETHEUS.contains(&metric.as_str())) {
        let found = exposed.get(metric).unwrap_or_else(|| panic!("{place}: no {metric} is exposed: {expression}"));
        known.extend(found.iter().cloned());
    }
    let unknown: Vec<_> = labels.difference(&known).collect();
    assert!(unknown.is_empty(), "{place}: labels {unknown:?} are on none of its metrics: {expression}");
}

#[test]
fn alerts_and_dashboard_read_what_is_exposed() {
    let exposed = parse(exposed());
    let objects = objects_with("overlays/nftables", &["monitoring"]);
    let rule = objects[&("PrometheusRule".to_owned(), "kubeferry".to_owned())].clone();
    let rule: PrometheusRule = serde_json::from_value(rule).unwrap();
    let rules: Vec<_> = rule.spec.groups.iter().flat_map(|group| &group.rules).collect();
    assert!(rules.len() >= 10);
    for rule in rules {
        check(&exposed, &rule.alert, &rule.expr);
    }
    for expression in OF_KUBE_PROXYS_DASHBOARD {
        check(&exposed, "kube-proxy's dashboard", expression);
    }
    let map = &objects[&("ConfigMap".to_owned(), "kubeferry-dashboard".to_owned())];
    let text = map["data"]["kubeferry.json"].as_str().unwrap();
    assert_eq!(text, fs::read_to_string(folder().join("components/monitoring/dashboard.json")).unwrap());
    let dashboard: Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    assert!(panels.len() >= 12);
    for panel in panels {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            assert!(expression.contains("job=\"kubeferry\"") && expression.contains("$node"), "{expression}");
            check(&exposed, panel["title"].as_str().unwrap(), &expression.replace("$node", "x"));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if let Some(definition) = variable["definition"].as_str() {
            check(&exposed, "the variable", definition.split_once(',').unwrap().0);
        }
    }
}

#[test]
fn expressions_are_read() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let of = |expression| read(expression);
    assert_eq!(
        of("histogram_quantile(0.99, sum by (le, node) (rate(a_bucket{job=\"no_metric\"}[10m]))) > 30"),
        (names(&["a_bucket"]), names(&["le", "node", "job"]))
    );
    assert_eq!(
        of("a_b - c{x=~\".*\",y!=\"z\"} > 0 and on (instance) d"),
        (names(&["a_b", "c", "d"]), names(&["x", "y", "instance"]))
    );
    let exposed =
        parse("# TYPE a histogram\na_bucket{le=\"1\",x=\"y=\\\"\"} 1\na_sum 2\na_count 3\n# TYPE b counter\nb 1\n");
    assert_eq!(exposed["a_bucket"], names(&["le", "x"]));
    assert_eq!(exposed.keys().collect::<Vec<_>>(), ["a_bucket", "a_count", "a_sum", "b"]);
}
