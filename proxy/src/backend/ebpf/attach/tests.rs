use std::sync::Mutex;

use tokio::sync::watch;

use super::*;
use crate::backend::ebpf::bpf::{detach_link, link_info, open_pin, update_link};
use crate::backend::ebpf::cleanup::cleanup;
use crate::backend::ebpf::elsewhere::{Elsewhere, elsewhere};
use crate::backend::ebpf::kernel::Shape;
use crate::backend::ebpf::load::load;
use crate::backend::ebpf::watched;
use crate::netns::{Mounted, in_new_netns, run};
use crate::settings::{EbpfSettings, MapSizes};

fn interface(name: &str) -> Interface {
    let shown = run("ip", &["-o", "link", "show", "dev", name], "");
    let index = shown.split(':').next().unwrap().parse().unwrap();
    Interface {
        index,
        name: name.to_owned(),
        kind: "veth".to_owned(),
        link: None,
        hardware: 1,
        physical: false,
        controller: None,
        carrier: None,
        peer_namespace: None,
        addresses: Vec::new(),
    }
}

fn devices(settings: &EbpfSettings, tcx: Option<bool>) -> Devices {
    let loaded = load(settings, &Shape::new(settings.map_sizes, true)).unwrap();
    let table = Table::new(loaded.maps.devices.fd().try_clone_to_owned().unwrap()).unwrap();
    let detect = DetectLocal::NodeCidr;
    let mut devices =
        Devices::new(loaded.tc, table, &loaded.folder, Vec::new(), detect, settings.map_sizes.devices).unwrap();
    devices.tcx = tcx;
    devices.with_xdp(loaded.xdp, XdpMode::Generic, vec!["eth7".to_owned()])
}

/// Settings for a file system, with maps that are small.
fn settings(mounted: &Mounted) -> EbpfSettings {
    let map_sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
    EbpfSettings { bpffs_root: mounted.path().to_owned(), map_sizes, ..EbpfSettings::default() }
}

fn filters(hook: &str) -> usize {
    let shown = run("tc", &["filter", "show", "dev", "eth7", hook], "");
    shown.lines().filter(|line| line.contains("direct-action") && line.contains(&format!("tc_{hook}"))).count()
}

#[test]
fn filters_take_the_place_of_links_where_there_are_none() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let settings = settings(&mounted);
        let there = [interface("eth7")];
        for _ in 0..2 {
            // The second finds the filters of the first, and leaves its own in their place.
            let mut devices = devices(&settings, Some(false));
            devices.follow(&there).unwrap();
            assert_eq!((devices.faults(), devices.how()), (&BTreeMap::new(), "clsact"));
            assert_eq!(devices.check(&there).unwrap(), 0);
            drop(devices);
            assert_eq!([filters("ingress"), filters("egress")], [1, 1], "they outlive us");
        }
        let mut devices = devices(&settings, Some(false));
        devices.follow(&there).unwrap();
        for detach in [&["filter", "del", "dev", "eth7", "ingress"][..], &["qdisc", "del", "dev", "eth7", "clsact"]] {
            run("tc", detach, "");
            assert_eq!(devices.check(&there).unwrap(), 1, "{detach:?} is noticed");
            assert_eq!([filters("ingress"), filters("egress")], [1, 1], "after {detach:?}");
            assert_eq!(devices.check(&there).unwrap(), 0);
        }
        devices.patterns = vec!["other".to_owned()];
        // Under another name than it was covered by.
        run("ip", &["link", "set", "eth7", "name", "renamed"], "");
        devices.follow(&[interface("renamed")]).unwrap();
        run("ip", &["link", "set", "renamed", "name", "eth7"], "");
        assert_eq!([filters("ingress"), filters("egress")], [0, 0], "a device that is not wanted any more");
        devices.patterns.clear();
        devices.follow(&there).unwrap();
        let removed = cleanup(&settings.bpffs_root, &["eth7".to_owned()]).unwrap();
        assert!(removed[0].contains("2 filters"), "{removed:?}");
        assert_eq!([filters("ingress"), filters("egress")], [0, 0]);
    });
}

