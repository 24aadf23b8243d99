//! Another program detaches our programs, or removes what is pinned.

use std::path::{Path, PathBuf};
use std::process::Command;

use kubeferry_ebpf_common::stats::Counter;
use kubeferry_tests::bpf::pinned::{Pinned, detach, interface_index};
use kubeferry_tests::bpf::sockets::{Maker, program};
use kubeferry_tests::client::until_for;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::load::{Client, Kept};
use kubeferry_tests::site::{VIPS, at};
use kubeferry_tests::sockets::without_offloads;
use kubeferry_tests::xdp::PassAll;

use super::devices::the_uplink_flaps;
use super::trial::{RIGHT, Sees, Trial};

fn start(flags: &[&str]) -> Trial {
    Trial::start(Datapath::ebpf().unwrap(), flags)
}

fn root(trial: &Trial) -> PathBuf {
    trial.site.places().bpffs().join("kubeferry")
}

/// The pins of attachments whose name begins so.
fn links(trial: &Trial, prefix: &str) -> Vec<PathBuf> {
    let pins = trial.site.places().pins().unwrap();
    pins.iter().filter(|pin| pin.starts_with(&format!("links/{prefix}"))).map(|pin| root(trial).join(pin)).collect()
}

/// Whether there are TCX links; before Linux 6.6 there are none, and the filters of clsact are `attach/tests.rs`'s.
fn has_links(trial: &Trial) -> bool {
    let status = trial.status()["datapath"].to_string();
    assert!(status.contains("TCX") || status.contains("clsact"), "{status}");
    status.contains("TCX")
}

fn umount(trial: &Trial) {
    run("umount", &[trial.site.places().bpffs()]);
}

fn run(program: &str, arguments: &[&Path]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

fn mount(trial: &Trial) {
    let folder = trial.site.places().bpffs();
    run("mount", &[Path::new("-t"), Path::new("bpf"), Path::new("bpf"), folder]);
}

/// Removes a folder of pins with all that is in it.
fn empty(folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => {
                empty(&path);
                std::fs::remove_dir(path).unwrap();
            }
            path => std::fs::remove_file(path).unwrap(),
        }
    }
}

#[test]
fn programs_that_are_detached_are_attached_again() {
    let trial = start(&[]);
    if has_links(&trial) {
        for hook in ["tc_ingress", "tc_egress"] {
            let fault = format!("the links of {hook} detached");
            let pins = links(&trial, hook);
            assert!(pins.len() >= 5, "{pins:?}");
            trial.drifts(&fault, Sees::NewFail, || pins.iter().for_each(|pin| detach(pin).unwrap()));
        }
    } else {
        let node = trial.site.node();
        let remove = || node.output(Command::new("tc").args(["qdisc", "del", "dev", "router", "clsact"]), "").unwrap();
        trial.drifts("the qdisc clsact deleted", Sees::NewFail, || assert!(remove().status.success()));
    }
}

#[test]
fn pins_that_go_end_nothing_while_a_proxy_runs_and_come_back() {
    let trial = start(&[]);
    let before = trial.site.places().pins().unwrap();
    let there = |trial: &Trial| {
        let same = || (trial.site.places().pins().unwrap() == before).then_some(());
        until_for(RIGHT, "the pins to be as before", same).unwrap();
    };
    let pin = root(&trial).join(before.iter().find(|pin| pin.ends_with("/flows")).unwrap());
    trial.drifts("a map unpinned", Sees::Nothing, || std::fs::remove_file(&pin).unwrap());
    there(&trial);
    trial.drifts("our folder of the BPF file system emptied", Sees::Nothing, || empty(&root(&trial)));
    there(&trial);
    // What is pinned again is what the next process takes over, and it writes nothing.
    trial.suffers("a restart after that", Sees::Nothing, || trial.site.run().unwrap(), || Some(()));
    let status = trial.status();
    assert!(status["datapath"].to_string().contains("adopted from an earlier run"), "{status}");
}

#[test]
fn a_file_system_that_is_unmounted_ends_nothing_and_is_filled_again() {
    let trial = start(&[]);
    let before = trial.site.places().pins().unwrap();
    let told = || (trial.metric("kubeferry_drift_unrepaired") == Some(1.0)).then_some(());
    trial.drifts("the BPF file system unmounted, and mounted anew", Sees::Nothing, || {
        umount(&trial);
        until_for(RIGHT, "the metric to tell of it", told).unwrap();
        assert!(trial.status()["drift"]["unrepaired"].as_u64() > Some(0));
        mount(&trial);
    });
    assert_eq!(trial.site.places().pins().unwrap(), before);
    assert_eq!(trial.metric("kubeferry_drift_unrepaired"), Some(0.0));
}

