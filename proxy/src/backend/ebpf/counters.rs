//! The array `backends` in our own memory: connections of each endpoint, as the programs count them at this moment; and what they
//! carry, which is counted elsewhere ([`Sharded`]).
#![allow(unsafe_code)] // Memory that the kernel's programs change.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kubeferry_ebpf_common::{Backend, Traffic};
use memmap2::{MmapOptions, MmapRaw};

use super::bpf;
use super::shards::Sharded;

/// Everything that is counted of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counted {
    /// Its row of `backends`.
    pub connections: Backend,
    /// What all its rows of `traffic` say.
    pub traffic: Traffic,
}

/// The arrays.
#[derive(Debug)]
pub struct Counters {
    map: OwnedFd,
    memory: MmapRaw,
    rows: u32,
    traffic: Sharded,
    /// Rows that began anew since somebody last asked to be told.
    anew: Mutex<BTreeSet<u32>>,
}

impl Counters {
    /// Of the maps pinned in a folder.
    ///
    /// # Errors
    /// One is missing or of another shape, or the kernel refuses.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let open = |map: &str, value: usize| {
            let map = bpf::open_pin(&folder.join(map))?;
            let found = bpf::definition(map.as_fd())?;
            match found.value as usize == value {
                true => Ok((map, found.rows)),
                false => Err(io::Error::other(format!("rows of {} bytes, not {value}", found.value))),
            }
        };
        let (map, rows) = open("backends", size_of::<Backend>())?;
        let (traffic, all) = open("traffic", size_of::<Traffic>())?;
        let memory = MmapOptions::new().len(rows as usize * size_of::<Backend>()).map_raw(map.as_raw_fd())?;
        Ok(Self { map, memory, rows, traffic: Sharded::new(traffic, all, rows)?, anew: Mutex::default() })
    }

    /// The map of connections.
    pub fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// What they carry.
    pub fn traffic(&self) -> &Sharded {
        &self.traffic
    }

    /// How many rows there are.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The numbers of a row in the order of [`Backend`]'s fields; `None` beyond the last.
    fn row(&self, row: u32) -> Option<[&AtomicU64; 2]> {
        const { assert!(size_of::<Backend>() == 2 * size_of::<u64>()) };
        if row >= self.rows {
            return None;
        }
        let first: *mut AtomicU64 = self.memory.as_mut_ptr().cast();
        // SAFETY: inside of the memory, which begins at a page and lives as long as we; everybody changes it atomically.
        Some([0, 1].map(|field| unsafe { &*first.add(row as usize * 2 + field) }))
    }

    /// The connections of a row; zeroes beyond the last.
    pub fn connections(&self, row: u32) -> Backend {
        let [opened, active] = self.row(row).map_or([0; 2], |fields| fields.map(|field| field.load(Ordering::Relaxed)));
        Backend { opened, active }
    }

    /// All that is counted of a row; zeroes beyond the last.
    pub fn get(&self, row: u32) -> Counted {
        Counted { connections: self.connections(row), traffic: self.traffic.get(row) }
    }

    /// Whether no connection of a row is active.
    pub fn is_idle(&self, row: u32) -> bool {
        self.connections(row).active == 0
    }

    /// The rows where connections are active.
    pub fn busy(&self) -> Vec<u32> {
        (0..self.rows).filter(|row| !self.is_idle(*row)).collect()
    }

    /// Lets a row begin anew, and gives what it said. Who is active stays: an endpoint that comes again finds its connections.
    pub fn reset(&self, row: u32) -> Counted {
        self.anew().insert(row);
        let Some([opened, active]) = self.row(row) else { return Counted::default() };
        let opened = opened.swap(0, Ordering::Relaxed);
        let connections = Backend { opened, active: active.load(Ordering::Relaxed) };
        Counted { connections, traffic: self.traffic.take(row) }
    }

    /// The rows that began anew since this was last called.
    pub fn take_anew(&self) -> BTreeSet<u32> {
        std::mem::take(&mut *self.anew())
    }

    fn anew(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.anew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a row say this.
    pub fn set(&self, row: u32, value: &Counted) {
        let values = [value.connections.opened, value.connections.active];
        for (field, value) in self.row(row).into_iter().flatten().zip(values) {
            field.store(value, Ordering::Relaxed);
        }
        self.traffic.set(row, &value.traffic);
    }

    /// Adds to the active connections of a row.
    pub fn add_active(&self, row: u32, difference: i64) {
        if let Some([_, active]) = self.row(row) {
            active.fetch_add(difference as u64, Ordering::Relaxed);
        }
    }
}
