mod corpus;
mod effects;
mod modes;
mod schedulers;

use super::*;
use crate::args::{Command, RunArgs, parse};
use crate::scheduler::Scheduler;

const HEADER: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn settings(flags: &[&str], file: Option<&str>) -> Result<(Settings, Vec<String>), Vec<String>> {
    let args = match parse(["kubeferry", "run"].iter().chain(flags)).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    };
    let loaded = load(&args, file.map(|fields| format!("{HEADER}{fields}")));
    loaded.map(|loaded| (loaded.settings, loaded.warnings)).map_err(|error| match error {
        SettingsError::Wrong { problems, .. } => problems.iter().map(ToString::to_string).collect(),
        SettingsError::File { .. } => panic!("{error}"),
    })
}

fn load(args: &RunArgs, file: Option<String>) -> Result<Loaded, SettingsError> {
    let file = file.map(|text| ConfigFile { path: "config.conf".into(), text });
    Settings::resolve(&args.common, &args.serve, file, "Worker-1.Example\n")
}

fn good(flags: &[&str], file: Option<&str>) -> Settings {
    settings(flags, file).unwrap().0
}

fn bad(flags: &[&str], file: Option<&str>) -> Vec<String> {
    settings(flags, file).unwrap_err()
}

#[test]
fn nothing_given_is_kube_proxys_nftables_mode() {
    let (got, warnings) = settings(&[], None).unwrap();
    let wanted = Settings {
        backend: BackendName::Nftables,
        mode: ProxyMode::Nftables,
        ebpf: EbpfSettings::default(),
        node_name: "worker-1.example".into(),
        source: Source::Api { kubeconfig: None, server: None },
        datapath: DatapathSettings { own_ports: [10249, 10256].into(), ..DatapathSettings::default() },
        node_addresses: Vec::new(),
        sync_period: Duration::from_secs(30),
        min_sync_period: Duration::ZERO,
        healthz: Some("0.0.0.0:10256".parse().unwrap()),
        metrics: Some("127.0.0.1:10249".parse().unwrap()),
        bind_hard_fail: false,
        profiling: false,
        show_hidden_metrics: None,
        node: NodeSettings::default(),
        once: false,
        log: LogSettings::default(),
    };
    assert_eq!(got, wanted);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("no cluster CIDR"));
}

#[test]
fn every_flag_arrives() {
    let got = good(
        &[
            "--node-name= Node-A ",
            "--manifests=/m",
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
            "--masquerade-all",
            "--iptables-masquerade-bit=31",
            "--nodeport-addresses=192.168.0.0/16",
            "--bind-address=fd00::1",
            "--node-addresses=192.0.2.1,fd00::1",
            "--scheduler=mh",
            "--maglev-table-size=2039",
            "--iptables-sync-period=1m",
            "--iptables-min-sync-period=2s",
            "--healthz-bind-address=",
            "--metrics-bind-address=[::]:9000",
            "--bind-address-hard-fail",
            "--once",
            "--log-format=json",
            "-v=4",
        ],
        None,
    );
    assert_eq!(&*got.node_name, "node-a");
    assert_eq!(got.source, Source::Manifests("/m".into()));
    let cidrs = vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()];
    assert_eq!(
        got.datapath,
        DatapathSettings {
            detect_local: DetectLocal::ClusterCidr(cidrs),
            masquerade_all: true,
            masquerade_bit: 31,
            node_port_addresses: NodePortAddresses::Cidrs(vec!["192.168.0.0/16".parse().unwrap()]),
            bind_address: "fd00::1".parse().unwrap(),
            schedule: Schedule { scheduler: Scheduler::Mh, table_size: 2039, ..Schedule::default() },
            counts_connections: false,
            own_ports: [9000].into(),
            service_metrics: ServiceMetrics::Off,
        }
    );
    assert_eq!(got.node_addresses.len(), 2);
    assert_eq!((got.sync_period.as_secs(), got.min_sync_period.as_secs()), (60, 2));
    assert_eq!((got.healthz, got.metrics), (None, Some("[::]:9000".parse().unwrap())));
    assert!(got.bind_hard_fail && got.once && got.log.json);
    assert_eq!(got.log.filter, "info,kubeferry=debug");
}

