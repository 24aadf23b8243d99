//! The backend against a real kernel, in network namespaces of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::backend::nftables::kernel::{Kernel, Netfilter};
use crate::backend::nftables::nft::{Nft, TIMEOUT};
use crate::backend::nftables::reconciler::{Preview, Reconciler};
use crate::backend::nftables::rows::{Rows, Wanted, client_number};
use crate::backend::nftables::text;
use crate::desired::node_view::NodeView;
use crate::desired::{Desired, Touched};
use crate::netns::{in_new_netns, run};
use crate::scheduler::{HashKey, Scheduler};
use crate::settings::{DatapathSettings, DetectLocal};
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{
    EndpointSlice, Family, ObjectName, Protocol, Scheduling, Service, ServiceCidr, ServicePort, SliceEndpoint,
    SlicePort,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(name: &str, cluster_ips: &[&str]) -> Service {
    let port = |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    Service {
        name: ObjectName::new("default", name),
        created: None,
        kind: "ClusterIP".into(),
        cluster_ips: cluster_ips.iter().map(|text| ip(text)).collect(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        ports: vec![port("http", Protocol::Tcp, 80, 0), port("dns", Protocol::Udp, 53, 0)],
        internal_local: false,
        external_local: false,
        affinity: None,
        health_check_node_port: 0,
        scheduling: None,
    }
}

fn slice(service: &str, family: Family, ips: &[&str]) -> EndpointSlice {
    let port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
    let endpoint = |(index, text): (usize, &&str)| SliceEndpoint {
        ip: ip(text),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(if index % 2 == 0 { "here".into() } else { "there".into() }),
        zone: None,
        pod: None,
        zone_hints: Vec::new(),
        node_hints: Vec::new(),
    };
    EndpointSlice {
        name: ObjectName::new("default", &format!("{service}-{}", family.as_str())),
        service: ObjectName::new("default", service),
        family,
        ports: vec![port("http", Protocol::Tcp, 8080), port("dns", Protocol::Udp, 5353)],
        endpoints: ips.iter().enumerate().map(endpoint).collect(),
        trigger_time: None,
    }
}

fn view(detect: &[&str]) -> NodeView {
    let nets = detect.iter().map(|net| net.parse().unwrap()).collect();
    let settings = DatapathSettings { detect_local: DetectLocal::ClusterCidr(nets), ..DatapathSettings::default() };
    let node = crate::state::objects::Node {
        name: "here".into(),
        zone: None,
        primary_ips: vec![ip("192.168.0.2")],
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        deleting: false,
        to_be_deleted: false,
    };
    let held: BTreeSet<IpAddr> = ["192.168.0.2", "fd00:1::2"].map(ip).into();
    NodeView::new("here".into(), &settings, Some(&node), &held)
}

/// Services of every shape, so that every kind of chain and every map is in use.
fn cluster() -> State {
    let mut state = State::default();
    let v4 = ["10.244.0.1", "10.244.1.2", "10.244.1.3"];
    let v6 = ["fd00:244::1", "fd00:244::2", "fd00:244::3"];
    let dual = |name: &str, number: u8| {
        let mut service = service(name, &[&format!("10.96.0.{number}"), &format!("fd00:96::{number}")]);
        service.load_balancer_ips = vec![ip(&format!("203.0.113.{number}")), ip(&format!("2001:db8::{number}"))];
        service.external_ips = vec![ip(&format!("198.51.100.{number}"))];
        service.ports[0].node_port = 30000 + u16::from(number);
        service
    };
    let plain = dual("plain", 1);
    let local = Service { external_local: true, internal_local: true, ..dual("local", 2) };
    let sticky = Service { affinity: Some(Duration::from_secs(60)), external_local: true, ..dual("sticky", 3) };
    let mut ranged = dual("ranged", 4);
    ranged.source_ranges =
        ["192.168.0.0/16", "172.16.4.0/22", "2001:db8:1::/47"].map(|net| net.parse().unwrap()).to_vec();
    let asked = |scheduler, hash_key| {
        Some(Box::new(Scheduling { scheduler: Some(scheduler), hash_key: Some(hash_key), ..Scheduling::default() }))
    };
    let source = HashKey::Source;
    let sh = Service { scheduling: asked(Scheduler::Sh, source), ..dual("sh", 6) };
    let dh = Service { scheduling: asked(Scheduler::Dh, source), external_local: true, ..dual("dh", 7) };
    let scheduling = asked(Scheduler::Sh, HashKey::SourceAndPort);
    let by_port = Service { scheduling, affinity: Some(Duration::from_secs(60)), ..dual("by-port", 8) };
    let rr = Service { scheduling: asked(Scheduler::Rr, source), external_local: true, ..dual("rr", 9) };
    let affinity = Some(Duration::from_secs(60));
    let wrr = Service { scheduling: asked(Scheduler::Wrr, source), affinity, ..dual("wrr", 10) };
    for service in [plain, local, sticky, ranged, sh, dh, by_port, rr, wrr] {
        let (name, service_asks) = (service.name.name.to_string(), service.scheduling.is_some());
        state.apply(Event::Service(service));
        state.apply(Event::Slice(slice(&name, Family::V4, &v4)));
        // Of more than two, so that two are local.
        let v6 = if service_asks { &v6[..] } else { &v6[..2] };
        state.apply(Event::Slice(slice(&name, Family::V6, v6)));
    }
    state.apply(Event::Service(dual("empty", 5)));
    let cidrs =
        ["10.96.0.0/16", "10.97.0.0/16", "10.99.0.0/20", "fd00:96::/112"].map(|net| net.parse().unwrap()).to_vec();
    state.apply(Event::ServiceCidr(ServiceCidr { name: "kubernetes".into(), cidrs }));
    state
}

/// Its threads are in the namespace of the thread that makes it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn with_kernel(test: impl FnOnce(Reconciler<Netfilter>) + Send) {
    in_new_netns(|| {
        let runtime = runtime();
        test(Reconciler::new(Netfilter::new(Nft::new("nft", TIMEOUT), runtime.handle().clone())));
    });
}

fn list() -> String {
    let text = run("nft", &["list", "table", "inet", "kubeferry"], "");
    // Rows and chains come in the order of their making; text has no seal.
    let mut blocks: Vec<String> = text
        .split("\n\n")
        .filter(|block| !block.contains("chain sealed-"))
        .map(|block| {
            let mut words: Vec<&str> =
                block.split(['\n', ',', '{', '}', '=']).map(str::trim).filter(|word| !word.is_empty()).collect();
            if block.contains("elements") {
                words.sort_unstable();
            }
            words.join("\n")
        })
        .collect();
    blocks.sort();
    blocks.join("\n\n")
}

#[test]
fn rules_and_rows_are_the_same_as_text_and_by_netlink() {
    for detect in [vec!["10.244.0.0/16", "fd00:244::/64"], vec!["10.244.0.0/15", "fd00:244::/61"], vec![]] {
        let desired = Desired::of(&cluster(), view(&detect));
        let wanted = Wanted::all(&desired, &Rows::new());
        let as_text = in_new_netns(|| {
            run("nft", &["-f", "-"], &text::whole(&wanted, desired.node()));
            list()
        });
        with_kernel(|mut reconciler| {
            reconciler.sync(&desired, Touched::default()).unwrap();
            assert_eq!(list(), as_text);
        });
    }
}

#[test]
fn the_kernel_reports_dynamic_chains_as_they_were_written_by_whichever_way() {
    for detect in [vec!["10.244.0.0/16", "fd00:244::/64"], vec!["10.244.0.0/15", "fd00:244::/61"], vec![]] {
        let desired = Desired::of(&cluster(), view(&detect));
        let wanted = Wanted::all(&desired, &Rows::new());
        for by_text in [false, true] {
            with_kernel(|mut reconciler| {
                match by_text {
                    true => drop(run("nft", &["-f", "-"], &text::whole(&wanted, desired.node()))),
                    false => drop(reconciler.sync(&desired, Touched::default()).unwrap()),
                }
                let mut altered = || reconciler.kernel().altered(&wanted.chains, desired.node()).unwrap();
                assert_eq!(altered(), BTreeSet::new(), "by text: {by_text}");
                let mut harms = vec!["flush chain inet kubeferry v4-cluster-random-3"];
                harms.push("add rule inet kubeferry v6-cluster-random-2 accept");
                harms.iter().for_each(|harm| drop(run("nft", &[harm], "")));
                assert_eq!(altered(), ["v4-cluster-random-3", "v6-cluster-random-2"].map(Into::into).into());
            });
        }
    }
}

#[test]
fn a_chain_that_nobody_looked_at_is_looked_at_before_a_row_goes_to_it() {
    with_kernel(|mut first| {
        let mut state = cluster();
        let mut desired = Desired::of(&state, view(&[]));
        state.take_changes();
        first.sync(&desired, Touched::default()).unwrap();
        let two = |ips: &[&str]| ["plain", "local", "ranged"].map(|name| Event::Slice(slice(name, Family::V4, ips)));
        let mut follow = |reconciler: &mut Reconciler<Netfilter>, ips: &[&str]| {
            two(ips).into_iter().for_each(|event| state.apply(event));
            let changes = state.take_changes();
            let touched = desired.update(&state, &changes, view(&[]));
            reconciler.sync(&desired, touched).unwrap()
        };
        follow(&mut first, &["10.244.0.1", "10.244.1.2"]);
        let whole = list();
        follow(&mut first, &["10.244.0.1", "10.244.1.2", "10.244.1.3"]);
        let chain = "inet kubeferry v4-cluster-random-2";
        run("nft", &[&format!("flush chain {chain}; add rule {chain} drop")], "");
        let runtime = runtime();
        let mut second = Reconciler::new(Netfilter::new(Nft::new("nft", TIMEOUT), runtime.handle().clone()));
        let report = follow(&mut second, &["10.244.0.1", "10.244.1.2", "10.244.1.3"]);
        assert_eq!((report.changes, report.repaired), (0, 0), "no row needs it");
        assert!(!follow(&mut second, &["10.244.0.1", "10.244.1.2"]).full);
        assert_eq!(list(), whole);
    });
}

#[test]
fn a_restart_changes_nothing() {
    with_kernel(|mut first| {
        let desired = Desired::of(&cluster(), view(&["10.244.0.0/16"]));
        let report = first.sync(&desired, Touched::default()).unwrap();
        assert!(report.loaded && report.changes > 100, "{report:?}");
        let before = run("nft", &["-a", "list", "table", "inet", "kubeferry"], "");
        let runtime = runtime();
        let mut second = Reconciler::new(Netfilter::new(Nft::new("nft", TIMEOUT), runtime.handle().clone()));
        let report = second.sync(&desired, Touched::default()).unwrap();
        assert_eq!((report.changes, report.loaded), (0, false));
        assert_eq!(run("nft", &["-a", "list", "table", "inet", "kubeferry"], ""), before);
        assert!(matches!(second.preview(&desired).unwrap(), Preview::Changes(changes) if changes.is_empty()));
    });
}

#[test]
fn a_changed_service_touches_only_its_rows() {
    with_kernel(|mut reconciler| {
        let mut state = cluster();
        let mut desired = Desired::of(&state, view(&[]));
        state.take_changes();
        reconciler.sync(&desired, Touched::default()).unwrap();
        state.apply(Event::Slice(slice(
            "plain",
            Family::V4,
            &["10.244.0.1", "10.244.1.2", "10.244.1.3", "10.244.1.4"],
        )));
        let touched = desired.update(&state, &state.changes().clone(), view(&[]));
        let report = reconciler.sync(&desired, touched).unwrap();
        // For each of 8 frontends (ClusterIP, load balancer, external IP; http and dns; a node port) a new slot and a
        // verdict deleted and added; new chains for four slots; one more endpoint address.
        assert!(!report.full && report.changes <= 7 * 3 + 6 + 1, "{report:?}");
        assert!(matches!(reconciler.preview(&desired).unwrap(), Preview::Changes(changes) if changes.is_empty()));
        for name in ["plain", "sticky", "local", "ranged", "empty", "sh", "dh", "by-port", "rr", "wrr"] {
            state.apply(Event::ServiceGone(ObjectName::new("default", name)));
        }
        let touched = desired.update(&state, &state.changes().clone(), view(&[]));
        reconciler.sync(&desired, touched).unwrap();
        let left: usize = reconciler.rows().values().sum();
        assert_eq!(left, 4 + 1 - 1, "ServiceCIDRs (two merged) and the primary address: {:?}", reconciler.rows());
        assert!(matches!(reconciler.preview(&desired).unwrap(), Preview::Changes(changes) if changes.is_empty()));
    });
}

#[test]
fn drift_is_noticed_and_repaired() {
    with_kernel(|mut reconciler| {
        let desired = Desired::of(&cluster(), view(&["10.244.0.0/16"]));
        reconciler.sync(&desired, Touched::default()).unwrap();
        let whole = list();
        assert_eq!(reconciler.check(&desired).unwrap(), None);
        assert_eq!(reconciler.check(&desired).unwrap(), None);
        for harm in [
            "delete table inet kubeferry",
            "delete element inet kubeferry frontends4 { 10.96.0.1 . tcp . 80 }",
            "add element inet kubeferry cluster_ips4 { 10.1.1.1 }",
            "flush set inet kubeferry service_cidrs4",
            "flush chain inet kubeferry postrouting",
            "flush chain inet kubeferry v4-cluster-random-3",
            "add rule inet kubeferry v4-cluster-random-3 drop",
            "add chain inet kubeferry output { policy drop; }",
            "add chain inet kubeferry other { type filter hook input priority 0; policy drop; }",
            "add set inet kubeferry other { type ipv4_addr; }",
            "add rule inet kubeferry services4 drop",
            "flush table inet kubeferry",
            "flush ruleset",
        ] {
            run("nft", &["-f", "-"], harm);
            let report = reconciler.check(&desired).unwrap().unwrap_or_else(|| panic!("{harm} was not noticed"));
            assert!(report.repaired > 0, "{harm}: {report:?}");
            assert_eq!(list(), whole, "{harm}");
            assert_eq!(reconciler.check(&desired).unwrap(), None, "{harm}");
        }
    });
}

#[test]
fn a_few_chains_are_read_as_all_of_them_are() {
    with_kernel(|mut reconciler| {
        let desired = Desired::of(&cluster(), view(&["10.244.0.0/16"]));
        reconciler.sync(&desired, Touched::default()).unwrap();
        let kernel = reconciler.kernel();
        let all = kernel.structure().unwrap().chains;
        let names: Vec<_> = all.keys().cloned().collect();
        assert!(names.len() > 60, "{} chains", names.len());
        for few in [&names[..20], &names[20..40], &names[..]] {
            let wanted: Vec<_> = few.iter().map(|name| (name.clone(), all[name])).collect();
            assert_eq!(kernel.digests(few).unwrap(), wanted);
        }
        assert_eq!(kernel.digests(&["v4-of-nobody".into()]).unwrap(), []);
    });
}

#[test]
fn chains_of_single_services_go_with_them() {
    with_kernel(|mut reconciler| {
        let mut state = cluster();
        let mut desired = Desired::of(&state, view(&[]));
        state.take_changes();
        reconciler.sync(&desired, Touched::default()).unwrap();
        reconciler.check(&desired).unwrap();
        assert!(list().contains("-sticky-") && list().contains("-turn-"));
        for name in ["sticky", "by-port", "rr", "wrr"] {
            state.apply(Event::ServiceGone(ObjectName::new("default", name)));
        }
        let touched = desired.update(&state, &state.changes().clone(), view(&[]));
        reconciler.sync(&desired, touched).unwrap();
        reconciler.check(&desired).unwrap();
        reconciler.check(&desired).unwrap();
        assert!(!list().contains("-sticky-"), "{}", list());
        assert!(!list().contains("-remember-"), "{}", list());
        assert!(!list().contains("-turn-"), "{}", list());
    });
}

#[test]
fn another_version_is_replaced_and_other_settings_too() {
    with_kernel(|mut reconciler| {
        run("nft", &["-f", "-"], "table inet kubeferry { comment \"kubeferry 0.0.1\"\n chain old { }\n }");
        let desired = Desired::of(&cluster(), view(&["10.244.0.0/16"]));
        let report = reconciler.sync(&desired, Touched::default()).unwrap();
        assert!(report.loaded && report.full, "{report:?}");
        assert!(!list().contains("chain old"));
        let mut desired = desired;
        let touched = desired.update(&cluster(), &Default::default(), view(&[]));
        assert!(reconciler.sync(&desired, touched).unwrap().loaded);
        assert!(!list().contains("10.244.0.0/16"));
        let generation = reconciler.kernel().generation().unwrap();
        assert_eq!(reconciler.sync(&desired, Touched::default()).unwrap().changes, 0);
        assert_eq!(reconciler.kernel().generation().unwrap(), generation);
    });
}

#[test]
fn clients_of_an_endpoint_that_left_are_forgotten() {
    with_kernel(|mut reconciler| {
        let mut state = cluster();
        let mut desired = Desired::of(&state, view(&[]));
        state.take_changes();
        reconciler.sync(&desired, Touched::default()).unwrap();
        let number = |text: &str| {
            let (_, target, _) = desired.targets_of(&ObjectName::new("default", "sticky")).next().unwrap();
            client_number(&target.name, text.parse().unwrap())
        };
        let (leaves, stays) = (number("10.244.1.2:8080"), number("10.244.1.3:8080"));
        for client in 1..=20 {
            for number in [leaves, stays] {
                let element =
                    format!("add element inet kubeferry affinity4 {{ 192.0.2.{client} . {number} timeout 1h }}");
                run("nft", &[&element], "");
            }
        }
        let clients = || {
            let text = run("nft", &["list", "set", "inet", "kubeferry", "affinity4"], "");
            [leaves, stays].map(|number| text.matches(&format!(" . {number} ")).count())
        };
        assert_eq!(clients(), [20, 20]);
        state.apply(Event::Slice(slice("sticky", Family::V4, &["10.244.0.1", "10.244.1.3"])));
        let changes = state.take_changes();
        let touched = desired.update(&state, &changes, view(&[]));
        reconciler.sync(&desired, touched).unwrap();
        assert_eq!(clients(), [0, 20]);
        assert_eq!(reconciler.check(&desired).unwrap().map(|report| report.repaired), None);
    });
}

#[test]
fn neighbouring_service_cidrs_come_and_go_however_they_were_written() {
    let steps: [&[&str]; 4] =
        [&["10.1.0.0/16", "10.2.0.0/15", "0.0.0.0/8"], &["10.2.0.0/15"], &["10.1.0.0/16", "10.2.0.0/15"], &[]];
    for by_nft in [false, true] {
        with_kernel(|mut reconciler| {
            if by_nft {
                run("nft", &["-f", "-"], "table inet kubeferry { comment \"kubeferry 0.0.1\"\n }");
            }
            let mut state = State::default();
            let mut desired = Desired::new(view(&[]));
            for nets in steps {
                let cidrs = nets.iter().map(|net| net.parse().unwrap()).collect();
                state.apply(Event::ServiceCidr(ServiceCidr { name: "kubernetes".into(), cidrs }));
                let changes = state.take_changes();
                let touched = desired.update(&state, &changes, view(&[]));
                reconciler.sync(&desired, touched).unwrap();
                let preview = reconciler.preview(&desired).unwrap();
                assert!(matches!(&preview, Preview::Changes(changes) if changes.is_empty()), "{nets:?}: {preview:?}");
                assert_eq!(reconciler.check(&desired).unwrap(), None, "{nets:?}");
            }
        });
    }
}