#[test]
fn programs_that_are_pinned_in_another_file_system_are_seen() {
    in_new_netns(|| {
        let [mounted, other] = [Mounted::new(), Mounted::new()];
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let settings = settings(&mounted);
        let names = ["eth7".to_owned(), "eth8".to_owned()];
        let mut devices = devices(&settings, None);
        devices.follow(&[interface("eth7")]).unwrap();
        drop(devices);
        assert_eq!(cleanup(other.path(), &names).unwrap(), Vec::<String>::new());
        assert_eq!(elsewhere(&names), Elsewhere::At(vec!["eth7".to_owned()]));
        assert_eq!(cleanup(&settings.bpffs_root, &names).unwrap().len(), 1);
        assert_eq!(elsewhere(&names), Elsewhere::Nowhere, "the kernel has let go of them");
    });
}

#[test]
fn patterns_are_not_said_to_match_nothing_before_somebody_looked() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        let mut devices = devices(&settings(&mounted), None);
        devices.patterns = vec!["eth8".to_owned()];
        assert_eq!(devices.idle_patterns().count(), 0);
        devices.follow(&[]).unwrap();
        assert_eq!(devices.idle_patterns().collect::<Vec<_>>(), [("--devices", "eth8"), ("--xdp-devices", "eth7")]);
    });
}

#[test]
fn links_of_an_earlier_run_are_taken_over() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let settings = settings(&mounted);
        let there = [interface("eth7")];
        let index = there[0].index;
        let pin = |devices: &Devices, base: &str| devices.folder.links().join(name_of(base, index));
        let link = |devices: &Devices| {
            let pinned = link_info(open_pin(&pin(devices, "tc_ingress")).unwrap().as_fd()).unwrap();
            assert_eq!(devices.links.get(&name_of("tc_ingress", index)), Some(pinned));
            pinned
        };
        let mut first = devices(&settings, None);
        first.follow(&there).unwrap();
        let before = link(&first);
        drop(first);
        let mut second = devices(&settings, None);
        second.follow(&there).unwrap();
        assert_eq!((link(&second), second.how()), (before, "TCX"), "the same program at the same device");
        // Another's device has the index now: the link is of no use.
        run("ip", &["link", "del", "eth7"], "");
        run("ip", &["link", "add", "eth7", "index", &index.to_string(), "type", "veth", "peer", "name", "eth8"], "");
        let mut third = devices(&settings, None);
        third.follow(&there).unwrap();
        assert_eq!(link(&third).target, u64::from(index));
        third.follow(&[]).unwrap();
        assert!(!pin(&third, "tc_ingress").exists() && !pin(&third, "tc_egress").exists());
    });
}

#[test]
fn what_somebody_does_to_links_is_noticed_and_undone() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let settings = settings(&mounted);
        let there = [interface("eth7")];
        let index = there[0].index;
        let mut devices = devices(&settings, None);
        devices.follow(&there).unwrap();
        assert_eq!((devices.check(&there).unwrap(), devices.keep_pins().unwrap()), (0, 0));
        let all = [name_of("tc_ingress", index), name_of("tc_egress", index), format!("{XDP}-{index}")];
        let pin = |name: &str| settings.bpffs_root.join("kubeferry/links").join(name);
        let state = || all.each_ref().map(|name| link_info(open_pin(&pin(name)).unwrap().as_fd()).unwrap());
        let whole = state();
        for name in &all {
            detach_link(open_pin(&pin(name)).unwrap().as_fd()).unwrap();
            assert_eq!(devices.check(&there).unwrap(), 1, "{name} is detached");
            assert_eq!((state(), devices.check(&there).unwrap()), (whole, 0), "after {name}");
        }
        // Another program runs in our link.
        let other = devices.programs["tc_egress"].fd().unwrap().try_clone().unwrap();
        update_link(open_pin(&pin(&all[0])).unwrap().as_fd(), other.as_fd()).unwrap();
        assert_ne!(state(), whole);
        assert_eq!((devices.check(&there).unwrap(), state()), (1, whole));
        // A pin that goes, and one that is of something else, end nothing.
        std::fs::remove_file(pin(&all[0])).unwrap();
        std::fs::remove_file(pin(&all[1])).unwrap();
        super::super::bpf::pin(other.as_fd(), &pin(&all[1])).unwrap();
        assert_eq!(devices.check(&there).unwrap(), 0);
        assert_eq!((devices.keep_pins().unwrap(), state()), (2, whole));
        std::fs::remove_file(pin(&all[2])).unwrap();
        remove(&settings.bpffs_root.join("kubeferry/links")).unwrap();
        assert_eq!((devices.check(&there).unwrap(), devices.keep_pins().unwrap()), (0, 3));
        // The whole file system.
        run("umount", &[settings.bpffs_root.to_str().unwrap()], "");
        assert_eq!(devices.check(&there).unwrap(), 0);
        let error = devices.keep_pins().unwrap_err().to_string();
        assert!(error.contains("is no BPF file system"), "{error}");
        run("ip", &["link", "add", "eth9", "type", "veth", "peer", "name", "eth10"], "");
        let more = [interface("eth7"), interface("eth9")];
        devices.follow(&more).unwrap();
        assert_eq!(devices.check(&more).unwrap(), 0);
        assert_eq!(devices.faults(), &BTreeMap::new(), "covered all the same");
        run("mount", &["-t", "bpf", "bpf", settings.bpffs_root.to_str().unwrap()], "");
        assert_eq!((devices.keep_pins().unwrap(), state()), (5, whole));
    });
}

