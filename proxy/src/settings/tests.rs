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
        SettingsError::Wrong(problems) => problems.iter().map(ToString::to_string).collect(),
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
        datapath: DatapathSettings::default(),
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
            bind_address: Some("fd00::1".parse().unwrap()),
            schedule: Schedule { scheduler: Scheduler::Mh, table_size: 2039, ..Schedule::default() },
            counts_connections: false,
        }
    );
    assert_eq!(got.node_addresses.len(), 2);
    assert_eq!((got.sync_period.as_secs(), got.min_sync_period.as_secs()), (60, 2));
    assert_eq!((got.healthz, got.metrics), (None, Some("[::]:9000".parse().unwrap())));
    assert!(got.bind_hard_fail && got.once && got.log.json);
    assert_eq!(got.log.filter, "info,kubeferry=debug");
}

#[test]
fn beside_a_file_kube_proxys_flags_are_ignored_with_a_warning_but_for_some() {
    let file = "clusterCIDR: 10.1.0.0/16\nmode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 3, syncPeriod: 1h}\n\
        hostnameOverride: from-file\nclientConnection: {kubeconfig: /k}\nlogging: {verbosity: 6}";
    let from_file = good(&[], Some(file));
    assert_eq!(&*from_file.node_name, "from-file");
    assert_eq!(from_file.source, Source::Api { kubeconfig: Some("/k".into()), server: None });
    assert!(from_file.datapath.masquerade_all);
    assert_eq!((from_file.datapath.masquerade_bit, from_file.sync_period.as_secs()), (3, 3600));
    assert_eq!(from_file.datapath.node_port_addresses, NodePortAddresses::Primary);
    assert_eq!(from_file.log.filter, "info,kubeferry=trace");
    let ignored = [
        "--kubeconfig=/f",
        "--proxy-mode=wrong",
        "--cluster-cidr=10.2.0.0/16",
        "--masquerade-all=false",
        "--iptables-masquerade-bit=4",
        "--iptables-localhost-nodeports=false",
        "--iptables-sync-period=2h",
        "--healthz-port=0",
        "--bind-address-hard-fail",
        "--conntrack-min=5",
        "--feature-gates=A=true",
    ];
    let (both, warnings) = settings(&ignored, Some(file)).unwrap();
    assert_eq!(both, from_file);
    let names: Vec<String> =
        warnings.iter().filter_map(|text| Some(text.split_once(" is ignored beside")?.0.to_owned())).collect();
    let mut wanted: Vec<&str> = ignored.iter().map(|flag| flag.split('=').next().unwrap()).collect();
    wanted.sort_unstable();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(
        (sorted, warnings.len()),
        (wanted.into_iter().map(str::to_owned).collect(), names.len()),
        "{warnings:?}"
    );
    let kept = ["--hostname-override=flag", "--master=https://h:6443", "-v=0", "--logging-format=json", "--init-only"];
    let (kept, warnings) = settings(&kept, Some(file)).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!((&*kept.node_name, kept.log.json, &*kept.log.filter), ("flag", true, "info"));
    assert_eq!(kept.source, Source::Api { kubeconfig: Some("/k".into()), server: Some("https://h:6443".into()) });
    assert!(kept.node.init_only);
    assert_eq!(good(&["--manifests=/m"], Some(file)).source, Source::Manifests("/m".into()));
}

