//! Keeps the maps' rows equal to the wanted ones, and the programs attached. The same diff serves start-up (rows read from
//! the maps), the steady state (rows remembered) and repair.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::programs::CgroupSockAddr;
use ipnet::IpNet;
use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::{Address, FrontendKey};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::attach::{self, Devices};
use super::bpf::{self, Table};
use super::diff::{InForce, Refused, Writes};
use super::error::EbpfError;
use super::kernel::Maps;
use super::load::{Folder, load};
use super::ports;
use super::rows::{self, Fixed, Wanted};
use crate::backend::{Backend, Report};
use crate::conntrack::{Cleaned, UdpService};
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::node::{self, Interface};
use crate::settings::{Settings, SocketLb};
use crate::state::objects::Ignored;

/// How many checks pass between two looks at every row: with one check every two seconds, half a minute.
const LOOK: u32 = 15;

/// The maps and programs of the kernel as this process knows them.
#[derive(Debug)]
pub struct Ebpf {
    folder: Folder,
    maps: Maps,
    adopted: bool,
    sockets: BTreeMap<&'static str, CgroupSockAddr>,
    cgroup: Option<PathBuf>,
    devices: Arc<Mutex<Devices>>,
    interfaces: Option<watch::Receiver<Vec<Interface>>>,
    runtime: Handle,
    fixed: Fixed,
    /// `None`: to be read.
    in_force: Option<InForce>,
    pending: Touched,
    /// Without a place in the maps.
    refused: Refused<FrontendKey>,
    /// What the datapath cannot do.
    impossible: Refused<FrontendKey>,
    refused_addresses: Refused<Address>,
    beyond: Vec<IpNet>,
    /// Node ports in force.
    node_ports: BTreeSet<u16>,
    counts: BTreeMap<&'static str, usize>,
    checks: u32,
}

impl Ebpf {
    /// Loads the programs, or adopts those of an earlier run. Attaches nothing before the first sync.
    ///
    /// # Errors
    /// A right or a mount is missing, or the kernel takes a program or map not.
    pub fn open(settings: &Settings, runtime: Handle) -> Result<Self, EbpfError> {
        let ebpf = &settings.ebpf;
        let cgroup = match (&ebpf.cgroup_root, ebpf.socket_lb) {
            (_, SocketLb::Off) => None,
            (Some(root), _) => Some(root.clone()),
            (None, _) => Some(attach::cgroup_root()?),
        };
        if let Some(cgroup) = cgroup.as_ref().filter(|c| bpf::file_system(c).ok() != Some(bpf::CGROUP2_FS)) {
            let text = format!("--cgroup-root {}: this is no cgroup of a v2 hierarchy", cgroup.display());
            return Err(EbpfError::Cgroup(text));
        }
        let loaded = load(ebpf)?;
        let host_netns =
            bpf::netns_cookie().map_err(|source| EbpfError::Node { what: "the network namespace's cookie", source })?;
        let table = loaded.maps.devices.fd().try_clone_to_owned().and_then(Table::new);
        let devices = Devices::new(
            loaded.tc,
            table.map_err(EbpfError::map("devices"))?,
            loaded.folder.links(),
            ebpf.devices.clone(),
            settings.datapath.detect_local.clone(),
            ebpf.map_sizes.devices,
        )?;
        Ok(Self {
            folder: loaded.folder,
            maps: loaded.maps,
            adopted: loaded.adopted,
            sockets: loaded.sockets,
            cgroup,
            devices: Arc::new(Mutex::new(devices)),
            interfaces: None,
            runtime,
            fixed: Fixed { host_netns, masquerade_ports: ebpf.masquerade_ports, socket_lb: ebpf.socket_lb },
            in_force: None,
            pending: Touched::default(),
            refused: Refused::new(),
            impossible: Refused::new(),
            refused_addresses: Refused::new(),
            beyond: Vec::new(),
            node_ports: BTreeSet::new(),
            counts: BTreeMap::new(),
            checks: 0,
        })
    }

    fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every row, compared with what is in the maps.
    fn full(&mut self, desired: &Desired) -> Result<Report, EbpfError> {
        self.in_force = None;
        let mut in_force = self.maps.read()?;
        let mut writes = Writes::default();
        let mut wanted = Wanted::all(desired);
        for key in in_force.frontends.keys() {
            wanted.frontends.entry(*key).or_insert(None);
        }
        let now = bpf::now();
        self.refused = self.follow(&mut in_force, &wanted, now, &mut writes)?;
        self.impossible = wanted.impossible;
        in_force.drop_unused(now, &mut writes);
        let mut addresses: BTreeMap<Address, u32> = in_force.addresses.keys().map(|address| (*address, 0)).collect();
        addresses.extend(rows::addresses(desired));
        self.refused_addresses = in_force.addresses(&addresses, self.maps.room(), &mut writes);
        let (config, beyond) = rows::config(desired, &self.fixed);
        self.beyond = beyond;
        in_force.config(config, &mut writes);
        let report = Report { full: true, changes: writes.len(), ..Report::default() };
        self.commit(in_force, &writes)?;
        Ok(report)
    }

    /// The rows of what was touched, compared with what is known to be in the maps.
    fn incremental(&mut self, desired: &Desired, touched: &Touched) -> Result<Report, EbpfError> {
        let Some(mut in_force) = self.in_force.take() else { return self.full(desired) };
        let mut writes = Writes::default();
        let mut frontends = touched.frontends.clone();
        // Those without a place may find one now.
        frontends.extend(self.refused.keys().filter_map(rows::frontend_of));
        let mut addresses: BTreeMap<Address, u32> = BTreeMap::new();
        let mut look = |ip: IpAddr| {
            addresses.insert(ip.into(), rows::address_bits(desired, ip));
        };
        touched.cluster_ips.iter().copied().for_each(&mut look);
        self.refused_addresses.keys().map(|address| IpAddr::from(*address)).for_each(&mut look);
        if touched.node {
            let held = |bits: u32| bits & (address_is::HELD | address_is::NODE_PORTS) != 0;
            let before = in_force.addresses.iter().filter(|(_, bits)| held(**bits));
            before.map(|(address, _)| IpAddr::from(*address)).for_each(&mut look);
            desired.node().addresses.iter().copied().for_each(&mut look);
            // An endpoint's slot says whether its address is the node's.
            let changed = addresses.iter().filter(|(address, bits)| {
                let old = in_force.addresses.get(*address).copied().unwrap_or(0);
                (old ^ **bits) & address_is::HELD != 0 && desired.is_endpoint((**address).into())
            });
            let changed: BTreeSet<Address> = changed.map(|(address, _)| *address).collect();
            if !changed.is_empty() {
                frontends.extend(in_force.frontends_to(&changed).iter().filter_map(rows::frontend_of));
            }
        }
        let wanted = Wanted::of(desired, frontends.into_iter());
        for refused in [&mut self.refused, &mut self.impossible] {
            refused.retain(|key, _| !wanted.frontends.contains_key(key));
        }
        let mut refused = self.follow(&mut in_force, &wanted, bpf::now(), &mut writes)?;
        self.refused.append(&mut refused);
        self.impossible.extend(wanted.impossible);
        self.refused_addresses = in_force.addresses(&addresses, self.maps.room(), &mut writes);
        if touched.node {
            let (config, beyond) = rows::config(desired, &self.fixed);
            self.beyond = beyond;
            in_force.config(config, &mut writes);
        }
        let report = Report { changes: writes.len(), ..Report::default() };
        self.commit(in_force, &writes)?;
        Ok(report)
    }

