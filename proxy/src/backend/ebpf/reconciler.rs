//! Keeps the maps' rows equal to the wanted ones, and the programs attached. The same diff serves start-up (rows read from
//! the maps), the steady state (rows remembered) and repair.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::block_in_place;

use super::admission;
use super::attach::Devices;
use super::bpf;
use super::carry::rows_of;
use super::diff::Writes;
use super::error::EbpfError;
use super::folder::Folder;
use super::following::Following;
use super::kernel::{Maps, Shape};
use super::load::load;
use super::moving::Moving;
use super::parting::Parting;
use super::pins::Pins;
use super::ports;
use super::realtime;
use super::retired::Retired;
use super::rows::Fixed;
use super::sock_diag;
use super::sockets::{self, Sockets};
use super::sweep::Sweeper;
use super::table::Table;
use super::{takeover, watched};
use crate::backend::{Report, RowChanges};
use crate::desired::{Desired, Touched};
use crate::node::{self, Interface};
use crate::settings::{ServiceMetrics, Settings, SocketLb};

/// The maps and programs of the kernel as this process knows them.
#[derive(Debug)]
pub struct Ebpf {
    pub(super) folder: Folder,
    pub(super) maps: Arc<Maps>,
    pub(super) sweeper: Option<Sweeper>,
    pub(super) parting: Parting,
    pub(super) adopted: bool,
    pub(super) moving: Moving,
    /// Of the maps and programs.
    pub(super) pins: Pins,
    pub(super) sockets: Sockets,
    /// `--end-pod-sockets`.
    pub(super) ends_pods: bool,
    pub(super) devices: Arc<Mutex<Devices>>,
    pub(super) interfaces: Option<watch::Receiver<Vec<Interface>>>,
    pub(super) runtime: Handle,
    pub(super) fixed: Fixed,
    /// `None`: to be read.
    pub(super) following: Option<Following>,
    pub(super) pending: Touched,
    /// Somebody is left out who is not to be: every row is to be looked at again.
    pub(super) again: bool,
    pub(super) retired: Retired,
    /// Masquerade ports that the node's own sockets take.
    pub(super) overlap: Option<(u16, u16)>,
    /// Node ports in force.
    pub(super) node_ports: BTreeSet<u16>,
    pub(super) counts: BTreeMap<&'static str, usize>,
    pub(super) checks: u32,
    /// When every row is looked at again.
    pub(super) next_look: Instant,
}

impl Ebpf {
    /// Loads the programs, or adopts those of an earlier run. Attaches nothing before the first sync.
    ///
    /// # Errors
    /// A right or a mount is missing, or the kernel takes a program or map not.
    pub fn open(settings: &Settings, runtime: Handle) -> Result<Self, EbpfError> {
        realtime::check()?;
        let ebpf = &settings.ebpf;
        let cgroup = match (&ebpf.cgroup_root, ebpf.socket_lb) {
            (_, SocketLb::Off) => None,
            (Some(root), _) => Some(root.clone()),
            (None, _) => Some(sockets::cgroup_root()?),
        };
        if let Some(cgroup) = cgroup.as_ref().filter(|c| bpf::file_system(c).ok() != Some(bpf::CGROUP2_FS)) {
            let text = format!("--cgroup-root {}: this is no cgroup of a v2 hierarchy", cgroup.display());
            return Err(EbpfError::Cgroup(text));
        }
        let ends_pods = ebpf.end_pod_sockets;
        if let Some(why) = cgroup.as_ref().and_then(|_| sock_diag::limit()).filter(|_| ends_pods) {
            tracing::warn!(
                %why,
                "connected UDP sockets of pods go on sending to an endpoint that has gone: they cannot be ended"
            );
        }
        let mut loaded = load(ebpf, &Shape::of(settings))?;
        if let Some(lines) = loaded.lines.take() {
            lines.follow(runtime.clone()).map_err(|source| EbpfError::Node { what: "a thread for the log", source })?;
        }
        let host_netns =
            bpf::netns_cookie().map_err(|source| EbpfError::Node { what: "the network namespace's cookie", source })?;
        loaded.maps.end_broken_move()?;
        let table = loaded.maps.devices.fd().try_clone_to_owned().and_then(Table::new);
        let flows = loaded.maps.flows.fd().try_clone_to_owned().and_then(Table::new);
        let devices = Devices::new(
            loaded.tc,
            table.map_err(EbpfError::map("devices"))?,
            &loaded.folder,
            ebpf.devices.clone(),
            settings.datapath.detect_local.clone(),
            ebpf.map_sizes.devices,
        )?
        .with_flows(flows.map_err(EbpfError::map("flows"))?)
        .with_xdp(loaded.xdp, ebpf.xdp, ebpf.xdp_devices.clone());
        Ok(Self {
            sockets: Sockets::new(loaded.sockets, loaded.release, cgroup, loaded.folder.open_links()),
            folder: loaded.folder,
            pins: loaded.pins,
            maps: Arc::new(loaded.maps),
            sweeper: None,
            parting: Parting::default(),
            adopted: loaded.adopted,
            moving: Moving::new(loaded.fresh),
            ends_pods,
            devices: Arc::new(Mutex::new(devices)),
            interfaces: None,
            runtime,
            fixed: Fixed {
                host_netns,
                masquerade_ports: ebpf.masquerade_ports,
                socket_lb: ebpf.socket_lb,
                established_elsewhere: false,
            },
            following: None,
            pending: Touched::default(),
            again: false,
            retired: Retired::new(settings.datapath.service_metrics != ServiceMetrics::Off),
            overlap: port_overlap(ebpf.masquerade_ports),
            node_ports: BTreeSet::new(),
            counts: BTreeMap::new(),
            checks: 0,
            next_look: Instant::now(),
        })
    }

