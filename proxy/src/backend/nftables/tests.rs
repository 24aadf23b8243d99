//! The backend against a real kernel, in network namespaces of its own.

mod between;
mod cluster;
mod counting;

use std::collections::BTreeSet;

use crate::backend::nftables::costs;
use crate::backend::nftables::kernel::Kernel;
use crate::backend::nftables::netfilter::Netfilter;
use crate::backend::nftables::nft::{Nft, TIMEOUT};
use crate::backend::nftables::reconciler::{Preview, Reconciler};
use crate::backend::nftables::rows::{Rows, Wanted, client_number};
use crate::backend::nftables::text;
use crate::desired::node_view::NodeView;
use crate::desired::{Desired, Touched};
use crate::netns::{in_new_netns, run};
use crate::scheduler::Scheduler;
use crate::settings::ServiceMetrics;
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{Family, ObjectName, Scheduling, ServiceCidr};

use cluster::{cluster, service, slice, view};

/// Its threads are in the namespace of the thread that makes it.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn with_kernel<T: Send>(test: impl FnOnce(Reconciler<Netfilter>) -> T + Send) -> T {
    in_new_netns(|| {
        let runtime = runtime();
        test(Reconciler::new(Netfilter::new(Nft::new("nft", TIMEOUT), runtime.handle().clone())))
    })
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

/// Nodes with several detectors, and one that counts connections.
fn views() -> impl Iterator<Item = NodeView> {
    let nets = [vec!["10.244.0.0/16", "fd00:244::/64"], vec!["10.244.0.0/15", "fd00:244::/61"], vec![]];
    let counting = NodeView { service_metrics: ServiceMetrics::Connections, ..view(&[]) };
    nets.into_iter().map(|nets| view(&nets)).chain([counting])
}

#[test]
fn rules_and_rows_are_the_same_as_text_and_by_netlink() {
    for view in views() {
        let desired = Desired::of(&cluster(), view);
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
    for view in views() {
        let desired = Desired::of(&cluster(), view);
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
fn tables_of_mh_are_counted() {
    let mut state = State::default();
    for (name, ip, ends) in
        [("one", "10.96.0.1", &["10.244.0.1"][..]), ("two", "10.96.0.2", &["10.244.0.1", "10.244.0.2"])]
    {
        let mut mh = service(name, &[ip]);
        mh.ports.truncate(1);
        mh.ports[0].node_port = 30000 + u16::from(name == "two");
        mh.scheduling = Some(Box::new(Scheduling { scheduler: Some(Scheduler::Mh), ..Scheduling::default() }));
        state.apply(Event::Service(mh));
        state.apply(Event::Slice(slice(name, Family::V4, ends)));
    }
    let desired = Desired::of(&state, view(&[]));
    let wanted = Wanted::all(&desired, &Rows::new());
    let costs = costs::maglev(&desired, &wanted.rows);
    assert_eq!(
        costs::comments(&costs),
        "# mh: default/one:http (tcp, IPv4): a table of 1009 slots at 2 frontends: 2 rows\n\
         # mh: default/two:http (tcp, IPv4): a table of 1009 slots at 2 frontends: 2018 rows\n"
    );
    assert_eq!(costs::summary(&costs).unwrap(), "2020 rows for 2 service ports at 4 frontends");
    assert_eq!(costs::summary(&[]), None);
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
