use super::*;
use crate::backend::ebpf::cleanup::cleanup;
use crate::backend::ebpf::load::load;
use crate::netns::{in_new_netns, run};
use crate::settings::{EbpfSettings, MapSizes};

/// A BPF file system at a folder of its own.
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        run("mount", &["-t", "bpf", "bpf", folder.path().to_str().unwrap()], "");
        Self(folder)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.0.path().to_str().unwrap()], "");
    }
}

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
        addresses: Vec::new(),
    }
}

fn devices(settings: &EbpfSettings, tcx: Option<bool>) -> Devices {
    let loaded = load(settings).unwrap();
    let table = Table::new(loaded.maps.devices.fd().try_clone_to_owned().unwrap()).unwrap();
    let links = loaded.folder.links();
    let mut devices =
        Devices::new(loaded.tc, table, links, Vec::new(), DetectLocal::NodeCidr, settings.map_sizes.devices).unwrap();
    devices.tcx = tcx;
    devices
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
        let map_sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
        let settings = EbpfSettings { bpffs_root: mounted.0.path().to_owned(), map_sizes, ..EbpfSettings::default() };
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
        devices.follow(&there).unwrap();
        assert_eq!([filters("ingress"), filters("egress")], [0, 0], "a device that is not wanted any more");
        devices.patterns.clear();
        devices.follow(&there).unwrap();
        let removed = cleanup(&settings.bpffs_root, &["eth7".to_owned()]).unwrap();
        assert!(removed[0].contains("2 filters"), "{removed:?}");
        assert_eq!([filters("ingress"), filters("egress")], [0, 0]);
    });
}

#[test]
fn links_of_an_earlier_run_are_taken_over() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let map_sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
        let settings = EbpfSettings { bpffs_root: mounted.0.path().to_owned(), map_sizes, ..EbpfSettings::default() };
        let there = [interface("eth7")];
        let index = there[0].index;
        let link = |devices: &Devices| link_info(open_pin(&devices.pin("tc_ingress", index)).unwrap().as_fd()).unwrap();
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
        assert!(!third.pin("tc_ingress", index).exists() && !third.pin("tc_egress", index).exists());
    });
}

#[test]
fn a_device_that_goes_while_it_is_covered_is_no_fault() {
    in_new_netns(|| {
        let mounted = Mounted::new();
        run("ip", &["link", "add", "eth7", "type", "veth", "peer", "name", "eth8"], "");
        let map_sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
        let settings = EbpfSettings { bpffs_root: mounted.0.path().to_owned(), map_sizes, ..EbpfSettings::default() };
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
        assert_eq!(list(&devices.links).unwrap().len(), 2, "nothing is left of the one that went");
    });
}