    /// As [`InForce::follow`]; where slots are short, it waits for those that were just given back.
    fn follow(
        &self,
        in_force: &mut InForce,
        wanted: &Wanted,
        now: u64,
        writes: &mut Writes,
    ) -> Result<Refused<FrontendKey>, EbpfError> {
        if in_force.slots.next_tick(now).is_none() {
            return Ok(in_force.follow(wanted, self.maps.room(), now, writes));
        }
        let (mut tried, mut first) = (in_force.clone(), Writes::default());
        let refused = tried.follow(wanted, self.maps.room(), now, &mut first);
        let short = refused.keys().next().is_some();
        match in_force.slots.next_tick(now).filter(|_| short) {
            None => {
                (*in_force, *writes) = (tried, first);
                Ok(refused)
            }
            Some(wait) => {
                // A grace, not a guess: nothing tells when the last program has read a slot.
                std::thread::sleep(Duration::from_nanos(wait));
                Ok(in_force.follow(wanted, self.maps.room(), bpf::now(), writes))
            }
        }
    }

    fn commit(&mut self, in_force: InForce, writes: &Writes) -> Result<(), EbpfError> {
        self.maps.write(writes)?;
        let is_node_port = |key: &&FrontendKey| key.kind != FrontendKey::ADDRESS;
        let touched = writes.frontends.keys().chain(&writes.gone_frontends).any(|key| is_node_port(&key));
        if touched || self.counts.is_empty() {
            // Those without an address come first.
            let keys = in_force.frontends.keys().take_while(|key| key.address.is_zero()).filter(is_node_port);
            self.node_ports = keys.map(|key| u16::from_be(key.port)).collect();
        }
        let sum = |of: fn(&super::diff::Service) -> usize| in_force.services.values().map(of).sum::<usize>();
        self.counts = BTreeMap::from([
            ("frontends", in_force.frontends.len()),
            ("slots", in_force.slots.used() as usize),
            ("addresses", in_force.addresses.len()),
            ("members", sum(|service| service.members.len())),
            ("source_ranges", sum(|service| service.ranges.len())),
        ]);
        self.in_force = Some(in_force);
        Ok(())
    }

    /// Attaches the programs, and from now on to every device that comes.
    fn attach(&mut self) -> Result<(), EbpfError> {
        if self.interfaces.is_some() {
            return Ok(());
        }
        let mut interfaces = self.runtime.block_on(node::watch_interfaces())?;
        let now = interfaces.borrow_and_update().clone();
        let mut devices = self.devices();
        devices.follow(&now)?;
        devices.tidy()?;
        drop(devices);
        match &self.cgroup {
            Some(cgroup) => attach::attach_sockets(&mut self.sockets, cgroup, &self.folder.links())?,
            None => attach::detach_sockets(&self.folder.links())?,
        }
        self.folder.tidy()?;
        self.interfaces = Some(interfaces.clone());
        let devices = self.devices.clone();
        self.runtime.spawn(async move {
            while interfaces.changed().await.is_ok() {
                let now = interfaces.borrow_and_update().clone();
                let follow = || devices.lock().unwrap_or_else(PoisonError::into_inner).follow(&now);
                if let Err(error) = block_in_place(follow) {
                    tracing::error!(%error, "devices that came or went are not covered");
                }
            }
        });
        Ok(())
    }
}

fn by_frontend(refused: &Refused<FrontendKey>) -> BTreeMap<Frontend, String> {
    refused.iter().filter_map(|(key, why)| Some((rows::frontend_of(key)?, why.clone()))).collect()
}

impl Backend for Ebpf {
    type Error = EbpfError;

