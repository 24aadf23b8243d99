//! Programs on devices and on the cgroup: attached as links where the kernel has them, which are pinned and outlive us, else
//! as filters of the qdisc clsact. Devices that come are covered as soon as the kernel tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{CgroupAttachMode, CgroupSock, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType, Xdp};
use kubeferry_ebpf_common::Device;

use super::bpf::{self, Table, link_info, open_pin, update_link};
use super::devices::{matches, rows};
use super::error::EbpfError;
use super::filters::program_at;
use super::load::{RELEASE, SOCKETS, TC, XDP, list, remove};
use super::uplinks::Uplinks;
use crate::node::Interface;
use crate::settings::{DetectLocal, XdpMode};

/// The place of our filter where there are no TCX links.
pub(super) const FILTER: (u16, TcHandle) = (0x6b66, TcHandle::new(0, 1));

/// The programs on the devices.
#[derive(Debug)]
pub struct Devices {
    programs: BTreeMap<&'static str, SchedClassifier>,
    table: Table<u32, Device>,
    links: PathBuf,
    patterns: Vec<String>,
    detect: DetectLocal,
    capacity: usize,
    /// `None`: not tried yet.
    tcx: Option<bool>,
    attached: BTreeMap<u32, String>,
    in_force: BTreeMap<u32, Device>,
    faults: BTreeMap<String, String>,
    uplinks: Uplinks,
}

impl Devices {
    /// Attaches nothing yet. `table` is the map `devices`, `links` the folder of pins.
    ///
    /// # Errors
    /// The rows of an earlier run cannot be read.
    pub fn new(
        programs: BTreeMap<&'static str, SchedClassifier>,
        table: Table<u32, Device>,
        links: PathBuf,
        patterns: Vec<String>,
        detect: DetectLocal,
        capacity: u32,
    ) -> Result<Self, EbpfError> {
        let in_force = table.rows().map_err(EbpfError::map("devices"))?.into_iter().collect();
        Ok(Self {
            programs,
            table,
            links,
            patterns,
            detect,
            capacity: capacity as usize,
            tcx: None,
            attached: BTreeMap::new(),
            in_force,
            faults: BTreeMap::new(),
            uplinks: Uplinks::default(),
        })
    }

    /// Has frames of uplinks carried at XDP.
    pub fn with_xdp(mut self, program: Option<Xdp>, mode: XdpMode, patterns: Vec<String>) -> Self {
        self.uplinks = Uplinks::new(program, mode, patterns);
        self
    }

    /// What is carried at XDP, for people.
    pub fn uplinks(&self) -> String {
        self.uplinks.describe()
    }