#[test]
fn each_mode_has_its_own_fields_and_defaults() {
    let file = |mode: &str| {
        format!(
            "mode: {mode}\nclusterCIDR: 10.1.0.0/16\niptables: {{masqueradeAll: true, masqueradeBit: 1, syncPeriod: 1m, \
             localhostNodePorts: false}}\nipvs: {{syncPeriod: 2m, minSyncPeriod: 5s}}\n\
             nftables: {{masqueradeBit: 3, syncPeriod: 3m, minSyncPeriod: 2s}}"
        )
    };
    let all = NodePortAddresses::Cidrs(Vec::new());
    for (mode, kind, bit, masquerade_all, sync, min, node_ports, taken, unread) in [
        ("iptables", ProxyMode::Iptables, 1, true, 60, 0, &all, "mode iptables: the datapath is nftables", 5),
        ("\"\"", ProxyMode::Iptables, 1, true, 60, 0, &all, "mode is not set: the datapath is nftables", 5),
        ("ipvs", ProxyMode::Ipvs, 1, true, 120, 5, &all, "mode ipvs: the datapath is nftables", 4),
        ("nftables", ProxyMode::Nftables, 3, false, 180, 2, &NodePortAddresses::Primary, "", 5),
    ] {
        let (got, warnings) = settings(&[], Some(&file(mode))).unwrap();
        assert_eq!(got.mode, kind);
        assert_eq!((got.datapath.masquerade_bit, got.datapath.masquerade_all), (bit, masquerade_all), "{mode}");
        assert_eq!((got.sync_period.as_secs(), got.min_sync_period.as_secs()), (sync, min), "{mode}");
        assert_eq!(&got.datapath.node_port_addresses, node_ports, "{mode}");
        assert_eq!(!taken.is_empty(), warnings.iter().any(|text| text.contains("the datapath is")), "{warnings:?}");
        assert!(taken.is_empty() || warnings.iter().any(|text| text.starts_with(taken)), "{mode} {warnings:?}");
        let not_read = |text: &&String| text.contains(" is not read: the mode is ");
        assert_eq!(warnings.iter().filter(not_read).count(), unread, "{mode} {warnings:?}");
    }
    assert_eq!(good(&["--proxy-mode=iptables"], None).datapath.node_port_addresses, all);
    assert_eq!(good(&["--proxy-mode="], None).mode, ProxyMode::Iptables);
    assert_eq!(good(&["--proxy-mode=ipvs", "--ipvs-sync-period=7s"], None).sync_period.as_secs(), 7);
    let (got, warnings) = settings(&["--proxy-mode=ipvs", "--iptables-sync-period=7s"], None).unwrap();
    assert_eq!(got.sync_period.as_secs(), 30);
    assert!(warnings.iter().any(|text| text.starts_with("--iptables-sync-period is not read")), "{warnings:?}");
}

#[test]
fn localhost_node_ports_of_iptables_mode_are_warned_of() {
    let warned = |flags: &[&str], file: Option<&str>| {
        let (_, warnings) = settings(flags, file).unwrap();
        warnings.iter().filter(|text| text.contains("127.0.0.1") || text.contains("loopback")).count()
    };
    assert_eq!(warned(&[], Some("mode: iptables")), 1);
    assert_eq!(warned(&[], Some("iptables: {localhostNodePorts: true}")), 1);
    assert_eq!(warned(&[], Some("iptables: {localhostNodePorts: false}")), 0);
    assert_eq!(warned(&[], Some("nodePortAddresses: [primary]")), 0);
    assert_eq!(warned(&[], Some("nodePortAddresses: [192.0.2.0/24]")), 0);
    assert_eq!(warned(&[], Some("nodePortAddresses: [0.0.0.0/0]")), 1);
    assert_eq!(warned(&[], Some("mode: ipvs\niptables: {localhostNodePorts: true}")), 0);
    assert_eq!(warned(&["--proxy-mode=iptables"], None), 1);
    assert_eq!(warned(&["--proxy-mode=iptables", "--iptables-localhost-nodeports=false"], None), 0);
    assert_eq!(warned(&["--iptables-localhost-nodeports"], None), 1);
}