#[test]
fn all_detectors() {
    let detect = |flags: &[&str]| good(flags, None).datapath.detect_local;
    assert_eq!(detect(&["--detect-local-mode=NodeCIDR"]), DetectLocal::NodeCidr);
    assert_eq!(
        detect(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"]),
        DetectLocal::BridgeInterface("cni0".into())
    );
    let file = "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}\nmode: nftables";
    assert_eq!(good(&[], Some(file)).datapath.detect_local, DetectLocal::InterfaceNamePrefix("veth".into()));
    assert_eq!(
        good(&["--cluster-cidr=fd00::/48"], None).datapath.detect_local,
        DetectLocal::ClusterCidr(vec!["fd00::/48".parse().unwrap()])
    );
}

#[test]
fn served_addresses() {
    let addresses = |flags: &[&str], file: Option<&str>| {
        let got = good(flags, file);
        (got.healthz.map(|a| a.to_string()), got.metrics.map(|a| a.to_string()))
    };
    let text = |a: &str, b: &str| (Some(a.to_owned()), Some(b.to_owned()));
    assert_eq!(addresses(&["--bind-address=::"], None), text("[::]:10256", "[::1]:10249"));
    assert_eq!(
        addresses(&["--healthz-bind-address=127.0.0.1", "--metrics-bind-address=::1"], None),
        text("127.0.0.1:10256", "[::1]:10249")
    );
    let file = "healthzBindAddress: \"\"\nmetricsBindAddress: \"::\"\nmode: nftables";
    assert_eq!(addresses(&[], Some(file)), text("0.0.0.0:10256", "[::]:10249"));
    assert_eq!(addresses(&["--healthz-bind-address=", "--metrics-bind-address="], None), (None, None));
    assert_eq!(addresses(&["--healthz-port=0", "--metrics-port=0"], None), (None, None));
    assert_eq!(
        addresses(&["--healthz-port=7", "--metrics-port=8", "--metrics-bind-address=::1"], None),
        text("0.0.0.0:10256", "[::1]:8")
    );
    assert_eq!(
        addresses(&["--healthz-bind-address=[0.0.0.0]:010256", "--metrics-bind-address=[::ffff:127.0.0.1]:7"], None),
        text("0.0.0.0:10256", "127.0.0.1:7")
    );
}

#[test]
fn the_node_s_own_address() {
    for (given, shown, own) in [
        (None, "0.0.0.0", false),
        (Some("--bind-address="), "0.0.0.0", false),
        (Some("--bind-address=::"), "::", false),
        (Some("--bind-address=0.0.0.0"), "0.0.0.0", false),
        (Some("--bind-address=192.0.2.1"), "192.0.2.1", true),
    ] {
        let got = good(given.as_slice(), None);
        assert_eq!(got.datapath.own_address().is_some(), own, "{given:?}");
        let configz = crate::health::configz::document(&got);
        assert_eq!(configz["kubeproxy.config.k8s.io"]["BindAddress"], shown, "{given:?}");
        assert_eq!(got.describe().contains_key("bindAddress"), own, "{given:?}");
    }
}

#[test]
fn every_wrong_setting_is_named_at_once() {
    let flags = [
        "--node-name=$(NODE_NAME)",
        "--server=10.0.0.1:6443",
        "--backend=userspace",
        // Not read in this mode, as in kube-proxy.
        "--cluster-cidr=10.0.0.0/8,10.1.0.0/16",
        "--detect-local-mode=BridgeInterface",
        "--iptables-masquerade-bit=32",
        "--nodeport-addresses=primary,10.0.0.1/33",
        "--bind-address=here",
        "--node-addresses=192.0.2.1/24",
        "--iptables-sync-period=1s",
        "--iptables-min-sync-period=2s",
        "--healthz-bind-address=0.0.0.0:0",
        "--metrics-bind-address=localhost:10249",
        "--log-format=xml",
        "--log-level=a=b=c",
        "--config-sync-period=0",
        "--conntrack-min=-1",
        "--oom-score-adj=many",
        "--profiling=perhaps",
        "--feature-gates=A=maybe,AllowServiceExternalIPs=false",
        "--show-hidden-metrics-for-version=1",
    ];
    let got = bad(&flags, None);
    let starts: Vec<&str> = got.iter().map(|text| text.split(" = ").next().unwrap()).collect();
    assert_eq!(
        starts,
        [
            "--feature-gates",
            "--profiling",
            "--oom-score-adj",
            "--conntrack-min",
            "--backend",
            "--bind-address",
            "--iptables-min-sync-period",
            "--node-name",
            "--server",
            "--pod-bridge-interface",
            "--iptables-masquerade-bit",
            "--nodeport-addresses",
            "--node-addresses",
            "--healthz-bind-address",
            "--metrics-bind-address",
            "--show-hidden-metrics-for-version",
            "--log-format",
            "--log-level",
            "--config-sync-period",
        ]
    );
    let problems = vec![Problem { what: "a".into(), value: "1".into(), why: "must be 2".into() }; 2];
    let text = SettingsError::Wrong { problems, warnings: Vec::new() };
    assert_eq!(text.to_string(), "2 settings are wrong:\n  a = 1: must be 2\n  a = 1: must be 2");
}

#[test]
fn single_rules_of_kube_proxys_validation() {
    for (flags, part) in [
        (&["--iptables-sync-period=0"][..], "must be greater than 0"),
        (&["--iptables-sync-period=-1s"], "must not be negative"),
        (&["--iptables-sync-period=500ms"], "must not be less than minSyncPeriod, which is 1s in kube-proxy"),
        (&["--iptables-min-sync-period=31s"], "the sync period, which is 30s"),
        (&["--detect-local-mode=Nothing"], "InterfaceNamePrefix"),
        (&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=a\"b"], "no interface's name"),
        (&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=sixteen-bytes-xy"], "15 bytes"),
        (&["--cluster-cidr=10.0.0.0"], "must be a CIDR"),
        (&["--cluster-cidr=10.0.0.0/8,fd00::/48,10.0.0.0/8"], "must be a CIDR"),
        (&["--backend=userspace"], "must be nftables"),
        (&["--socket-lb=maybe"], "auto, all or off"),
        (&["--xdp=fast"], "auto, native, generic or off"),
        (&["--masquerade-ports=9-3"], "a range of ports"),
        (&["--masquerade-ports=0-3"], "a range of ports"),
        (&["--map-sizes=flow=3"], "NAME=ROWS, NAME one of frontends"),
        (&["--map-sizes=flows=0"], "NAME=ROWS"),
        (&["--metrics-bind-address=:10249"], "IP:PORT"),
        (&["--healthz-bind-address=1.2.3.4:70000"], "from 1 to 65535"),
    ] {
        let got = bad(flags, None);
        assert!(got.len() == 1 && got[0].contains(part), "{flags:?}: {got:?}");
    }
    let file = bad(&[], Some("mode: nftables\nnftables: {syncPeriod: 1s, minSyncPeriod: 2s}\nmetricsBindAddress: x"));
    assert_eq!(file.len(), 2, "{file:?}");
    assert!(
        file[0].starts_with("nftables.minSyncPeriod = 2s: must not be greater than nftables.syncPeriod, which is 1s")
    );
}

#[test]
fn addresses_may_have_leading_zeros_and_host_bits() {
    let got = good(&["--cluster-cidr=10.244.001.7/16", "--nodeport-addresses=10.0.0.7/08,,::/0"], None);
    assert_eq!(got.datapath.detect_local, DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]));
    let cidrs = vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()];
    assert_eq!(got.datapath.node_port_addresses, NodePortAddresses::Cidrs(cidrs));
}

