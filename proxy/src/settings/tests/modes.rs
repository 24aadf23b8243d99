//! kube-proxy's modes, and which flags count beside a file.

use super::*;

#[test]
fn beside_a_file_kube_proxys_flags_are_ignored_with_a_warning_but_for_some() {
    let file = "clusterCIDR: 10.1.0.0/16\nmode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 3, syncPeriod: 1h}\n\
        hostnameOverride: from-file\nclientConnection: {kubeconfig: /k}\nlogging: {verbosity: 6}";
    let from_file = good(&[], Some(file));
    assert_eq!(&*from_file.node_name, "from-file");
    assert_eq!(from_file.source, Source::Api { kubeconfig: Some("/k".into()), server: None });
    assert!(from_file.datapath.masquerade_all);
    assert_eq!((from_file.datapath.masquerade_bit, from_file.sync_period.as_secs()), (3, 3600));
    assert_eq!(from_file.datapath.node_port_addresses, NodePortAddresses::Primary(vec![]));
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
        ("nftables", ProxyMode::Nftables, 3, false, 180, 2, &NodePortAddresses::Primary(vec![]), "", 5),
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
    assert_eq!(warned(&[], Some("mode: ipvs\niptables: {localhostNodePorts: true}")), 1);
    assert_eq!(warned(&[], Some("mode: nftables\niptables: {localhostNodePorts: true}")), 1);
    assert_eq!(warned(&[], Some("mode: nftables\niptables: {localhostNodePorts: null}")), 0);
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
    let times = "mode: ebpf\nclusterCIDR: 10.0.0.0/8\nconntrack: {tcpEstablishedTimeout: 24h, udpTimeout: 7s}";
    let (.., warnings) = datapath(&[], Some(times)).unwrap();
    assert_eq!(warnings.len(), 1, "of one that is not that of programs: {warnings:?}");
    assert!(warnings[0].starts_with("conntrack.udpTimeout is for connections past Services"), "{warnings:?}");
    let got = good(&["--xdp=native"], Some(file)).ebpf;
    assert_eq!((got.xdp, got.socket_lb, got.map_sizes.flows), (XdpMode::Native, SocketLb::All, 10));
    assert_eq!(got.devices, ["eth*"]);
    let (backend, mode, warnings) = datapath(&["--backend=ebpf"], Some("mode: ipvs\nclusterCIDR: 10.0.0.0/8")).unwrap();
    assert_eq!((backend, mode), (BackendName::Ebpf, ProxyMode::Ipvs));
    assert!(warnings[0].starts_with("mode ipvs: the datapath is ebpf"), "{warnings:?}");
    assert_eq!(good(&["--proxy-mode=ebpf"], None).backend, BackendName::Ebpf);
}

#[test]
fn what_kubeadm_writes_gives_settings() {
    let text = include_str!("../../../tests-data/config/good/kubeadm.yaml");
    let Loaded { settings: got, warnings, .. } = load(&RunArgs::default(), Some(text.to_owned())).unwrap();
    assert_eq!(got.datapath.node_port_addresses, NodePortAddresses::Cidrs(Vec::new()));
    assert_eq!((got.node, got.mode), (NodeSettings::default(), ProxyMode::Iptables));
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    for (warning, part) in warnings.iter().zip(["mode is not set", "nodePortAddresses is not set", "127.0.0.1"]) {
        assert!(warning.contains(part), "{warnings:?}");
    }
}
