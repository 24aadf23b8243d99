//! Programs on devices: attached as links where the kernel has them, which are pinned and outlive us, else
//! as filters of the qdisc clsact. Devices that come are covered as soon as the kernel tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use aya::programs::{SchedClassifier, TcAttachType, Xdp};
use kubeferry_ebpf_common::{Address, Device, Flow, FlowKey};
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType};

use super::devices::{is_readable, matches, rows};
use super::error::EbpfError;
use super::filters::{self, FILTER, program_at};
use super::folder::{Folder, list, remove};
use super::links::{Links, Place};
use super::load::{TC, XDP};
use super::masqueraded;
use super::table::Table;
use super::uplinks::Uplinks;
use crate::node::Interface;
use crate::settings::{DetectLocal, XdpMode};

/// The programs on the devices.
#[derive(Debug)]
pub struct Devices {
    programs: BTreeMap<&'static str, SchedClassifier>,
    table: Table<u32, Device>,
    folder: Folder,
    links: Links,
    patterns: Vec<String>,
    detect: DetectLocal,
    capacity: usize,
    /// `None`: not tried yet.
    tcx: Option<bool>,
    attached: BTreeMap<u32, String>,
    in_force: BTreeMap<u32, Device>,
    faults: BTreeMap<String, String>,
    uplinks: Uplinks,
    /// The map `flows`, for connections that are masqueraded.
    flows: Option<Table<FlowKey, Flow>>,
    /// Addresses that the node has lost, and connections may still be masqueraded by.
    lost: BTreeSet<Address>,
    /// Whether interfaces have been looked at.
    followed: bool,
}

impl Devices {
    /// Attaches nothing yet. `table` is the map `devices`, `folder` that of the pins.
    ///
    /// # Errors
    /// The rows of an earlier run cannot be read.
    pub fn new(
        programs: BTreeMap<&'static str, SchedClassifier>,
        table: Table<u32, Device>,
        folder: &Folder,
        patterns: Vec<String>,
        detect: DetectLocal,
        capacity: u32,
    ) -> Result<Self, EbpfError> {
        let in_force = table.rows().map_err(EbpfError::map("devices"))?.into_iter().collect();
        Ok(Self {
            programs,
            table,
            folder: folder.clone(),
            links: folder.open_links(),
            patterns,
            detect,
            capacity: capacity as usize,
            tcx: None,
            attached: BTreeMap::new(),
            in_force,
            faults: BTreeMap::new(),
            uplinks: Uplinks::default(),
            flows: None,
            lost: BTreeSet::new(),
            followed: false,
        })
    }

    /// Has frames of uplinks carried at XDP.
    pub fn with_xdp(mut self, program: Option<Xdp>, mode: XdpMode, patterns: Vec<String>) -> Self {
        self.uplinks = Uplinks::new(program, mode, patterns, self.folder.open_links());
        self
    }

