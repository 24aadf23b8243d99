//! The scheduler, and the flags of the eBPF datapath.

use super::*;

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
    let Settings { ebpf, log, datapath, .. } = good(&flags, None);
    assert_eq!(datapath.service_metrics, ServiceMetrics::Full);
    assert_eq!(log.filter, "info,kubeferry::bpf=debug");
    let flags_with_filter = ["--bpf-log-level=debug", "--log-level=warn,kubeferry::bpf=info"];
    assert_eq!(good(&flags_with_filter, None).log.filter, "warn,kubeferry::bpf=info");
    let sizes = MapSizes { flows: 10, slots: 20, ..MapSizes::default() };
    let wanted = EbpfSettings {
        devices: vec!["eth*".into(), "veth?".into()],
        xdp: XdpMode::Generic,
        xdp_devices: vec!["eth1".into()],
        socket_lb: SocketLb::Off,
        end_pod_sockets: false,
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
    for counting in ["lc", "wlc", "sed", "nq"] {
        let file = ipvs(counting);
        let flag = ["--proxy-mode=ipvs".to_owned(), format!("--ipvs-scheduler={counting}")];
        for (flags, file, from) in [
            (&[][..], Some(file.as_str()), "ipvs.scheduler"),
            (&[flag[0].as_str(), flag[1].as_str()], None, "--ipvs-scheduler"),
        ] {
            let (got, warnings) = settings(flags, file).unwrap();
            assert_eq!(got.datapath.schedule.scheduler, Scheduler::Random);
            let said = format!("{from} {counting} asks how many connections each endpoint has, ");
            assert!(warnings.iter().any(|text| text.starts_with(&said)), "{warnings:?}");
        }
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
    let said = bad(&["--scheduler=lc"], None);
    assert!(said[0].contains("use --backend ebpf, or one of random, rr, wrr, sh, dh, mh"), "{said:?}");
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