    /// Covers these interfaces, and leaves those that are gone. A device that cannot be covered costs no other one.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn follow(&mut self, interfaces: &[Interface]) -> Result<(), EbpfError> {
        self.cover(interfaces, &TC)
    }

    /// Puts the programs for what comes in into the places of an earlier run's, and leaves those for what goes out.
    ///
    /// # Errors
    /// As [`Devices::follow`].
    pub fn replace_ingress(&mut self, interfaces: &[Interface]) -> Result<(), EbpfError> {
        self.cover(interfaces, &TC[1..])?;
        self.attached.clear();
        Ok(())
    }

    fn cover(&mut self, interfaces: &[Interface], hooks: &[[&'static str; 2]]) -> Result<(), EbpfError> {
        let mut wanted = rows(interfaces, &self.patterns, &self.detect);
        let mut faults = self.uplinks.follow(interfaces, &self.links);
        for (index, (_, device)) in &mut wanted {
            if self.uplinks.attached.contains_key(index) {
                device.flags |= Device::XDP;
            }
        }
        let gone = |index: &u32| !wanted.contains_key(index);
        for index in self.attached.keys().copied().filter(gone).collect::<Vec<_>>() {
            let name = self.attached.remove(&index).unwrap_or_default();
            let is_there = interfaces.iter().any(|interface| interface.index == index);
            if let Err(error) = self.detach(index, is_there.then_some(name.as_str())) {
                faults.insert(name, error.to_string());
            }
        }
        let unknown: Vec<_> = self.in_force.keys().copied().filter(gone).collect();
        self.table.delete(&unknown).map_err(EbpfError::map("devices"))?;
        self.in_force.retain(|index, _| wanted.contains_key(index));
        for (index, (interface, device)) in &wanted {
            if self.in_force.get(index) != Some(device) {
                if !self.in_force.contains_key(index) && self.in_force.len() >= self.capacity {
                    let why = "the map devices is full: give --map-sizes devices=N more";
                    faults.insert(interface.name.clone(), why.to_owned());
                    continue;
                }
                self.table.put(&[(*index, *device)]).map_err(EbpfError::map("devices"))?;
                self.in_force.insert(*index, *device);
            }
            if self.attached.contains_key(index) {
                self.attached.insert(*index, interface.name.clone());
                continue;
            }
            match self.attach(interface, device, hooks) {
                Ok(()) => {
                    tracing::debug!(device = interface.name, "programs attached");
                    self.attached.insert(*index, interface.name.clone());
                }
                Err(error) => {
                    faults.insert(interface.name.clone(), error.to_string());
                    self.forget_dead_links(*index)?;
                }
            }
        }
        for (name, why) in faults.iter().filter(|(name, why)| self.faults.get(*name) != Some(why)) {
            tracing::error!(device = name, %why, "a device is not covered");
        }
        self.faults = faults;
        Ok(())
    }

    /// Takes the pins of devices that went while nobody looked.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn tidy(&self) -> Result<(), EbpfError> {
        for pin in list(&self.links)? {
            let name = pin.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let index = TC.iter().find_map(|[base, _]| name.strip_prefix(base)?.strip_prefix('-')?.parse::<u32>().ok());
            let uplink = name.strip_prefix(XDP).and_then(|rest| rest.strip_prefix('-')?.parse::<u32>().ok());
            if index.is_some_and(|index| !self.attached.contains_key(&index))
                || uplink.is_some_and(|index| !self.uplinks.attached.contains_key(&index))
            {
                remove(&pin)?;
            }
        }
        Ok(())
    }

    /// Attaches again what somebody has detached; how many devices had lost programs.
    ///
    /// # Errors
    /// As [`Devices::follow`].
    pub fn check(&mut self, interfaces: &[Interface]) -> Result<usize, EbpfError> {
        let is_whole = |index: &u32| {
            programs_at(*index).all(|hook| match self.tcx {
                Some(true) => {
                    let link = open_pin(&self.pin(hook[0], *index)).and_then(|link| link_info(link.as_fd()));
                    link.is_ok_and(|link| link.target == u64::from(*index))
                }
                _ => program_at(*index, hook[0] == "tc_ingress", FILTER)
                    .is_ok_and(|id| id.is_some() && hook.iter().any(|name| self.id(name) == id)),
            })
        };
        let there: BTreeSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        let broken: Vec<u32> =
            self.attached.keys().copied().filter(|index| there.contains(index) && !is_whole(index)).collect();
        broken.iter().for_each(|index| drop(self.attached.remove(index)));
        let rows: BTreeMap<u32, Device> = self.table.rows().map_err(EbpfError::map("devices"))?.into_iter().collect();
        let differs = rows != self.in_force;
        self.in_force = rows;
        self.follow(interfaces)?;
        Ok(broken.len() + usize::from(differs))
    }

    /// The kernel's number of a program.
    fn id(&self, name: &str) -> Option<u32> {
        Some(self.programs.get(name)?.info().ok()?.id())
    }

    /// The devices that are covered, by name.
    pub fn covered(&self) -> BTreeSet<&str> {
        self.attached.values().map(String::as_str).collect()
    }

    /// Patterns that no covered device's name is like, with their flags.
    pub fn idle_patterns(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let idle =
            |pattern: &&String, names: &BTreeMap<u32, String>| !names.values().any(|name| matches(pattern, name));
        let devices = self.patterns.iter().filter(move |pattern| idle(pattern, &self.attached));
        let uplinks = self.uplinks.patterns().iter().filter(move |pattern| {
            // A driver that cannot is reported by itself.
            self.uplinks.names().all(|name| !matches(pattern, name))
        });
        devices.map(|pattern| ("--devices", pattern.as_str())).chain(uplinks.map(|p| ("--xdp-devices", p.as_str())))
    }

    /// Devices that are not, and why.
    pub fn faults(&self) -> &BTreeMap<String, String> {
        &self.faults
    }

    /// How programs are attached.
    pub fn how(&self) -> &'static str {
        if self.tcx == Some(false) { "clsact" } else { "TCX" }
    }

    fn pin(&self, base: &str, index: u32) -> PathBuf {
        self.links.join(format!("{base}-{index}"))
    }

    fn attach(&mut self, interface: &Interface, device: &Device, hooks: &[[&'static str; 2]]) -> Result<(), EbpfError> {
        for [base, without_ethernet] in programs_at(interface.index).filter(|hook| hooks.contains(hook)) {
            let hook = if base == "tc_ingress" { TcAttachType::Ingress } else { TcAttachType::Egress };
            let name = match device.flags & Device::NO_ETHERNET != 0 && self.programs.contains_key(without_ethernet) {
                true => without_ethernet,
                false => base,
            };
            let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
                program: name,
                target: interface.name.clone(),
                why: super::load::chain(error),
            };
            let pin = self.pin(base, interface.index);
            let Some(program) = self.programs.get_mut(name) else { continue };
            let fd = program.fd().map_err(|error| failed(&error))?.as_fd();
            if adopt(&pin, fd, u64::from(interface.index))? {
                self.tcx = Some(true);
                continue;
            }
            if self.tcx != Some(false) {
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                match program.attach_with_options(&interface.name, hook, options) {
                    Ok(id) => {
                        let link = program.take_link(id).map_err(|error| failed(&error))?;
                        let link: FdLink = link.try_into().map_err(|error| failed(&error))?;
                        link.pin(&pin).map_err(|error| failed(&error))?;
                        self.tcx = Some(true);
                        continue;
                    }
                    // Before 6.6.
                    Err(error) if self.tcx.is_none() && errno(&error) == Some(libc::EINVAL) => {
                        tracing::info!("the kernel has no TCX links: filters of clsact take their place");
                        self.tcx = Some(false);
                    }
                    Err(error) => return Err(failed(&error)),
                }
            }
            filter(program, &interface.name, hook).map_err(|error| failed(&*error))?;
        }
        Ok(())
    }

    /// Takes the pins of links whose device has gone: nobody else would, of a device that could not be covered.
    fn forget_dead_links(&self, index: u32) -> Result<(), EbpfError> {
        for pin in TC.map(|[base, _]| self.pin(base, index)) {
            let link = open_pin(&pin).and_then(|link| link_info(link.as_fd()));
            if link.is_ok_and(|link| link.target != u64::from(index)) {
                remove(&pin)?;
            }
        }
        Ok(())
    }

    /// Detaches the programs; `name` where the device is still there.
    fn detach(&self, index: u32, name: Option<&str>) -> Result<(), EbpfError> {
        for [base, _] in TC {
            remove(&self.pin(base, index))?;
        }
        if let (Some(name), Some(false)) = (name, self.tcx) {
            super::cleanup::remove_filters(name);
        }
        Ok(())
    }
}

