//! What a running datapath has pinned: its maps and programs.

mod flows;
mod runs;
mod written;

use std::mem::offset_of;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
pub use flows::{Entry, flow_key};
use kubeferry::backend::ebpf::bpf::definition;
use kubeferry_ebpf_common::live::{LiveFilter, LiveSpent};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Address, Backend, Config, FlowKey, Frontend, FrontendKey, Slot, SocketKey, Traffic};
pub use runs::Ran;
pub use written::Written;
use zerocopy::{FromBytes, IntoBytes};

use super::kernel;
use crate::netns::Netns;

/// The maps and programs that tests look at.
#[derive(Debug)]
pub struct Pinned {
    flows: OwnedFd,
    socket_services: OwnedFd,
    stats: OwnedFd,
    config: OwnedFd,
    frontends: OwnedFd,
    slots: OwnedFd,
    backends: OwnedFd,
    traffic: OwnedFd,
    devices: OwnedFd,
    addresses: OwnedFd,
    members: OwnedFd,
    source_ranges: OwnedFd,
    ingress: OwnedFd,
    egress: OwnedFd,
    uplink: OwnedFd,
    live_filter: OwnedFd,
    live_spent: OwnedFd,
}

/// An endpoint in a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its address.
    pub address: Address,
    /// Its row of `backends`.
    pub backend: u32,
    /// Its weight.
    pub weight: u32,
}

