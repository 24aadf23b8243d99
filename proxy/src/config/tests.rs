use super::decode::Decoded;
use super::*;

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// What kubeadm puts into the ConfigMap `kube-proxy`, Kubernetes 1.31 to 1.36.
pub(crate) const KUBEADM: &str = include_str!("../../tests-data/config/good/kubeadm.yaml");

fn read(fields: &str) -> Decoded {
    decode(&format!("{HEADER}{fields}"))
}

fn problems(fields: &str) -> Vec<String> {
    read(fields).problems.iter().map(ToString::to_string).collect()
}

fn warned(decoded: &Decoded, mode: &str) -> Vec<String> {
    decoded.config.without_effect(mode, |field| field.block() == Some(mode))
}

#[test]
fn what_kubeadm_writes_asks_for_nothing_unusual() {
    let decoded = decode(KUBEADM);
    assert_eq!(decoded.problems, []);
    assert_eq!(decoded.warnings, Vec::<String>::new());
    assert_eq!(warned(&decoded, "iptables"), Vec::<String>::new());
    assert_eq!(decoded.config.text("clusterCIDR"), Some("10.244.0.0/16"));
    assert_eq!(decoded.config.text("clientConnection.kubeconfig"), Some("/var/lib/kube-proxy/kubeconfig.conf"));
    assert_eq!(decoded.config.texts("nodePortAddresses"), None);
    assert_eq!(decoded.config.duration("iptables.syncPeriod"), None);
}

#[test]
fn kube_proxys_written_defaults_ask_for_nothing_unusual() {
    let decoded = decode(include_str!("../../tests-data/config/good/defaults.yaml"));
    assert_eq!(decoded.problems, []);
    assert_eq!(decoded.warnings, Vec::<String>::new());
    assert_eq!(warned(&decoded, "nftables"), Vec::<String>::new());
}

#[test]
fn json_is_read_too() {
    let text = r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "nftables": {"masqueradeBit": 3, "syncPeriod": "1m"}}"#;
    let decoded = decode(text);
    assert_eq!(decoded.problems, []);
    assert_eq!(decoded.config.integer("nftables.masqueradeBit"), Some(3));
    assert_eq!(decoded.config.duration("nftables.syncPeriod"), Some(SignedDuration::from_secs(60)));
}

#[test]
fn every_problem_is_named_at_once() {
    let got = problems(
        "bindAddressHardFail: yep\nnftables: {masqueradeBit: 32, syncPeriod: 30, minSyncPeriod: -1s}\n\
         conntrack: {min: -1}\noomScoreAdj: 1001\nnodePortAddresses: primary\nfeatureGates: {A: 1}\nipvs: [1]\n\
         clusterCIDR: 10\nclientConnection: {qps: fast}",
    );
    let wanted = [
        "bindAddressHardFail = \"yep\": must be true or false",
        "clientConnection.qps = \"fast\": must be a number",
        "clusterCIDR = 10: must be a string: put it in quotes",
        "conntrack.min = -1: must be a whole number from 0 to 2147483647",
        "featureGates = {A: 1}: A must be true or false",
        "ipvs = [1]: must be a mapping of fields to values",
        "nftables.masqueradeBit = 32: must be a whole number from 0 to 31",
        "nftables.minSyncPeriod = \"-1s\": must not be negative",
        "nftables.syncPeriod = 30: must be a duration such as 30s, 500ms or 1h5m",
        "nodePortAddresses = \"primary\": must be a list of strings",
        "oomScoreAdj = 1001: must be a whole number from -1000 to 1000",
    ];
    assert_eq!(got, wanted);
}