#[test]
fn the_datapath_is_the_mode_ebpf_or_a_flag() {
    let datapath = |flags: &[&str], file: Option<&str>| {
        settings(flags, file).map(|(got, warnings)| (got.backend, got.mode, warnings))
    };
    let file = "mode: ebpf\nclusterCIDR: 10.0.0.0/8\nebpf: {xdp: \"off\", socketLB: all, devices: [eth*], mapSizes: {flows: 10}}";
    let (backend, mode, warnings) = datapath(&["--backend=nftables"], Some(file)).unwrap();
    assert_eq!((backend, mode), (BackendName::Nftables, ProxyMode::Nftables));
    assert!(warnings.contains(&"mode ebpf: --backend nftables wins".to_owned()), "{warnings:?}");
    let unread = warnings.iter().filter(|text| text.starts_with("ebpf.")).count();
    assert_eq!(unread, 4, "{warnings:?}");
    let wrong =
        bad(&["--backend=nftables"], Some("mode: ebpf\nebpf: {xdp: fast, masqueradePorts: 9-3, mapSizes: {flows: 0}}"));
    assert_eq!(wrong.len(), 3, "{wrong:?}");
    if !crate::backend::HAS_EBPF {
        for (flags, file) in [(&[][..], Some(file)), (&["--proxy-mode=ebpf"], None), (&["--backend=ebpf"], None)] {
            let said = bad(flags, file);
            assert!(said[0].contains("built without eBPF"), "{said:?}");
        }
        return;
    }
    let (backend, mode, warnings) = datapath(&[], Some(file)).unwrap();
    assert_eq!((backend, mode, warnings), (BackendName::Ebpf, ProxyMode::Nftables, Vec::new()));
    let got = good(&["--xdp=native"], Some(file)).ebpf;
    assert_eq!((got.xdp, got.socket_lb, got.map_sizes.flows), (XdpMode::Native, SocketLb::All, 10));
    assert_eq!(got.devices, ["eth*"]);
    let (backend, mode, warnings) = datapath(&["--backend=ebpf"], Some("mode: ipvs\nclusterCIDR: 10.0.0.0/8")).unwrap();
    assert_eq!((backend, mode), (BackendName::Ebpf, ProxyMode::Ipvs));
    assert!(warnings[0].starts_with("mode ipvs: the datapath is ebpf"), "{warnings:?}");
    assert_eq!(good(&["--proxy-mode=ebpf"], None).backend, BackendName::Ebpf);
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
    let file = "healthzBindAddress: \"\"\nmetricsBindAddress: \"[::]\"\nmode: nftables";
    assert_eq!(addresses(&[], Some(file)), text("0.0.0.0:10256", "[::]:10249"));
    assert_eq!(addresses(&["--healthz-bind-address=", "--metrics-bind-address="], None), (None, None));
    assert_eq!(addresses(&["--healthz-port=0", "--metrics-port=0"], None), (None, None));
    assert_eq!(
        addresses(&["--healthz-port=7", "--metrics-port=8", "--metrics-bind-address=::1"], None),
        text("0.0.0.0:7", "[::1]:8")
    );
    assert_eq!(good(&["--bind-address=::"], None).datapath.bind_address, None);
}