impl Pinned {
    /// Opens them in the BPF file system that a `kubeferry run` uses.
    ///
    /// # Errors
    /// It has not loaded its programs yet.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let root = bpffs.join("kubeferry");
        let folder = |prefix: &str| {
            let entries = std::fs::read_dir(&root).context("nothing is pinned")?;
            let names = entries.flatten().map(|entry| entry.path());
            let named = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
            names.into_iter().find(|path| named(path)).with_context(|| format!("no folder {prefix}…"))
        };
        let (maps, programs) = (folder("maps-")?, folder("programs-")?);
        let open = |path: &Path, name: &str| kernel::open_pin(&path.join(name)).with_context(|| name.to_owned());
        Ok(Self {
            flows: open(&maps, "flows")?,
            socket_services: open(&maps, "socket_services")?,
            stats: open(&maps, "stats")?,
            config: open(&maps, "config")?,
            frontends: open(&maps, "frontends")?,
            slots: open(&maps, "slots")?,
            backends: open(&maps, "backends")?,
            traffic: open(&maps, "traffic")?,
            devices: open(&maps, "devices")?,
            addresses: open(&maps, "addresses")?,
            members: open(&maps, "members")?,
            source_ranges: open(&maps, "source_ranges")?,
            ingress: open(&programs, "tc_ingress")?,
            egress: open(&programs, "tc_egress")?,
            uplink: open(&programs, "xdp_uplink")?,
            live_filter: open(&programs, "live/live_filter")?,
            live_spent: open(&programs, "live/live_spent")?,
        })
    }

    /// Forgets which services sockets show; how many rows that were. As when other sockets need their places.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_services(&self) -> Result<usize> {
        delete_all(&self.socket_services, size_of::<SocketKey>())
    }

    /// Forgets every connection.
    ///
    /// # Errors
    /// The kernel's.
    pub fn forget_flows(&self) -> Result<()> {
        delete_all(&self.flows, size_of::<FlowKey>()).map(drop)
    }

    /// How many frontends there are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn frontends(&self) -> Result<usize> {
        Ok(kernel::keys(self.frontends.as_fd(), size_of::<FrontendKey>())?.len())
    }

    /// Deletes every frontend; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_frontends(&self) -> Result<usize> {
        delete_all(&self.frontends, size_of::<FrontendKey>())
    }

    /// Has nobody but programs write a frontend any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn freeze_frontends(&self) -> Result<()> {
        Ok(kernel::freeze(self.frontends.as_fd())?)
    }

    /// Has no node, pod range or ServiceCIDR be known.
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear_config(&self) -> Result<()> {
        Ok(kernel::put(self.config.as_fd(), &0u32.to_ne_bytes(), &[0; size_of::<Config>()])?)
    }

    /// Has connections be moved here, or not any more: see [`Config::MOVING`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_moving(&self, moving: bool) -> Result<()> {
        let at = 0u32.to_ne_bytes();
        let row = kernel::get(self.config.as_fd(), &at, size_of::<Config>())?.context("no row")?;
        let mut config = Config::read_from_bytes(&row).map_err(|_| anyhow!("a row of {} bytes", row.len()))?;
        config.flags = config.flags & !Config::MOVING | if moving { Config::MOVING } else { 0 };
        Ok(kernel::put(self.config.as_fd(), &at, config.as_bytes())?)
    }

    /// Fills the map of frontends with rows of nobody; how many there was room for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn fill_frontends(&self) -> Result<usize> {
        for number in 0u32.. {
            let mut key = vec![0; size_of::<FrontendKey>()];
            key[..4].copy_from_slice(&(number + 1).to_be_bytes());
            match kernel::put(self.frontends.as_fd(), &key, &[0; size_of::<Frontend>()]) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => return Ok(number as usize),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(usize::MAX)
    }

    /// Until when packets are told of, in nanoseconds of CLOCK_MONOTONIC; 0: they are not.
    ///
    /// # Errors
    /// The kernel's.
    pub fn followed_until(&self) -> Result<u64> {
        self.live(&self.live_filter, size_of::<LiveFilter>(), offset_of!(LiveFilter, until))
    }

    /// How many connections were told of since the last full second in which one was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn told(&self) -> Result<u64> {
        self.live(&self.live_spent, size_of::<LiveSpent>(), offset_of!(LiveSpent, told))
    }

    fn live(&self, map: &OwnedFd, length: usize, at: usize) -> Result<u64> {
        let row = kernel::get(map.as_fd(), &0u32.to_ne_bytes(), length)?.context("no row")?;
        Ok(u64::from_ne_bytes(row[at..at + 8].try_into()?))
    }

    /// How many interfaces there are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn devices(&self) -> Result<usize> {
        Ok(kernel::keys(self.devices.as_fd(), size_of::<u32>())?.len())
    }

    /// Deletes every interface's row; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_devices(&self) -> Result<usize> {
        delete_all(&self.devices, size_of::<u32>())
    }

    /// The Cluster list of a service port, by an address of it; empty where it has none.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list(&self, at: SocketAddr, protocol: u8) -> Result<Vec<Listed>> {
        let slot = |number: u32| {
            let row = kernel::get(self.slots.as_fd(), &number.to_ne_bytes(), size_of::<Slot>())?;
            let row = row.context("no such slot")?;
            Ok(Listed {
                address: address(&row, offset_of!(Slot, address)),
                backend: word(&row, offset_of!(Slot, backend)),
                weight: word(&row, offset_of!(Slot, weight)),
            })
        };
        self.range(at, protocol)?.map(slot).collect()
    }

    /// Overwrites the slots of that list with zeroes; how many there are. (Rows of an array cannot be deleted.)
    ///
    /// # Errors
    /// The kernel's.
    pub fn clear_list(&self, at: SocketAddr, protocol: u8) -> Result<usize> {
        let slots = self.range(at, protocol)?;
        let clear = |number: u32| kernel::put(self.slots.as_fd(), &number.to_ne_bytes(), &[0; size_of::<Slot>()]);
        slots.clone().try_for_each(clear)?;
        Ok(slots.len())
    }

    /// The row of the frontend at an address, as bytes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn frontend(&self, at: SocketAddr, protocol: u8) -> Result<Option<Vec<u8>>> {
        Ok(kernel::get(self.frontends.as_fd(), &frontend_key(at, protocol), size_of::<Frontend>())?)
    }

    /// Writes that row.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put_frontend(&self, at: SocketAddr, protocol: u8, row: &[u8]) -> Result<()> {
        Ok(kernel::put(self.frontends.as_fd(), &frontend_key(at, protocol), row)?)
    }

    /// The numbers of the slots of that list.
    fn range(&self, at: SocketAddr, protocol: u8) -> Result<Range<u32>> {
        let Some(row) = self.frontend(at, protocol)? else {
            return Ok(0..0);
        };
        let (first, count) =
            (word(&row, offset_of!(Frontend, cluster_first)), word(&row, offset_of!(Frontend, cluster_count)));
        Ok(first..first + count)
    }

    /// Every row of `backends`, from row 0 on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn backends(&self) -> Result<Vec<Backend>> {
        self.first_backends(u32::MAX)
    }

    /// The first rows of it, no more than so many.
    ///
    /// # Errors
    /// The kernel's.
    pub fn first_backends(&self, most: u32) -> Result<Vec<Backend>> {
        let rows = (0..most).map_while(|row: u32| {
            kernel::get(self.backends.as_fd(), &row.to_ne_bytes(), size_of::<Backend>()).transpose()
        });
        rows.map(|bytes| {
            let bytes = bytes?;
            let number = |at: usize| u64::from(word(&bytes, at)) | u64::from(word(&bytes, at + 4)) << 32;
            Ok(Backend { opened: number(0), active: number(8) })
        })
        .collect()
    }

    /// Has a row of `backends` say this.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_backend(&self, row: u32, to: &Backend) -> Result<()> {
        let bytes: Vec<u8> = [to.opened, to.active].map(u64::to_ne_bytes).concat();
        Ok(kernel::put(self.backends.as_fd(), &row.to_ne_bytes(), &bytes)?)
    }

    /// The shards of `traffic`, from shard 0 on: what each says of a row of `backends`. None where packets are not counted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn traffic(&self, row: u32) -> Result<Vec<Traffic>> {
        let rows = |map: &OwnedFd| Ok::<_, anyhow::Error>(definition(map.as_fd())?.rows);
        // Each begins a cache line.
        let (all, shard) = (rows(&self.traffic)?, rows(&self.backends)?.next_multiple_of(8));
        let get = |shard: u32| {
            let bytes = kernel::get(self.traffic.as_fd(), &(shard + row).to_ne_bytes(), size_of::<Traffic>())?;
            let bytes = bytes.context("no such row")?;
            let number = |at: usize| u64::from(word(&bytes, at)) | u64::from(word(&bytes, at + 4)) << 32;
            Ok(Traffic { packets: number(0), bytes: number(8) })
        };
        (0..all / shard).map(|number| get(number * shard)).collect()
    }

    /// A counter of the programs.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counter(&self, counter: Counter) -> Result<u64> {
        let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
        let last: usize = possible.trim().rsplit(['-', ',']).next().unwrap_or_default().parse()?;
        let key = (counter as u32).to_ne_bytes();
        let bytes = kernel::get(self.stats.as_fd(), &key, 8 * (last + 1))?.context("no such counter")?;
        Ok(bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes)).sum())
    }
}