#[test]
fn unknown_and_duplicate_fields_are_warnings() {
    let decoded = read("clusterCidr: x\niptables: {foo: {bar: 1}}\nhostnameOverride: a\nhostnameOverride: b\n");
    assert_eq!(decoded.problems, []);
    assert_eq!(
        decoded.warnings,
        [
            "hostnameOverride is given more than once: the last one counts",
            "clusterCidr is not a field of KubeProxyConfiguration: ignored",
            "iptables.foo is not a field of KubeProxyConfiguration: ignored",
        ]
    );
    assert_eq!(decoded.config.text("hostnameOverride"), Some("b"));
}

#[test]
fn the_file_must_be_a_kube_proxy_configuration() {
    let text = |text: &str| decode(text).problems.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text("apiVersion: v1\nkind: KubeProxyConfiguration").len(), 1);
    assert_eq!(text("clusterCIDR: 10.0.0.0/8").len(), 2);
    assert!(text("- a")[0].contains("must be a mapping"));
    let broken = text("apiVersion: [\nkind: x");
    assert!(broken[0].contains("cannot be read as YAML") && broken[0].contains("line"), "{broken:?}");
    assert!(!text("").is_empty());
}

#[test]
fn the_first_document_is_read_and_more_are_told() {
    let read = |text: &str| {
        let decoded = decode(text);
        assert_eq!(decoded.problems, [], "{text}");
        (decoded.config.text("hostnameOverride").map(str::to_owned), decoded.warnings)
    };
    let first = Some("a".to_owned());
    let one = format!("{HEADER}hostnameOverride: a\n");
    for text in [format!("{one}---\n"), format!("\u{feff}{one}"), format!("# x\n---\n{one}...\n---\n# nothing\n")] {
        assert_eq!(read(&text), (first.clone(), vec![]));
    }
    let told = "the file has 2 documents: only the first is read, as by kube-proxy".to_owned();
    assert_eq!(read(&format!("{one}---\nhostnameOverride: b\n")), (first, vec![told]));
    let broken = decode(&format!("# x\n\n---\n{HEADER}mode: [\n")).problems[0].to_string();
    assert!(broken.contains("line 6") || broken.contains("line 7"), "{broken}");
}

#[test]
fn switches_are_read_as_in_yaml_1_1() {
    let decoded = read("enableProfiling: yes\nbindAddressHardFail: Off\nfeatureGates: {GangScheduling: on}");
    assert_eq!(decoded.problems, []);
    assert_eq!(decoded.config.bool("enableProfiling"), Some(true));
    assert_eq!(decoded.config.bool("bindAddressHardFail"), Some(false));
    assert_eq!(decoded.config.switches("featureGates").collect::<Vec<_>>(), [("GangScheduling", true)]);
}

#[test]
fn fields_without_effect_are_named_where_they_ask_for_something() {
    let decoded = read(
        "clientConnection: {qps: 5, burst: 20}\nfeatureGates: {NFTablesProxyMode: true, GangScheduling: true, NoSuchGate: true}\n\
         ipvs: {strictARP: true}\niptables: {localhostNodePorts: true, masqueradeAll: true}\nportRange: \"\"\n\
         logging: {flushFrequency: 5000000000, vmodule: [{filePattern: a, verbosity: 3}], options: {json: {infoBufferSize: 1Ki}}}",
    );
    assert_eq!(decoded.problems, []);
    let always = [
        "featureGates.GangScheduling = true has no effect: it turns nothing on or off",
        "featureGates.NoSuchGate = true has no effect: no gate of Kubernetes 1.34 to 1.37",
        "clientConnection.burst = 20 has no effect: requests are few",
        "logging.vmodule = a=3 has no effect: files of Go",
        "logging.options.json.infoBufferSize = 1Ki has no effect: log lines",
    ];
    let begins = |warnings: &[String], more: &[&str]| {
        let wanted: Vec<&str> = always.iter().chain(more).copied().collect();
        assert_eq!(warnings.len(), wanted.len(), "{warnings:?}");
        assert!(warnings.iter().zip(&wanted).all(|(text, start)| text.starts_with(start)), "{warnings:?}");
    };
    let masquerade = "iptables.masqueradeAll = true is not read: the mode is ";
    begins(&warned(&decoded, "nftables"), &[masquerade, "ipvs.strictARP = true is not read: the mode is nftables"]);
    begins(&warned(&decoded, "ipvs"), &[masquerade, "ipvs.strictARP = true has no effect: there is no IPVS here"]);
    begins(&warned(&decoded, "iptables"), &["ipvs.strictARP = true is not read: the mode is iptables"]);
}