#[test]
fn pins_that_go_while_no_proxy_runs_are_made_anew_by_the_next() {
    let trial = start(&[]);
    let pins = trial.site.places().pins().unwrap();
    let programs = |name: &str| root(&trial).join(pins.iter().find(|pin| pin.ends_with(&format!("/{name}"))).unwrap());
    let again = |fault: &str, sees: Sees, harm: &dyn Fn()| {
        trial.site.kill();
        let away = || {
            harm();
            trial.site.run().unwrap();
        };
        trial.watches(&format!("{fault}, while no proxy ran"), sees, away, || Some(()));
        assert_eq!(trial.site.places().pins().unwrap(), pins, "{fault}");
    };
    // The programs go on by their links.
    again("a program unpinned", Sees::Nothing, &|| std::fs::remove_file(programs("tc_ingress")).unwrap());
    let swap = || {
        std::fs::remove_file(programs("tc_ingress")).unwrap();
        std::fs::rename(programs("tc_egress"), programs("tc_ingress")).unwrap();
    };
    again("a program's pin that is of another one", Sees::Nothing, &swap);
    // The maps are new, and with them every connection.
    again("the maps unpinned", Sees::NewFail, &|| {
        empty(programs("flows").parent().unwrap());
    });
    again("our folder of the BPF file system emptied", Sees::NewFail, &|| empty(&root(&trial)));
}

#[test]
fn programs_of_sockets_are_attached_again() {
    let trial = start(&["--socket-lb", "auto"]);
    let attached = || {
        let status = trial.status()["datapath"].to_string();
        status.contains("9 programs at").then_some(())
    };
    attached().expect("all programs of sockets");
    let maker = Maker::start(&program().unwrap(), trial.site.node(), trial.site.places().cgroup()).unwrap();
    let mut ways = VIPS.map(|vip| (&maker as &dyn Client, at(vip, 80))).to_vec();
    ways.extend(trial.ways().into_iter().map(|(from, to)| (from as &dyn Client, to)));
    let translated = || Pinned::open(trial.site.places().bpffs()).unwrap().counter(Counter::SocketConnected).unwrap();
    let all = ["connect", "sendmsg", "recvmsg", "getpeername", "sock_release"];
    for (fault, names) in [("the links of sockets detached", &all[..]), ("those of closed sockets", &all[4..])] {
        let pins: Vec<_> = names.iter().flat_map(|name| links(&trial, name)).collect();
        assert_eq!(pins.len(), 2 * names.len() - 1);
        let mut kept = Kept::open(&ways).unwrap();
        let (before, drift) = (translated(), trial.drift().0);
        let detached = || {
            assert!(translated() > before, "nobody is translated at the sockets");
            pins.iter().for_each(|pin| detach(pin).unwrap());
        };
        let over = || (trial.drift().0 > drift).then_some(());
        trial.watches_by(&ways, fault, Sees::Nothing, detached, over);
        kept.ask().unwrap();
        until_for(RIGHT, "the programs of sockets", attached).unwrap();
    }
}

#[test]
fn a_program_at_xdp_is_attached_again() {
    let flags = ["--xdp", "native", "--xdp-devices", "router"];
    let trial = Trial::build(Datapath::ebpf().unwrap(), &flags, None);
    let (site, router) = (&trial.site, &trial.site.hosts.host("router").namespace);
    // A frame that XDP sends on is taken as it is, checksum and all, and by who has a program there, too.
    for (namespace, device) in [(site.outside(), "eth0"), (&site.remote.namespace, "eth0"), (router, "eth0")] {
        without_offloads(namespace, device).unwrap();
    }
    let _far = router.run(|| PassAll::attach("eth0")).unwrap().unwrap();
    site.run().unwrap();
    site.until_served().unwrap();
    let index = interface_index(trial.site.node(), "router").unwrap();
    let pin = root(&trial).join(format!("links/xdp_uplink-{index}"));
    trial.drifts("the link at XDP detached", Sees::Nothing, || detach(&pin).unwrap());
    trial.drifts("the link at XDP unpinned", Sees::Nothing, || std::fs::remove_file(&pin).unwrap());
    assert!(pin.exists());
    let flap = || the_uplink_flaps(&trial);
    trial.suffers("the uplink with a program at XDP down and up", Sees::NewFail, flap, || Some(()));
    assert!(pin.exists());
}