#[test]
fn an_uplink_that_another_program_had_is_carried_at_xdp_once_it_is_free() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let settings = settings(&mounted);
        let there = [interface("eth7")];
        let mut first = devices(&settings, None);
        first.follow(&there).unwrap();
        // Another's link, under another name.
        let pin = settings.bpffs_root.join(format!("kubeferry/links/{XDP}-{}", there[0].index));
        std::fs::rename(&pin, settings.bpffs_root.join("other")).unwrap();
        drop(first);
        let mut devices = devices(&settings, None);
        devices.follow(&there).unwrap();
        assert!(devices.faults()["eth7"].contains("busy"), "{:?}", devices.faults());
        std::fs::remove_file(settings.bpffs_root.join("other")).unwrap();
        // The kernel lets go of an unpinned link a little later.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !devices.faults().is_empty() {
            assert!(std::time::Instant::now() < end, "{:?}", devices.faults());
            devices.uplinks.try_again();
            devices.follow(&there).unwrap();
        }
        assert!(pin.exists());
    });
}

#[test]
fn a_device_that_goes_while_it_is_covered_is_no_fault() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let map_sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
        let settings = EbpfSettings { bpffs_root: mounted.path().to_owned(), map_sizes, ..EbpfSettings::default() };
        let (goes, stays) = (interface("eth7"), interface("eth8"));
        // Its notice has not come yet: it is still in the list.
        run("ip", &["link", "del", "eth7"], "");
        run(
            "ip",
            &["link", "add", "eth8", "index", &stays.index.to_string(), "type", "veth", "peer", "name", "eth9"],
            "",
        );
        let mut devices = devices(&settings, None);
        devices.follow(&[goes, stays.clone()]).unwrap();
        assert_eq!((devices.faults(), devices.covered()), (&BTreeMap::new(), BTreeSet::from(["eth8"])));
        devices.follow(&[stays]).unwrap();
        assert_eq!(list(&devices.folder.links()).unwrap().len(), 2, "nothing is left of the one that went");
    });
}

#[test]
fn a_check_that_waits_takes_no_device_away_that_comes_meanwhile() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let (first, second) = (interface("eth7"), interface("eth8"));
        let mut alone = devices(&settings(&mounted), None);
        alone.follow(std::slice::from_ref(&first)).unwrap();
        let (notices, interfaces) = watch::channel(vec![first]);
        let shared = Mutex::new(alone);
        let mut followed = interfaces.clone();
        let waits = std::thread::scope(|scope| {
            let mut held = watched::lock(&shared);
            let waits = scope.spawn(|| watched::check(&shared, &interfaces).unwrap());
            // Long enough for it to have come as far as it can.
            std::thread::sleep(std::time::Duration::from_millis(500));
            notices.send_modify(|list| list.push(second.clone()));
            held.follow(&followed.borrow_and_update().clone()).unwrap();
            drop(held);
            waits.join().unwrap()
        });
        assert_eq!(waits, 0);
        assert_eq!(watched::lock(&shared).covered(), BTreeSet::from(["eth7", "eth8"]));
        notices.send_modify(|list| drop(list.pop()));
        watched::follow(&shared, &mut followed).unwrap();
        assert_eq!(watched::lock(&shared).covered(), BTreeSet::from(["eth7"]));
    });
}
