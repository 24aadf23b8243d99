//! Nothing is ignored silently: every field and every flag of kube-proxy changes the settings, or is named in a warning.

use serde_json::{Value as Json, json};

use super::super::*;
use crate::args::{Command, parse};
use crate::config::schema::{Effect, FIELDS, Field, Kind};

/// A value that is not the default.
fn sample(field: &Field) -> Json {
    match (field.path, field.kind) {
        ("mode", _) => json!("ipvs"),
        ("hostnameOverride", _) => json!("other"),
        ("bindAddress", _) => json!("192.0.2.7"),
        ("healthzBindAddress" | "metricsBindAddress", _) => json!("192.0.2.7:7"),
        ("detectLocalMode", _) => json!("NodeCIDR"),
        ("clusterCIDR", _) => json!("10.7.0.0/16"),
        ("nodePortAddresses" | "ipvs.excludeCIDRs", _) => json!(["10.7.0.0/16"]),
        ("showHiddenMetricsForVersion", _) => json!("1.35"),
        ("ipvs.scheduler", _) => json!("sh"),
        ("logging.format", _) => json!("json"),
        ("portRange", _) => json!("7-8"),
        ("ebpf.xdp" | "ebpf.socketLB", _) => json!("off"),
        ("serviceMetrics", _) => json!("full"),
        ("ebpf.bpfLogLevel", _) => json!("info"),
        ("ebpf.masqueradePorts", _) => json!("7-8"),
        // The default is to warn of it.
        ("iptables.localhostNodePorts", _) => json!(false),
        (_, Kind::Text) => json!("seven"),
        (_, Kind::Bool) => json!(true),
        (_, Kind::Integer(..) | Kind::Number) => json!(7),
        (_, Kind::Duration | Kind::Nanoseconds) => json!("7s"),
        (_, Kind::Quantity) => json!("7"),
        (_, Kind::Texts) => json!(["seven"]),
        (_, Kind::Switches) => json!({"GangScheduling": true}),
        (_, Kind::Modules) => json!([{"filePattern": "seven", "verbosity": 7}]),
    }
}

/// The sample as a flag's text.
fn text(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        Json::Array(items) if items[0].is_string() => items[0].as_str().unwrap().to_owned(),
        Json::Array(_) => "seven=7".to_owned(),
        Json::Object(_) => "GangScheduling=true".to_owned(),
        other => other.to_string(),
    }
}

/// Whether a warning names a field or flag with its sample; each gate is named by itself.
fn is_named(warnings: &[String], what: &str, field: &Field) -> bool {
    let gate = if field.kind == Kind::Switches { ".GangScheduling" } else { "" };
    warnings.iter().any(|text| text.starts_with(&format!("{what}{gate} = ")))
}

/// Whether kube-proxy refuses the field without this gate.
fn needs_alpha_options(field: &Field) -> bool {
    field.path.starts_with("logging.options.")
}

/// What goes with a field so that it can have an effect: the mode whose block it is in, a detector for its argument, its gate.
fn base(field: &Field) -> Json {
    let mode = field.block().filter(|block| *block != "ebpf").unwrap_or("nftables");
    let mut base =
        json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "mode": mode});
    if needs_alpha_options(field) {
        base["featureGates"] = json!({"LoggingAlphaOptions": true});
    }
    if let Some(name) = field.path.strip_prefix("detectLocal.") {
        let mode = if name == "bridgeInterface" { "BridgeInterface" } else { "InterfaceNamePrefix" };
        base["detectLocalMode"] = json!(mode);
        base["detectLocal"] = json!({name: "first"});
    }
    base
}

fn load(file: &Json) -> Loaded {
    let file = ConfigFile { path: "config.conf".into(), text: file.to_string() };
    Settings::resolve(&CommonArgs::default(), &ServeArgs::default(), Some(file), "worker-1").unwrap()
}