    /// Has connections that were masqueraded by an address which the node loses begin anew.
    pub fn with_flows(mut self, flows: Table<FlowKey, Flow>) -> Self {
        self.flows = Some(flows);
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
        self.followed = true;
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
        let mut faults = self.uplinks.follow(interfaces);
        for (_, (interface, _)) in wanted.extract_if(.., |_, (interface, _)| !is_readable(interface)) {
            let why = "programs cannot read packets of IP over InfiniBand: use --backend nftables, or leave the device out of --devices";
            faults.insert(interface.name.clone(), why.to_owned());
        }
        for (index, (_, device)) in &mut wanted {
            if self.uplinks.attached.contains_key(index) {
                device.flags |= Device::XDP;
            }
        }
        let gone = |index: &u32| !wanted.contains_key(index);
        self.lost.extend(masqueraded::addresses(self.in_force.values()));
        for index in self.attached.keys().copied().filter(gone).collect::<Vec<_>>() {
            let was = self.attached.remove(&index).unwrap_or_default();
            // By the name that it has now.
            let name = interfaces.iter().find(|interface| interface.index == index).map(|there| there.name.as_str());
            if let Err(error) = self.detach(index, name) {
                faults.insert(was, error.to_string());
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
                    // A pod may go while we are at it: the kernel's notice of that comes next.
                    if is_there(*index) {
                        faults.insert(interface.name.clone(), error.to_string());
                    } else {
                        tracing::debug!(device = interface.name, "gone before it was covered");
                    }
                    self.forget_dead_links(*index)?;
                }
            }
        }
        self.leave_lost(interfaces)?;
        for (name, why) in faults.iter().filter(|(name, why)| self.faults.get(*name) != Some(why)) {
            tracing::error!(device = name, %why, "a device is not covered");
        }
        self.faults = faults;
        Ok(())
    }

    /// Has connections leave addresses that no interface has any more, once no device masquerades by them.
    fn leave_lost(&mut self, interfaces: &[Interface]) -> Result<(), EbpfError> {
        let held = interfaces.iter().flat_map(|interface| &interface.addresses);
        let held: BTreeSet<Address> = held.map(|held| held.address.into()).collect();
        self.lost.retain(|address| !held.contains(address));
        if let Some(flows) = self.flows.as_ref().filter(|_| !self.lost.is_empty()) {
            let begun = masqueraded::begin_anew(flows, &self.lost).map_err(EbpfError::map("flows"))?;
            tracing::debug!(begun, lost = ?self.lost, "connections are masqueraded anew");
        }
        self.lost.clear();
        Ok(())
    }

    /// Takes the pins of devices that went while nobody looked.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn tidy(&self) -> Result<(), EbpfError> {
        for pin in list(&self.folder.links())? {
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

    /// Attaches again what somebody has detached, and puts back what runs in our places instead; how many devices had lost
    /// programs, and how many links their pins.
    ///
    /// # Errors
    /// As [`Devices::follow`].
    pub fn check(&mut self, interfaces: &[Interface]) -> Result<usize, EbpfError> {
        let is_whole = |index: &u32| {
            programs_at(*index).all(|hook| {
                let is_ours = |id: u32| hook.iter().any(|name| self.id(name) == Some(id));
                match self.tcx {
                    Some(true) => {
                        let link = self.links.get(&name_of(hook[0], *index));
                        link.is_some_and(|link| link.target == u64::from(*index) && is_ours(link.program))
                    }
                    _ => program_at(*index, hook[0] == "tc_ingress", FILTER).is_ok_and(|id| id.is_some_and(is_ours)),
                }
            })
        };
        let there: BTreeSet<u32> = interfaces.iter().map(|interface| interface.index).collect();
        // One that has just gone takes its links along: no drift.
        let is_broken = |index: &u32| there.contains(index) && !is_whole(index) && is_there(*index);
        let broken: Vec<u32> = self.attached.keys().copied().filter(is_broken).collect();
        broken.iter().for_each(|index| drop(self.attached.remove(index)));
        let lost = self.uplinks.check(&there);
        let rows: BTreeMap<u32, Device> = self.table.rows().map_err(EbpfError::map("devices"))?.into_iter().collect();
        let differs = rows != self.in_force;
        self.in_force = rows;
        self.follow(interfaces)?;
        Ok(broken.len() + lost + usize::from(differs))
    }

    /// Pins again what somebody has unpinned; how many links that were.
    ///
    /// # Errors
    /// The BPF file system is gone, or takes no pin.
    pub fn keep_pins(&self) -> Result<usize, EbpfError> {
        Ok(self.links.keep()? + self.uplinks.keep_pins()?)
    }

    /// The kernel's number of a program.
    fn id(&self, name: &str) -> Option<u32> {
        Some(self.programs.get(name)?.info().ok()?.id())
    }

    /// The devices that are covered, by name.
    pub fn covered(&self) -> BTreeSet<&str> {
        self.attached.values().map(String::as_str).collect()
    }

    /// Patterns that no covered device's name is like, with their flags; none before interfaces were first looked at.
    pub fn idle_patterns(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let idle =
            |pattern: &&String, names: &BTreeMap<u32, String>| !names.values().any(|name| matches(pattern, name));
        let devices = self.patterns.iter().filter(move |pattern| idle(pattern, &self.attached));
        let uplinks = self.uplinks.patterns().iter().filter(move |pattern| {
            // A driver that cannot is reported by itself.
            self.uplinks.names().all(|name| !matches(pattern, name))
        });
        let all = devices.map(|p| ("--devices", p.as_str())).chain(uplinks.map(|p| ("--xdp-devices", p.as_str())));
        all.filter(|_| self.followed)
    }

    /// Devices that are not, and why.
    pub fn faults(&self) -> &BTreeMap<String, String> {
        &self.faults
    }

    /// How programs are attached.
    pub fn how(&self) -> &'static str {
        if self.tcx == Some(false) { "clsact" } else { "TCX" }
    }

    fn attach(&mut self, interface: &Interface, device: &Device, hooks: &[[&'static str; 2]]) -> Result<(), EbpfError> {
        for [base, without_ethernet] in programs_at(interface.index).filter(|hook| hooks.contains(hook)) {
            let name = match device.flags & Device::NO_ETHERNET != 0 && self.programs.contains_key(without_ethernet) {
                true => without_ethernet,
                false => base,
            };
            let failed = |error: &(dyn std::error::Error + 'static)| EbpfError::Attach {
                program: name,
                target: interface.name.clone(),
                why: super::load::chain(error),
            };
            let Some(program) = self.programs.get_mut(name) else { continue };
            let ingress = base == "tc_ingress";
            if self.tcx != Some(false) {
                let fd = program.fd().map_err(|error| failed(&error))?.as_fd();
                let place = Place::tcx(interface.index, ingress);
                match self.links.attach(&name_of(base, interface.index), fd, place) {
                    Ok(()) => {
                        self.tcx = Some(true);
                        continue;
                    }
                    // Before 6.6.
                    Err(error) if self.tcx.is_none() && error.raw_os_error() == Some(libc::EINVAL) => {
                        tracing::info!("the kernel has no TCX links: filters of clsact take their place");
                        self.tcx = Some(false);
                    }
                    Err(error) => return Err(failed(&error)),
                }
            }
            let hook = if ingress { TcAttachType::Ingress } else { TcAttachType::Egress };
            filters::attach(program, &interface.name, hook).map_err(|error| failed(&*error))?;
        }
        Ok(())
    }

    /// Lets go of links whose device has gone: nobody else would, of a device that could not be covered.
    fn forget_dead_links(&mut self, index: u32) -> Result<(), EbpfError> {
        for name in TC.map(|[base, _]| name_of(base, index)) {
            if self.links.get(&name).is_some_and(|link| link.target != u64::from(index)) {
                self.links.detach(&name)?;
            }
        }
        Ok(())
    }

    /// Detaches the programs; `name` where the device is still there.
    fn detach(&mut self, index: u32, name: Option<&str>) -> Result<(), EbpfError> {
        for [base, _] in TC {
            self.links.detach(&name_of(base, index))?;
        }
        if let (Some(name), Some(false)) = (name, self.tcx) {
            super::cleanup::remove_filters(name);
        }
        Ok(())
    }
}

/// Whether the kernel has a device of this number, as far as it tells.
pub(super) fn is_there(index: u32) -> bool {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    socket.map_or(true, |socket| index_to_name(socket, index) != Err(Errno::NODEV))
}

/// The name of a link's pin.
fn name_of(base: &str, index: u32) -> String {
    format!("{base}-{index}")
}

/// The programs of a device. What comes in by the loopback interface has gone out there.
fn programs_at(index: u32) -> impl Iterator<Item = [&'static str; 2]> {
    /// LOOPBACK_IFINDEX: the same in every network namespace.
    const LOOPBACK: u32 = 1;
    TC.into_iter().filter(move |[base, _]| index != LOOPBACK || *base != "tc_ingress")
}

#[cfg(test)]
mod tests;