#[test]
fn every_wrong_setting_is_named_at_once() {
    let flags = [
        "--node-name=$(NODE_NAME)",
        "--server=10.0.0.1:6443",
        "--backend=userspace",
        "--cluster-cidr=10.0.0.0/8,10.1.0.0/16",
        "--detect-local-mode=BridgeInterface",
        "--iptables-masquerade-bit=32",
        "--nodeport-addresses=primary,10.0.0.0/8",
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
            "--cluster-cidr",
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
    let text = SettingsError::Wrong(vec![Problem { what: "a".into(), value: "1".into(), why: "must be 2".into() }; 2]);
    assert_eq!(text.to_string(), "2 settings are wrong:\n  a = 1: must be 2\n  a = 1: must be 2");
}

#[test]
fn single_rules_of_kube_proxys_validation() {
    for (flags, part) in [
        (&["--iptables-sync-period=0"][..], "must be greater than 0"),
        (&["--iptables-sync-period=-1s"], "must not be negative"),
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
    let got = good(&["--cluster-cidr=10.244.001.7/16", "--nodeport-addresses=10.0.0.7/08, ,::/0"], None);
    assert_eq!(got.datapath.detect_local, DetectLocal::ClusterCidr(vec!["10.244.0.0/16".parse().unwrap()]));
    let cidrs = vec!["10.0.0.0/8".parse().unwrap(), "::/0".parse().unwrap()];
    assert_eq!(got.datapath.node_port_addresses, NodePortAddresses::Cidrs(cidrs));
}

#[test]
fn loopback_node_ports_are_warned_of() {
    let (_, warnings) = settings(&["--nodeport-addresses=127.0.0.0/8", "--cluster-cidr=10.0.0.0/8"], None).unwrap();
    assert_eq!(warnings, ["node ports never answer at loopback addresses: 127.0.0.0/8 has no effect"]);
}

#[test]
fn what_kubeadm_writes_gives_settings() {
    let text = include_str!("../../tests-data/config/good/kubeadm.yaml");
    let Loaded { settings: got, warnings, .. } = load(&RunArgs::default(), Some(text.to_owned())).unwrap();
    assert_eq!(got.datapath.node_port_addresses, NodePortAddresses::Cidrs(Vec::new()));
    assert_eq!((got.node, got.mode), (NodeSettings::default(), ProxyMode::Iptables));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("mode is not set") && warnings[1].contains("127.0.0.1"), "{warnings:?}");
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
         server=in-cluster syncPeriod=30s"
    );
    let other =
        text(&["--manifests=/m", "--detect-local-mode=NodeCIDR", "--proxy-mode=ipvs", "--node-addresses=10.0.0.1"]);
    assert!(other.contains("manifests=/m") && other.contains("nodePortAddresses=all"), "{other}");
    assert!(other.contains("nodeAddresses=10.0.0.1") && !other.contains("clusterCIDR"), "{other}");
}

#[test]
fn flags_of_the_ebpf_datapath() {
    let flags = [
        "--devices=eth*, veth?",
        "--xdp=generic",
        "--xdp-devices=eth1",
        "--socket-lb=off",
        "--bpffs-root=/run/bpf",
        "--cgroup-root=/run/cgroup",
        "--masquerade-ports=20000-20999",
        "--map-sizes=flows=10,slots=20",
        "--service-metrics=full",
        "--bpf-log-level=debug",
    ];
    let Settings { ebpf, log, .. } = good(&flags, None);
    assert_eq!(log.filter, "info,kubeferry::bpf=debug");
    let flags_with_filter = ["--bpf-log-level=debug", "--log-level=warn,kubeferry::bpf=info"];
    assert_eq!(good(&flags_with_filter, None).log.filter, "warn,kubeferry::bpf=info");
    let sizes = MapSizes { flows: 10, slots: 20, ..MapSizes::default() };
    let wanted = EbpfSettings {
        devices: vec!["eth*".into(), "veth?".into()],
        xdp: XdpMode::Generic,
        xdp_devices: vec!["eth1".into()],
        socket_lb: SocketLb::Off,
        service_metrics: ServiceMetrics::Full,
        bpffs_root: "/run/bpf".into(),
        cgroup_root: Some("/run/cgroup".into()),
        masquerade_ports: (20_000, 20_999),
        map_sizes: sizes,
        log_level: BpfLogLevel::Debug,
    };
    assert_eq!(ebpf, wanted);
    assert_eq!(good(&[], None).ebpf, EbpfSettings::default());
}