#[test]
fn every_field_does_something_or_is_warned_about() {
    for field in FIELDS.iter().filter(|field| !["apiVersion", "kind"].contains(&field.path)) {
        let without = base(field);
        let mut with = without.clone();
        *field.path.split('.').fold(&mut with, |place, name| &mut place[name]) = sample(field);
        let (without, with) = (load(&without), load(&with));
        let named = is_named(&with.warnings, field.path, field);
        match (field.path, field.effect) {
            ("iptables.localhostNodePorts", _) => assert_ne!(without.warnings, with.warnings),
            (path, Effect::Honoured) => assert_ne!(without.settings, with.settings, "{path} is said to be honoured"),
            (path, Effect::Warned) => {
                assert_eq!(without.settings, with.settings, "{path} is said to have no effect");
                assert!(named, "{path} is not named: {:?}", with.warnings);
            }
        }
    }
}

fn run(flags: &[String]) -> Loaded {
    let line = ["kubeferry", "run"].into_iter().map(str::to_owned).chain(flags.iter().cloned());
    let Command::Run(args) = parse(line).unwrap().command else { panic!("{flags:?}") };
    Settings::resolve(&args.common, &args.serve, None, "worker-1").unwrap()
}

#[test]
fn every_flag_with_a_field_does_something_or_is_warned_about() {
    for field in FIELDS.iter().filter(|field| field.block() != Some("ebpf")) {
        let Some(flag) = field.flag else { continue };
        let mut flags = match field.block() {
            Some(block) => vec![format!("--proxy-mode={block}")],
            None => Vec::new(),
        };
        match field.path {
            "detectLocal.bridgeInterface" => {
                flags
                    .extend(["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=first"].map(str::to_owned));
            }
            "detectLocal.interfaceNamePrefix" => flags.extend(
                ["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=first"].map(str::to_owned),
            ),
            _ if needs_alpha_options(field) => flags.push("--feature-gates=LoggingAlphaOptions=true".to_owned()),
            _ => {}
        }
        // Both are for the same mode.
        if field.path.starts_with("iptables.") && field.path.contains("Sync") {
            flags[0] = "--proxy-mode=iptables".to_owned();
        }
        let without = run(&flags);
        flags.push(format!("--{flag}={}", text(&sample(field))));
        let with = run(&flags);
        let named = is_named(&with.warnings, &format!("--{flag}"), field);
        let changed = without.settings != with.settings;
        match (field.path, field.effect) {
            ("iptables.localhostNodePorts", _) => assert_ne!(without.warnings, with.warnings),
            (_, Effect::Honoured) => assert!(changed, "--{flag} is said to be honoured"),
            (_, Effect::Warned) => assert!(named && !changed, "--{flag}: {:?}", with.warnings),
        }
    }
}

#[test]
fn what_differs_is_applied_or_needs_a_start() {
    for field in FIELDS.iter().filter(|field| field.effect == Effect::Honoured) {
        if ["apiVersion", "kind"].contains(&field.path) {
            continue;
        }
        let without = base(field);
        let mut with = without.clone();
        *field.path.split('.').fold(&mut with, |place, name| &mut place[name]) = sample(field);
        let (mut without, mut with) = (load(&without).settings, load(&with).settings);
        if field.block() == Some("ebpf") {
            (without.backend, with.backend) = (BackendName::Ebpf, BackendName::Ebpf);
        }
        let change = change::between(&without, &with);
        assert!(!change.is_empty(), "{} is a change", field.path);
        assert!(change::between(&with, &with).is_empty());
        let start = ["ebpf.", "conntrack", "oom", "hostname", "healthz", "metrics", "client", "enable", "show"];
        let start = start.iter().any(|part| field.path.starts_with(part));
        let start = start || ["bindAddressHardFail", "logging.format", "serviceMetrics"].contains(&field.path);
        assert_eq!(!change.restart.is_empty(), start, "{}: {change:?}", field.path);
    }
    let old =
        load(&json!({"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"})).settings;
    let ebpf = |settings: &Settings| Settings { backend: BackendName::Ebpf, ..settings.clone() };
    assert_eq!(change::between(&old, &ebpf(&old)).restart, ["mode"]);
    let mut other = old.clone();
    other.datapath.detect_local = DetectLocal::NodeCidr;
    assert_eq!(change::between(&old, &other).live, ["detectLocalMode"]);
    assert_eq!(change::between(&ebpf(&old), &ebpf(&other)).restart, ["detectLocalMode"]);
}