/// The programs of a device. What comes in by the loopback interface has gone out there.
fn programs_at(index: u32) -> impl Iterator<Item = [&'static str; 2]> {
    /// LOOPBACK_IFINDEX: the same in every network namespace.
    const LOOPBACK: u32 = 1;
    TC.into_iter().filter(move |[base, _]| index != LOOPBACK || *base != "tc_ingress")
}

/// Puts the program into the link pinned at a path, if there is one and it is attached to this target; removes it if not.
pub(super) fn adopt(pin: &Path, program: BorrowedFd<'_>, target: u64) -> Result<bool, EbpfError> {
    let link = match open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(EbpfError::pin(pin)(error)),
    };
    if link_info(link.as_fd()).is_ok_and(|info| info.target == target) && update_link(link.as_fd(), program).is_ok() {
        return Ok(true);
    }
    remove(pin)?;
    Ok(false)
}

/// A filter that stays until somebody removes it, in the place of an earlier one of ours.
fn filter(
    program: &mut SchedClassifier,
    device: &str,
    hook: TcAttachType,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // It may be there already.
    let _ = qdisc_add_clsact(device);
    let (priority, handle) = FILTER;
    let earlier = SchedClassifierLink::attached(device, hook, priority, handle, None)?;
    let id = match program.attach_to_link(earlier) {
        Ok(id) => id,
        Err(_) => {
            let options = TcAttachOptions::Netlink(NlOptions { priority, handle, classid: None });
            program.attach_with_options(device, hook, options)?
        }
    };
    // Dropped, it would be detached.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return error.raw_os_error();
        }
        next = cause.source();
    }
    None
}

/// The root of the cgroup v2 hierarchy.
///
/// # Errors
/// None is mounted.
pub fn cgroup_root() -> Result<PathBuf, EbpfError> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").map_err(|source| EbpfError::Node { what: "the mounts", source })?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(folder.replace("\\040", " ")))
    });
    root.ok_or_else(|| {
        let text = "no cgroup v2 hierarchy is mounted, which sockets are translated by: mount one (mount -t cgroup2 none \
                    /sys/fs/cgroup), name a cgroup with --cgroup-root, or turn it off with --socket-lb=off";
        EbpfError::Cgroup(text.to_owned())
    })
}