#[test]
fn flags_are_read_as_their_fields_are() {
    let mut config = ProxyConfig::default();
    for (flag, text) in [
        ("feature-gates", "A=true,B=f,"),
        ("kube-api-qps", "2.5"),
        ("kube-api-burst", "0x7"),
        ("ipvs-exclude-cidrs", "10.0.0.0/8,fd00::/8"),
        ("ipvs-strict-arp", "T"),
        ("conntrack-tcp-timeout-established", "0"),
        ("vmodule", "proxy=4,w*=2"),
        ("log-flush-frequency", "5s"),
        ("log-json-info-buffer-size", "4Ki"),
    ] {
        config.set_flag(flag, text).unwrap();
    }
    let given: Vec<String> = config.given().map(|(path, value)| format!("{path}={value}")).collect();
    let wanted = [
        "clientConnection.burst=7",
        "clientConnection.qps=2.5",
        "conntrack.tcpEstablishedTimeout=0s",
        "featureGates=A=true,B=false",
        "ipvs.excludeCIDRs=[\"10.0.0.0/8\", \"fd00::/8\"]",
        "ipvs.strictARP=true",
        "logging.flushFrequency=5s",
        "logging.options.json.infoBufferSize=4Ki",
        "logging.vmodule=proxy=4,w*=2",
    ];
    assert_eq!(given, wanted);
    assert_eq!(config.duration("conntrack.tcpEstablishedTimeout"), Some(SignedDuration::ZERO));
    assert_eq!(config.origin("ipvs.strictARP"), "--ipvs-strict-arp");
    for (flag, text, part) in [
        ("conntrack-min", "x", "whole number from 0"),
        ("profiling", "maybe", "true or false"),
        ("vmodule", "=3", "filePattern"),
        ("feature-gates", "A", "A must be true or false"),
        ("log-json-info-buffer-size", "4KiB", "number of bytes"),
        ("no-such-flag", "", "no field"),
    ] {
        let problem = config.set_flag(flag, text).unwrap_err().to_string();
        assert!(problem.starts_with(&format!("--{flag} = {text:?}: ")) && problem.contains(part), "{problem}");
    }
}

#[test]
fn integers_are_read_as_go_does() {
    for (text, wanted) in [
        ("0", Some(0)),
        ("-999", Some(-999)),
        ("+7", Some(7)),
        ("0x10", Some(16)),
        ("-0X1f", Some(-31)),
        ("0b101", Some(5)),
        ("0o17", Some(15)),
        ("017", Some(15)),
        ("131_072", Some(131_072)),
        ("0x_1F", Some(31)),
        ("0_7", Some(7)),
        ("9223372036854775807", Some(i64::MAX)),
        ("-9223372036854775808", Some(i64::MIN)),
        ("9223372036854775808", None),
        ("", None),
        ("-", None),
        ("08", None),
        ("0x", None),
        ("0x-1", None),
        ("--1", None),
        ("_1", None),
        ("1_", None),
        ("1__0", None),
        ("1e3", None),
        (" 1", None),
    ] {
        assert_eq!(go_integer(text), wanted, "{text:?}");
    }
}

#[test]
fn no_field_is_listed_twice_or_is_a_section() {
    let mut paths: Vec<&str> = FIELDS.iter().map(|field| field.path).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), FIELDS.len());
    assert!(paths.iter().all(|path| !schema::is_section(path)));
}
