use super::decode::Decoded;
use super::*;

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// What kubeadm puts into the ConfigMap `kube-proxy`, Kubernetes 1.33 and later.
pub(crate) const KUBEADM: &str = include_str!("../../tests-data/config/kubeadm.yaml");

fn read(fields: &str) -> Decoded {
    decode(&format!("{HEADER}{fields}"))
}

fn problems(fields: &str) -> Vec<String> {
    read(fields).problems.iter().map(ToString::to_string).collect()
}

#[test]
fn what_kubeadm_writes_asks_for_nothing_unusual() {
    let decoded = decode(KUBEADM);
    assert_eq!(decoded.problems, []);
    assert_eq!(decoded.warnings, Vec::<String>::new());
    assert_eq!(decoded.config.not_honoured("iptables"), Vec::<String>::new());
    assert_eq!(decoded.config.text("clusterCIDR"), Some("10.244.0.0/16"));
    assert_eq!(decoded.config.text("clientConnection.kubeconfig"), Some("/var/lib/kube-proxy/kubeconfig.conf"));
    assert_eq!(decoded.config.texts("nodePortAddresses"), None);
    assert_eq!(decoded.config.duration("iptables.syncPeriod"), None);
}

#[test]
fn kube_proxys_written_defaults_ask_for_nothing_unusual() {
    let decoded = decode(include_str!("../../tests-data/config/defaults.yaml"));
    assert_eq!(decoded.problems, []);
    assert_eq!(decoded.warnings, Vec::<String>::new());
    assert_eq!(decoded.config.not_honoured("nftables"), Vec::<String>::new());
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
    assert!(!text(&format!("{HEADER}---\n{HEADER}")).is_empty());
}

#[test]
fn fields_without_effect_are_named_where_they_ask_for_something() {
    let decoded = read(
        "conntrack: {maxPerCore: 65536, tcpEstablishedTimeout: 86400s, tcpBeLiberal: true}\nenableProfiling: true\n\
         featureGates: {NFTablesProxyMode: true, SomeGate: true}\nipvs: {strictARP: true}\n\
         iptables: {localhostNodePorts: true}\nportRange: \"\"",
    );
    assert_eq!(decoded.problems, []);
    let warnings = decoded.config.not_honoured("nftables");
    assert_eq!(warnings, ["featureGates = SomeGate=true is not honoured yet",]);
    let ipvs = decoded.config.not_honoured("ipvs");
    assert!(ipvs.contains(&"ipvs.strictARP = true is not honoured yet; there is no IPVS here".to_owned()), "{ipvs:?}");
    assert_eq!(decoded.config.not_honoured("iptables").len(), 2);
}

#[test]
fn no_field_is_listed_twice_or_is_a_section() {
    let mut paths: Vec<&str> = FIELDS.iter().map(|field| field.path).collect();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), FIELDS.len());
    assert!(paths.iter().all(|path| !schema::is_section(path)));
}
