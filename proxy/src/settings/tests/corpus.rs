//! `tests-data/config`: each file of `good` and `bad` says in its first lines what is to be said of it.

use std::path::Path;

use super::super::*;

/// The files of a folder: name, text, and what follows `# MARK: ` in its lines.
fn cases(folder: &str, mark: &str) -> Vec<(String, String, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests-data/config").join(folder);
    let mut cases: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let says = text.lines().filter_map(|line| line.strip_prefix(&format!("# {mark}: ")).map(str::to_owned));
            (path.file_stem().unwrap().to_string_lossy().into_owned(), text.clone(), says.collect())
        })
        .collect();
    cases.sort();
    assert!(cases.len() > 10, "{folder:?}");
    cases
}

fn load(text: &str) -> Result<Loaded, SettingsError> {
    let file = ConfigFile { path: "config.conf".into(), text: text.to_owned() };
    Settings::resolve(&CommonArgs::default(), &ServeArgs::default(), Some(file), "worker-1")
}

#[test]
fn bad_files_are_refused_each_with_its_messages() {
    for (name, text, says) in cases("bad", "says") {
        match load(&text) {
            Err(SettingsError::Wrong { problems, warnings }) => {
                let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
                assert_eq!(said, says, "{name}");
                let twice =
                    |problem: &Problem| warnings.iter().any(|text| text.starts_with(&format!("{} = ", problem.what)));
                let mut gates = problems.iter().filter(|problem| problem.what.starts_with("featureGates."));
                assert!(!gates.any(twice), "{name}: {warnings:?}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn flags_are_refused_as_the_field_is() {
    let flags = ["kubeferry", "run", "--feature-gates", "NoSuchGate=true,AllowServiceExternalIPs=false"];
    let crate::args::Command::Run(args) = crate::args::parse(flags).unwrap().command else { panic!("run") };
    let Err(SettingsError::Wrong { problems, .. }) = Settings::resolve(&args.common, &args.serve, None, "n1") else {
        panic!("a gate is turned off that cannot be")
    };
    let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
    assert!(
        said.len() == 1 && said[0].starts_with("--feature-gates.AllowServiceExternalIPs = false: cannot be turned off"),
        "{said:?}"
    );
}

#[test]
fn blanks_and_nothing_are_refused_in_flags_as_kube_proxy_does() {
    let refused = |flags: &[&str]| {
        let line = [["kubeferry", "run"].as_slice(), flags].concat();
        let crate::args::Command::Run(args) = crate::args::parse(line).unwrap().command else { panic!("run") };
        match Settings::resolve(&args.common, &args.serve, None, "n1") {
            Err(SettingsError::Wrong { problems, .. }) => problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
            other => panic!("{flags:?}: {other:?}"),
        }
    };
    let one = "must be a CIDR, or one of each family such as 10.244.0.0/16,fd00:10:244::/56, without blanks";
    let node_ports = "must be CIDRs such as 192.168.0.0/16, `primary`, `localhost` or `all`, without blanks";
    for (flag, value, says) in [
        ("--cluster-cidr", "10.244.0.0/16, fd00::/56", format!("\"10.244.0.0/16, fd00::/56\": {one}")),
        ("--cluster-cidr", "", format!("\"\": {}", one.replace(", without blanks", ""))),
        ("--cluster-cidr", "10.244.0.0/16 ", format!("\"10.244.0.0/16 \": {one}")),
        ("--nodeport-addresses", "192.0.2.0/24, 2001:db8::/64", format!("\" 2001:db8::/64\": {node_ports}")),
        ("--nodeport-addresses", "primary,localhost ", format!("\"localhost \": {node_ports}")),
        (
            "--node-addresses",
            "192.0.2.1, 2001:db8::1",
            "\" 2001:db8::1\": must be IP addresses, with commas, without blanks".into(),
        ),
    ] {
        assert_eq!(refused(&[flag, value]), [format!("{flag} = {says}")]);
    }
    let excluded = refused(&["--proxy-mode=ipvs", "--ipvs-exclude-cidrs", "10.0.0.0/8 ,192.0.2.0/24"]);
    assert!(
        excluded.len() == 1
            && excluded[0].ends_with("= \"10.0.0.0/8 \": must be a CIDR such as 192.168.0.0/16, without blanks"),
        "{excluded:?}"
    );
}

#[test]
fn good_files_are_taken_each_with_its_warnings() {
    for (name, text, says) in cases("good", "warns") {
        let warnings = load(&text).unwrap_or_else(|error| panic!("{name}: {error}")).warnings;
        assert_eq!(warnings.len(), says.len(), "{name}: {warnings:#?}");
        for (warning, start) in warnings.iter().zip(&says) {
            assert!(warning.starts_with(start), "{name}: {warning}\nand not {start}");
        }
    }
}

#[test]
fn what_is_written_of_a_good_file_gives_the_same_settings() {
    for (name, text, _) in cases("good", "warns") {
        let first = load(&text).unwrap();
        let written = first.effective().unwrap();
        let second = load(&written).unwrap_or_else(|error| panic!("{name}: {error}\n{written}"));
        assert_eq!(second.settings, first.settings, "{name}\n{written}");
        assert_eq!(second.effective().unwrap(), written, "{name}");
        let decoded = crate::config::decode(&written);
        assert_eq!((decoded.problems, decoded.warnings), (Vec::new(), Vec::new()), "{name}: kube-proxy can read it");
    }
}

#[test]
fn what_is_written_is_the_same_in_yaml_1_1() {
    let (_, text, _) = cases("good", "warns").into_iter().find(|(name, ..)| name.starts_with("texts_that")).unwrap();
    let written = load(&text).unwrap().effective().unwrap();
    for line in ["hostnameOverride: 'no'", "  bridgeInterface: '1_0'", "metricsBindAddress: 127.0.0.1:10249"] {
        assert!(written.lines().any(|known| known == line), "{line}: {written}");
    }
}

#[test]
fn what_kubeadm_leaves_to_kube_proxy_is_written_with_its_defaults() {
    let (_, kubeadm, _) = cases("good", "warns").into_iter().find(|(name, ..)| name == "kubeadm").unwrap();
    let file = ConfigFile { path: "config.conf".into(), text: kubeadm };
    let flags = ["kubeferry", "run", "--hostname-override", " Worker-1 "];
    let crate::args::Command::Run(args) = crate::args::parse(flags).unwrap().command else { panic!("run") };
    let loaded = Settings::resolve(&args.common, &args.serve, Some(file), "host").unwrap();
    let written = loaded.effective().unwrap();
    for line in [
        "configSyncPeriod: 15m",
        "hostnameOverride: worker-1",
        "  burst: 10",
        "  qps: 5",
        "  contentType: application/vnd.kubernetes.protobuf",
        "iptables:\n  localhostNodePorts: null\n  masqueradeAll: false\n  masqueradeBit: 14\n  minSyncPeriod: 0s\n  syncPeriod: 30s",
        "  scheduler: rr\n  strictARP: false\n  syncPeriod: 30s",
        "  flushFrequency: 5s",
    ] {
        assert!(written.contains(&format!("{line}\n")), "{line} in\n{written}");
    }
}

#[test]
fn defaults_are_written_out() {
    let loaded = Settings::resolve(&CommonArgs::default(), &ServeArgs::default(), None, "worker-1").unwrap();
    let written = loaded.effective().unwrap();
    for line in [
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
        "kind: KubeProxyConfiguration",
        "mode: nftables",
        "bindAddress: 0.0.0.0",
        "healthzBindAddress: 0.0.0.0:10256",
        "metricsBindAddress: 127.0.0.1:10249",
        "oomScoreAdj: -999",
        "configSyncPeriod: 15m",
        "nodePortAddresses:\n- primary",
        "  maxPerCore: 32768",
        "  tcpEstablishedTimeout: 24h",
        "detectLocalMode: ClusterCIDR",
        "ipvs:\n  excludeCIDRs: null\n  minSyncPeriod: 0s\n  scheduler: rr",
    ] {
        assert!(written.contains(&format!("{line}\n")), "{line} in\n{written}");
    }
    assert!(!written.contains("ebpf") && !written.contains("snatNodeInternalIP"), "{written}");
}