/// Attaches the programs of sockets to a cgroup; those attached elsewhere by an earlier run are taken from there.
///
/// # Errors
/// There is no such cgroup, or it takes no program.
pub fn attach_sockets(
    programs: &mut BTreeMap<&'static str, CgroupSockAddr>,
    release: Option<&mut CgroupSock>,
    cgroup: &Path,
    links: &Path,
) -> Result<(), EbpfError> {
    let no_cgroup =
        |error: io::Error| EbpfError::Cgroup(format!("--cgroup-root {}: {error}; give a cgroup v2", cgroup.display()));
    let folder = fs::File::open(cgroup).map_err(no_cgroup)?;
    // The kernel's number of a cgroup is its folder's inode.
    let id = folder.metadata().map_err(no_cgroup)?.ino();
    // Programs for socket addresses and that for sockets that are closed have no type in common.
    macro_rules! attach {
        ($name:expr, $program:expr) => {{
            let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
                program: $name,
                target: cgroup.display().to_string(),
                why: super::load::chain(error),
            };
            let pin = links.join($name);
            let fd = $program.fd().map_err(|error| failed(&error))?.as_fd();
            if !adopt(&pin, fd, id)? {
                // Links are always one of several.
                let link = $program.attach(&folder, CgroupAttachMode::Single).map_err(|error| failed(&error))?;
                let link = $program.take_link(link).map_err(|error| failed(&error))?;
                let link: FdLink = link.try_into().map_err(|error| failed(&error))?;
                link.pin(&pin).map_err(|error| failed(&error))?;
            }
        }};
    }
    if let Some(program) = release {
        attach!(RELEASE, program);
    }
    for (name, _) in SOCKETS {
        if let Some(program) = programs.get_mut(name) {
            attach!(name, program);
        }
    }
    Ok(())
}

/// Takes the programs of sockets from their cgroup.
///
/// # Errors
/// A pin cannot be removed.
pub fn detach_sockets(links: &Path) -> Result<(), EbpfError> {
    SOCKETS.iter().rev().try_for_each(|(name, _)| remove(&links.join(name)))?;
    remove(&links.join(RELEASE))
}

/// How many programs of sockets are attached.
pub fn sockets_attached(links: &Path) -> usize {
    let there = |name: &&str| {
        open_pin(&links.join(name)).and_then(|link| bpf::link_info(link.as_fd())).is_ok_and(|link| link.target != 0)
    };
    SOCKETS.iter().map(|(name, _)| *name).chain([RELEASE]).filter(there).count()
}

#[cfg(test)]
mod tests {
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
            Devices::new(loaded.tc, table, links, Vec::new(), DetectLocal::NodeCidr, settings.map_sizes.devices)
                .unwrap();
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
            let settings =
                EbpfSettings { bpffs_root: mounted.0.path().to_owned(), map_sizes, ..EbpfSettings::default() };
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
            for detach in [&["filter", "del", "dev", "eth7", "ingress"][..], &["qdisc", "del", "dev", "eth7", "clsact"]]
            {
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
            let settings =
                EbpfSettings { bpffs_root: mounted.0.path().to_owned(), map_sizes, ..EbpfSettings::default() };
            let there = [interface("eth7")];
            let index = there[0].index;
            let link =
                |devices: &Devices| link_info(open_pin(&devices.pin("tc_ingress", index)).unwrap().as_fd()).unwrap();
            let mut first = devices(&settings, None);
            first.follow(&there).unwrap();
            let before = link(&first);
            drop(first);
            let mut second = devices(&settings, None);
            second.follow(&there).unwrap();
            assert_eq!((link(&second), second.how()), (before, "TCX"), "the same program at the same device");
            // Another's device has the index now: the link is of no use.
            run("ip", &["link", "del", "eth7"], "");
            run(
                "ip",
                &["link", "add", "eth7", "index", &index.to_string(), "type", "veth", "peer", "name", "eth8"],
                "",
            );
            let mut third = devices(&settings, None);
            third.follow(&there).unwrap();
            assert_eq!(link(&third).target, u64::from(index));
            third.follow(&[]).unwrap();
            assert!(!third.pin("tc_ingress", index).exists() && !third.pin("tc_egress", index).exists());
        });
    }
}