/// The key of a frontend at an address, as bytes.
fn frontend_key(at: SocketAddr, protocol: u8) -> Vec<u8> {
    let mut key: Vec<u8> = Address::from(at.ip()).words.into_iter().flat_map(u32::to_ne_bytes).collect();
    key.extend(at.port().to_be_bytes());
    key.extend([protocol, FrontendKey::ADDRESS]);
    key
}

/// Deletes every row of a map with keys of so many bytes; how many there were.
fn delete_all(map: &OwnedFd, length: usize) -> Result<usize> {
    let keys = kernel::keys(map.as_fd(), length)?;
    keys.iter().try_for_each(|key| kernel::delete(map.as_fd(), key))?;
    Ok(keys.len())
}

/// Detaches what a pinned link attaches; the link stays.
///
/// # Errors
/// It is no link that can be detached.
pub fn detach(pin: &Path) -> std::io::Result<()> {
    kernel::detach(kernel::open_pin(pin)?.as_fd())
}

/// The number of a namespace's interface.
///
/// # Errors
/// It has none of this name.
pub fn interface_index(namespace: &Netns, name: &str) -> Result<u32> {
    namespace.run(|| kernel::interface_index(name))?.with_context(|| format!("no interface {name}"))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]))
}

fn address(bytes: &[u8], at: usize) -> Address {
    Address { words: [0, 4, 8, 12].map(|byte| word(bytes, at + byte)) }
}