    pub(super) fn devices(&self) -> MutexGuard<'_, Devices> {
        watched::lock(&self.devices)
    }

    /// Every row, compared with what is in the maps.
    pub(super) fn full(&mut self, desired: &Desired) -> Result<Report, EbpfError> {
        self.following = None;
        if self.interfaces.is_none() {
            self.fixed.established_elsewhere = takeover::begin(desired, &self.maps);
        }
        let mut following = Following::new(self.maps.read()?, *self.maps.room(), self.fixed);
        // Of slots that no frontend leads to now, some may have been led to when a program began that still runs: before an
        // earlier run ended, or before a write failed.
        self.wait()?;
        if following.in_force.services.is_empty() {
            for folder in self.folder.other_maps()? {
                following.in_force.keep_numbers(rows_of(&folder, &self.maps), self.maps.room(), bpf::now());
            }
        }
        let report = self.follow(following, true, desired, &|following, now| following.full(desired, now))?;
        Ok(Report { full: true, ..report })
    }

    /// The rows of what was touched, compared with what is known to be in the maps.
    pub(super) fn incremental(&mut self, desired: &Desired, touched: &Touched) -> Result<Report, EbpfError> {
        let Some(following) = self.following.take() else { return self.full(desired) };
        self.follow(following, false, desired, &|following, now| following.incremental(desired, touched, now))
    }

    /// Waits for the programs that run: see [`Fence`](super::fence::Fence).
    pub(super) fn wait(&self) -> Result<u64, EbpfError> {
        self.maps.fence.wait().map_err(EbpfError::map("fence"))
    }

    /// Follows and writes; where maps are short, waits for what was just given back, and if that is not enough lets those go who
    /// come last ([`admission`]). What was written.
    fn follow(
        &mut self,
        mut following: Following,
        of_all: bool,
        desired: &Desired,
        step: &dyn Fn(&mut Following, u64) -> Writes,
    ) -> Result<Report, EbpfError> {
        self.release(&mut following);
        following.admit(desired);
        let before = (of_all || following.may_be_short()).then(|| following.clone());
        let mut writes = step(&mut following, bpf::now());
        if let Some(mut before) = before.filter(|_| !following.refused.is_empty()) {
            self.wait()?;
            self.release(&mut before);
            following = before.clone();
            writes = step(&mut following, bpf::now());
            if following.is_short(desired) {
                return self.make_room(before, desired);
            }
        }
        self.again = following.is_short(desired);
        let mut report = Report::default();
        self.write(following, &writes, &mut report)?;
        Ok(report)
    }

    /// Some Services are left out although younger ones are in force, or bigger than their share. Those go, and when no program
    /// can have met them any more, the others come. Lists lie in one piece, so gaps between them may call for more to go.
    fn make_room(&mut self, mut following: Following, desired: &Desired) -> Result<Report, EbpfError> {
        let mut report = Report::default();
        for eighths in (admission::LEAST..=admission::MOST).rev() {
            following.barred = admission::barred(desired, self.maps.room(), eighths);
            following.eighths = eighths;
            let mut clear = following.clone();
            let writes = clear.clear_barred(desired, bpf::now());
            self.write(clear, &writes, &mut report)?;
            self.wait()?;
            let Some(mut cleared) = self.following.take() else { return self.full(desired) };
            self.release(&mut cleared);
            let mut all = cleared.clone();
            let writes = all.full(desired, bpf::now());
            if eighths == admission::LEAST || !all.is_short(desired) {
                let left_out = all.barred.len();
                self.write(all, &writes, &mut report)?;
                tracing::warn!(
                    left_out,
                    "maps are too small for all service ports: those of the youngest Services are left out"
                );
                break;
            }
            following = cleared;
        }
        self.again = false;
        Ok(report)
    }

    /// Looks again at those who are left out, after something became free.
    pub(super) fn readmit(&mut self, desired: &Desired) -> Result<Report, EbpfError> {
        let mut report = Report::default();
        if let Some(mut following) = self.following.take() {
            let writes = following.readmit(desired, bpf::now());
            self.write(following, &writes, &mut report)?;
        }
        Ok(report)
    }

    /// Frees what no program can be about to read.
    fn release(&mut self, following: &mut Following) {
        let (ended, maps, retired) = (self.maps.fence.ended(), &self.maps, &mut self.retired);
        // Before some of them begin anew for others.
        following.release(ended, |row| maps.backends.is_idle(row), &mut |owner, row| {
            retired.add(owner, &maps.backends.get(row))
        });
    }

    /// Makes the writes that lead to this, and adds them to a report.
    fn write(&mut self, mut following: Following, writes: &Writes, report: &mut Report) -> Result<(), EbpfError> {
        report.changes += writes.len();
        for (map, RowChanges { added, deleted }) in writes.by_map() {
            let rows = report.by_map.entry(map).or_default();
            rows.added += added;
            rows.deleted += deleted;
        }
        let (numbers, retired) = (&following.in_force.numbers, &mut self.retired);
        self.maps.write(writes, &mut |row, counted| {
            if let Some(owner) = numbers.owner(row) {
                retired.add(owner, &counted);
            }
        })?;
        following.in_force.written(bpf::now());
        if !writes.is_empty() || self.counts.is_empty() {
            self.node_ports = following.node_ports();
        }
        // Also where nothing had to be written: what was given back before may be free now.
        self.counts.extend(following.counts());
        self.following = Some(following);
        Ok(())
    }

    /// Which hooks carry packets, once they do.
    fn log_hooks(&self) {
        let devices = self.devices();
        let covered = devices.covered().len();
        let sockets = self.sockets.cgroup().map_or("off".to_owned(), |cgroup| cgroup.display().to_string());
        tracing::info!(%sockets, tc = devices.how(), devices = covered, xdp = %devices.uplinks(), "hooks are attached");
    }

    /// Attaches the programs, and from now on to every device that comes.
    pub(super) fn attach(&mut self) -> Result<(), EbpfError> {
        if self.interfaces.is_some() {
            return Ok(());
        }
        let mut interfaces = self.runtime.block_on(node::watch_interfaces())?;
        self.take_places(&mut interfaces)?;
        if self.sockets.cgroup().is_none() {
            self.forget_sockets()?;
        }
        self.folder.tidy()?;
        self.log_hooks();
        self.interfaces = Some(interfaces.clone());
        self.sweeper = Sweeper::start(self.maps.clone())
            .inspect_err(|error| tracing::error!(%error, "connections that are over are not deleted"))
            .ok();
        let devices = self.devices.clone();
        self.runtime.spawn(async move {
            while interfaces.changed().await.is_ok() {
                if let Err(error) = block_in_place(|| watched::follow(&devices, &mut interfaces)) {
                    tracing::error!(%error, "devices that came or went are not covered");
                }
            }
        });
        Ok(())
    }
}

impl Ebpf {
    /// Nobody sees sockets being closed any more: their connections do not count as active.
    fn forget_sockets(&self) -> Result<(), EbpfError> {
        let sockets = &self.maps.socket_connections;
        let rows = sockets.rows().map_err(EbpfError::map("socket_connections"))?;
        let cookies: Vec<u64> = rows.into_iter().map(|(cookie, _)| cookie).collect();
        sockets.delete(&cookies).map(drop).map_err(EbpfError::map("socket_connections"))
    }
}

/// The first and the last masquerade port that the node's own sockets may take, as the kernel's settings are now.
fn port_overlap(masquerade: (u16, u16)) -> Option<(u16, u16)> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default();
    ports::overlap(masquerade, &read("ip_local_port_range"), &read("ip_local_reserved_ports"))
}
