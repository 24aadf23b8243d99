//! Programs on devices: attached as links where the kernel has them, which are pinned and outlive us, else
//! as filters of the qdisc clsact. Devices that come are covered as soon as the kernel tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp};
use kubeferry_ebpf_common::Device;
use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketType};

use super::bpf::{link_info, open_pin, update_link};
use super::devices::{matches, rows};
use super::error::EbpfError;
use super::filters::{self, FILTER, program_at};
use super::load::{TC, XDP, list, remove};
use super::table::Table;
use super::uplinks::Uplinks;
use crate::node::Interface;
use crate::settings::{DetectLocal, XdpMode};

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
            filters::attach(program, &interface.name, hook).map_err(|error| failed(&*error))?;
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

/// Whether the kernel has a device of this number, as far as it tells.
fn is_there(index: u32) -> bool {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    socket.map_or(true, |socket| index_to_name(socket, index) != Err(Errno::NODEV))
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

#[cfg(test)]
mod tests;