    fn name(&self) -> &'static str {
        "ebpf"
    }

    fn sync(&mut self, desired: &Desired, touched: Touched) -> Result<Report, EbpfError> {
        self.pending.merge(touched);
        let touched = std::mem::take(&mut self.pending);
        let result = match self.in_force {
            Some(_) => self.incremental(desired, &touched),
            None => self.full(desired),
        };
        let mut report = match result {
            Ok(report) => report,
            Err(error) if self.interfaces.is_none() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "a write failed; comparing every row with the maps");
                self.full(desired)?
            }
        };
        self.attach()?;
        report.refused = by_frontend(&self.refused);
        Ok(report)
    }

    fn check(&mut self, desired: &Desired) -> Result<Option<Report>, EbpfError> {
        let Some(interfaces) = &self.interfaces else { return Ok(None) };
        let interfaces = interfaces.borrow().clone();
        let mut repaired = self.devices().check(&interfaces)?;
        if let Some(cgroup) = self.cgroup.clone()
            && attach::sockets_attached(&self.folder.links()) < self.sockets.len()
        {
            attach::attach_sockets(&mut self.sockets, &cgroup, &self.folder.links())?;
            repaired += 1;
        }
        self.checks += 1;
        let mut report = Report::default();
        if self.in_force.is_none() || self.checks % LOOK == 0 {
            let found = self.maps.read()?;
            let rows = self.in_force.as_ref().map_or(0, |ours| ours.differences(&found));
            if rows > 0 || self.in_force.is_none() {
                report = self.full(desired)?;
                repaired += rows;
            }
        }
        report.repaired = repaired;
        report.refused = by_frontend(&self.refused);
        Ok((repaired > 0).then_some(report))
    }

    fn rows(&self) -> &BTreeMap<&'static str, usize> {
        &self.counts
    }

    fn refused(&self) -> Vec<Ignored> {
        let left_out = by_frontend(&self.refused).into_iter().chain(by_frontend(&self.impossible));
        let mut ignored: Vec<Ignored> =
            left_out.map(|(frontend, why)| Ignored { what: format!("frontend {frontend}"), why }).collect();
        let address = |(address, why): (&Address, &String)| Ignored {
            what: format!("address {}", IpAddr::from(*address)),
            why: why.clone(),
        };
        ignored.extend(self.refused_addresses.iter().map(address));
        ignored.extend(self.beyond.iter().map(|cidr| Ignored {
            what: format!("ServiceCIDR {cidr}"),
            why: format!(
                "the eBPF datapath knows {} ranges of ServiceCIDRs: packets to addresses of this one that nobody has are \
                 not dropped",
                kubeferry_ebpf_common::config::MAX_SERVICE_CIDRS
            ),
        }));
        let (first, last) = self.fixed.masquerade_ports;
        if let Some(inside) = ports::node_ports((first, last), &self.node_ports) {
            ignored.push(Ignored {
                what: format!("--masquerade-ports {first}-{last}"),
                why: format!(
                    "node ports lie inside ({inside}): a masqueraded connection may take one; choose another range"
                ),
            });
        }
        ignored.extend(self.devices().faults().iter().map(|(device, why)| Ignored {
            what: format!("device {device}"),
            why: format!("{why}: services are not served to what comes in by it"),
        }));
        ignored
    }

    fn clean_udp(&mut self, _: &[UdpService]) -> Result<Cleaned, EbpfError> {
        Ok(Cleaned::default())
    }

    fn facts(&self) -> Vec<(String, String)> {
        let devices = self.devices();
        let covered: Vec<&str> = devices.covered().into_iter().collect();
        let mut facts = vec![
            ("programs".to_owned(), if self.adopted { "adopted from an earlier run" } else { "loaded" }.to_owned()),
            ("devices".to_owned(), format!("{} by {}: {}", covered.len(), devices.how(), covered.join(" "))),
        ];
        let sockets = match &self.cgroup {
            Some(cgroup) => {
                let attached = attach::sockets_attached(&self.folder.links());
                format!("{attached} programs at {}", cgroup.display())
            }
            None => "off".to_owned(),
        };
        facts.push(("sockets".to_owned(), sockets));
        if let Ok(memory) = self.maps.memory() {
            let each: Vec<String> = memory.iter().map(|(map, bytes)| format!("{map} {} KiB", bytes >> 10)).collect();
            facts.push(("memory".to_owned(), each.join(", ")));
        }
        facts.push(("pins".to_owned(), self.folder.root().display().to_string()));
        facts
    }

    fn packets(&self) -> Vec<(&'static str, u64)> {
        self.maps.counters().unwrap_or_default()
    }
}

/// The first and the last masquerade port that the node's own sockets may take, as the kernel's settings are now.
pub fn port_overlap(masquerade: (u16, u16)) -> Option<(u16, u16)> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    ports::overlap(masquerade, &read("ip_local_port_range"), &read("ip_local_reserved_ports"))
}