#[test]
fn loopback_node_ports_are_warned_of() {
    let (_, warnings) = settings(&["--nodeport-addresses=127.0.0.0/8", "--cluster-cidr=10.0.0.0/8"], None).unwrap();
    assert_eq!(warnings, ["node ports never answer at loopback addresses: 127.0.0.0/8 adds none"]);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let args = CommonArgs {
        source: crate::args::SourceArgs { config: Some("/nonexistent/config.conf".into()), ..Default::default() },
        ..Default::default()
    };
    let error = Settings::from_args(&args, &ServeArgs::default()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/config.conf"), "{error}");
}

#[test]
fn settings_can_be_told() {
    let text = |flags: &[&str]| {
        let pairs: Vec<String> = good(flags, None).describe().iter().map(|(k, v)| format!("{k}={v}")).collect();
        pairs.join(" ")
    };
    assert_eq!(
        text(&["--cluster-cidr=10.0.0.0/8,fd00::/8", "--metrics-bind-address="]),
        "clusterCIDR=10.0.0.0/8,fd00::/8 detectLocalMode=ClusterCIDR healthzBindAddress=0.0.0.0:10256 maglevTableSize=1009 \
         masqueradeAll=false masqueradeBit=14 metricsBindAddress=off minSyncPeriod=0s mode=nftables nodePortAddresses=primary \
         scheduler=random \
         server=in-cluster serviceMetrics=off syncPeriod=30s"
    );
    let other =
        text(&["--manifests=/m", "--detect-local-mode=NodeCIDR", "--proxy-mode=ipvs", "--node-addresses=10.0.0.1"]);
    assert!(other.contains("manifests=/m") && other.contains("nodePortAddresses=all"), "{other}");
    assert!(other.contains("nodeAddresses=10.0.0.1") && !other.contains("clusterCIDR"), "{other}");
}

#[test]
fn what_is_set_on_the_node() {
    let file = "conntrack: {maxPerCore: 0, min: 7, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 2s, tcpBeLiberal: true, \
        udpTimeout: 3s, udpStreamTimeout: 4s}\noomScoreAdj: 0\nenableProfiling: true\nshowHiddenMetricsForVersion: \"1.35\"\nipvs: {excludeCIDRs: [10.0.0.0/8]}";
    let got = good(&["--init-only", "--cleanup"], Some(file));
    let conntrack = ConntrackSettings {
        max_per_core: 0,
        min: 7,
        tcp_established_timeout: Duration::ZERO,
        tcp_close_wait_timeout: Duration::from_secs(2),
        tcp_be_liberal: true,
        udp_timeout: Duration::from_secs(3),
        udp_stream_timeout: Duration::from_secs(4),
    };
    let excluded = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(
        got.node,
        NodeSettings { conntrack, oom_score_adj: 0, init_only: true, cleanup: true, ipvs_excluded: excluded }
    );
    assert_eq!((got.profiling, got.show_hidden_metrics.as_deref()), (true, Some("1.35")));
}
