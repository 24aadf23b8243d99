//! Prometheus itself reads the alerts and the dashboard, and evaluates the alerts on series like a running proxy's: `alerts.yaml`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::metrics::{LABELS_OF_TARGETS, OF_KUBE_PROXYS_DASHBOARD, exposed, read};
use super::objects_with;

/// Series whose labels have values of the build.
const OF_THE_BUILD: &str = "kubeferry_build_info";

/// Runs `promtool`, which `cargo xtask` keeps in `target/tools`, in a folder, and panics with what it says if it fails.
fn promtool(folder: &Path, arguments: &[&str]) {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths([tools].into_iter().chain(std::env::split_paths(&path))).unwrap();
    let mut command = Command::new("promtool");
    let output = command.args(arguments).current_dir(folder).env("PATH", path).output().unwrap_or_else(|error| {
        panic!("promtool: {error}; it is in Debian's package prometheus, of which `cargo xtask test deploy` fetches it")
    });
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
    println!("{said}");
}

/// The groups of the PrometheusRule.
fn spec() -> Value {
    objects_with("overlays/nftables", &["monitoring"])[&("PrometheusRule".to_owned(), "kubeferry".to_owned())]["spec"]
        .clone()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

fn list<'a>(value: &'a Value, field: &str) -> &'a Vec<Value> {
    value[field].as_array().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// A series' name, and its labels, sorted, without those of its target.
fn shape(series: &str) -> (String, Vec<(String, String)>) {
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    // No value in the cases, nor any that the compared ones have, has a comma.
    let pairs = labels.split(',').filter(|pair| !pair.is_empty()).map(|pair| {
        let (label, value) = pair.trim().split_once('=').unwrap_or_else(|| panic!("{series}"));
        (label.to_owned(), value.trim_matches('"').to_owned())
    });
    let mut labels: Vec<_> = pairs.filter(|(label, _)| !LABELS_OF_TARGETS.contains(&label.as_str())).collect();
    labels.sort();
    (name.to_owned(), labels)
}

#[test]
fn every_alert_fires_and_is_silent_as_its_cases_say() {
    let folder = tempfile::tempdir().unwrap();
    let (spec, cases) = (spec(), include_str!("alerts.yaml"));
    fs::write(folder.path().join("rules.yaml"), spec.to_string()).unwrap();
    fs::write(folder.path().join("alerts.yaml"), cases).unwrap();
    promtool(folder.path(), &["check", "rules", "--lint=all", "--lint-fatal", "rules.yaml"]);
    promtool(folder.path(), &["test", "rules", "alerts.yaml"]);

    let cases: Value = serde_yaml_ng::from_str(cases).unwrap();
    for rule in list(&spec, "groups").iter().flat_map(|group| list(group, "rules")) {
        let (alert, metrics) = (text(rule, "alert"), read(text(rule, "expr")).0);
        let (mut fires, mut silent) = (false, false);
        for case in list(&cases, "tests") {
            let given: BTreeSet<String> =
                list(case, "input_series").iter().map(|series| shape(text(series, "series")).0).collect();
            let mut looks = list(case, "alert_rule_test").iter().filter(|look| look["alertname"] == alert).peekable();
            if looks.peek().is_some() {
                assert!(metrics.is_subset(&given), "{}: the alert reads {metrics:?}", case["name"]);
                let fired = looks.any(|look| !list(look, "exp_alerts").is_empty());
                (fires, silent) = (fires | fired, silent | !fired);
            }
        }
        assert!(fires && silent, "{alert}: a case where it fires: {fires}, one where it never does: {silent}");
    }
}

#[test]
fn the_series_of_the_cases_are_those_of_running_proxies() {
    let cases: Value = serde_yaml_ng::from_str(include_str!("alerts.yaml")).unwrap();
    let told: BTreeSet<_> = exposed().lines().filter_map(|line| Some(shape(line.rsplit_once(' ')?.0))).collect();
    let mut compared = 0;
    for series in list(&cases, "tests").iter().flat_map(|case| list(case, "input_series")) {
        let (name, labels) = shape(text(series, "series"));
        if name == "up" {
            continue;
        }
        let names = |labels: &[(String, String)]| labels.iter().map(|(label, _)| label.clone()).collect::<Vec<_>>();
        let known = match name.as_str() {
            OF_THE_BUILD => told.iter().any(|(known, has)| *known == name && names(has) == names(&labels)),
            _ => told.contains(&(name.clone(), labels.clone())),
        };
        assert!(known, "no proxy exposes {name} with {labels:?}");
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}

/// What a person chooses in Grafana, and what it makes of the time that is shown.
fn filled_in(expression: &str) -> String {
    let filled = expression.replace("$node", ".*").replace("$__rate_interval", "2m");
    assert!(!filled.contains('$'), "a variable of Grafana that this test does not know: {expression}");
    filled
}

#[test]
fn every_expression_of_the_dashboard_is_one() {
    let objects = objects_with("overlays/nftables", &["monitoring"]);
    let map = &objects[&("ConfigMap".to_owned(), "kubeferry-dashboard".to_owned())];
    let dashboard: Value = serde_json::from_str(map["data"]["kubeferry.json"].as_str().unwrap()).unwrap();
    let targets = list(&dashboard, "panels").iter().flat_map(|panel| list(panel, "targets"));
    let panels: Vec<String> = targets.map(|target| filled_in(text(target, "expr"))).collect();
    assert!(panels.len() >= 20, "{panels:?}");
    let variables =
        list(&dashboard["templating"], "list").iter().filter_map(|variable| variable["definition"].as_str());
    let of_variables: Vec<String> = variables
        .map(|definition| {
            let inner = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(", node)"));
            inner.unwrap_or_else(|| panic!("{definition}")).to_owned()
        })
        .collect();
    assert!(!of_variables.is_empty());
    let theirs = OF_KUBE_PROXYS_DASHBOARD.iter().map(|text| (*text).to_owned());
    let rules: Vec<Value> = panels
        .into_iter()
        .chain(of_variables)
        .chain(theirs)
        .enumerate()
        .map(|(number, expression)| json!({"record": format!("expression:{number}"), "expr": expression}))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let file = json!({"groups": [{"name": "dashboard", "rules": rules}]});
    fs::write(folder.path().join("dashboard.yaml"), file.to_string()).unwrap();
    promtool(folder.path(), &["check", "rules", "dashboard.yaml"]);
}