#[test]
fn the_scheduler_is_a_flag_or_the_files_in_ipvs_mode() {
    let scheduler = |flags: &[&str], file: Option<&str>| good(flags, file).datapath.schedule.scheduler;
    assert_eq!(scheduler(&[], None), Scheduler::Random);
    assert_eq!(scheduler(&["--scheduler=wrr"], None), Scheduler::Wrr);
    assert_eq!(scheduler(&["--proxy-mode=ipvs"], None), Scheduler::Rr);
    let ipvs = |scheduler: &str| format!("mode: ipvs\nipvs: {{scheduler: {scheduler}}}");
    assert_eq!(scheduler(&[], Some(&ipvs("sh"))), Scheduler::Sh);
    assert_eq!(scheduler(&[], Some(&ipvs("\"\""))), Scheduler::Rr);
    assert_eq!(scheduler(&[], Some("mode: ipvs")), Scheduler::Rr);
    assert_eq!(scheduler(&["--scheduler=random"], Some(&ipvs("sh"))), Scheduler::Random);
    let (got, warnings) =
        settings(&[], Some("mode: nftables\nipvs: {scheduler: sh}\nclusterCIDR: 10.0.0.0/8")).unwrap();
    assert_eq!(got.datapath.schedule.scheduler, Scheduler::Random);
    assert_eq!(warnings, ["ipvs.scheduler = \"sh\" is not read: the mode is nftables; --scheduler chooses one"]);
    assert_eq!(scheduler(&["--proxy-mode=ipvs", "--ipvs-scheduler=sh"], None), Scheduler::Sh);
    for without in ["lblc", "lblcr", "fo", "ovf"] {
        let (got, warnings) = settings(&[], Some(&ipvs(without))).unwrap();
        assert_eq!(got.datapath.schedule.scheduler, Scheduler::Random);
        let said =
            format!("ipvs.scheduler {without} has no counterpart: random is used; choose another with --scheduler");
        assert!(warnings.contains(&said), "{warnings:?}");
    }
}

#[test]
fn wrong_schedulers_are_told_what_is_allowed() {
    let names = "must be one of random, rr, wrr, lc, wlc, sh, dh, sed, nq, mh";
    assert_eq!(bad(&["--scheduler=best"], None), [format!("--scheduler = \"best\": {names}")]);
    assert_eq!(bad(&["--scheduler=lblc"], None), [format!("--scheduler = \"lblc\": {names}")]);
    assert_eq!(
        bad(&[], Some("mode: ipvs\nipvs: {scheduler: wrong}")),
        [format!("ipvs.scheduler = \"wrong\": {names}")]
    );
    for (flags, file) in [(&["--scheduler=lc"][..], None), (&[], Some("mode: ipvs\nipvs: {scheduler: nq}"))] {
        let said = bad(flags, file);
        assert!(said[0].contains("use --backend ebpf, or one of random, rr, wrr, sh, dh, mh"), "{said:?}");
    }
    for size in ["0", "1", "1000", "65539", "-7", "many", ""] {
        let said = bad(&[&format!("--maglev-table-size={size}")], None);
        assert!(said[0].contains("must be a prime number up to 65537, such as 251"), "{said:?}");
    }
    assert_eq!(good(&["--maglev-table-size=65537"], None).datapath.schedule.table_size, 65_537);
}

#[cfg(feature = "ebpf")]
#[test]
fn the_ebpf_datapath_takes_all_schedulers() {
    for scheduler in Scheduler::ALL {
        let flag = good(&["--backend=ebpf", &format!("--scheduler={scheduler}")], None).datapath;
        assert_eq!((flag.schedule.scheduler, flag.counts_connections), (scheduler, true));
        let file = format!("mode: ipvs\nipvs: {{scheduler: {scheduler}}}");
        assert_eq!(good(&["--backend=ebpf"], Some(&file)).datapath.schedule.scheduler, scheduler);
    }
}

#[test]
fn what_is_set_on_the_node() {
    let file = "conntrack: {maxPerCore: 0, min: 7, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 2s, tcpBeLiberal: true, \
        udpTimeout: 3s, udpStreamTimeout: 4s}\noomScoreAdj: 0\nenableProfiling: true\nshowHiddenMetricsForVersion: \"1.35\"";
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
    assert_eq!(got.node, NodeSettings { conntrack, oom_score_adj: 0, init_only: true, cleanup: true });
    assert_eq!((got.profiling, got.show_hidden_metrics.as_deref()), (true, Some("1.35")));
}
