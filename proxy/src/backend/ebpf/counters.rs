//! The array `backends` in our own memory: connections of each endpoint, as the programs count them at this moment.
#![allow(unsafe_code)] // Memory that the kernel's programs change.

use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kubeferry_ebpf_common::Backend;
use memmap2::{MmapOptions, MmapRaw};

/// The array.
#[derive(Debug)]
pub struct Counters {
    map: OwnedFd,
    memory: MmapRaw,
    rows: u32,
    /// Rows that began anew since somebody last asked to be told.
    anew: Mutex<BTreeSet<u32>>,
}

impl Counters {
    /// Of a map of this kind with so many rows.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(map: OwnedFd, rows: u32) -> io::Result<Self> {
        let memory = MmapOptions::new().len(rows as usize * size_of::<Backend>()).map_raw(map.as_raw_fd())?;
        Ok(Self { map, memory, rows, anew: Mutex::default() })
    }

    /// The map.
    pub fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// How many rows there are.
    pub fn rows(&self) -> u32 {
        self.rows
    }

    /// The numbers of a row in the order of [`Backend`]'s fields; `None` beyond the last.
    fn row(&self, row: u32) -> Option<[&AtomicU64; 4]> {
        const { assert!(size_of::<Backend>() == 4 * size_of::<u64>()) };
        if row >= self.rows {
            return None;
        }
        let first: *mut AtomicU64 = self.memory.as_mut_ptr().cast();
        // SAFETY: inside of the memory, which begins at a page and lives as long as we; everybody changes it atomically.
        Some([0, 1, 2, 3].map(|field| unsafe { &*first.add(row as usize * 4 + field) }))
    }

    /// What a row says; zeroes beyond the last.
    pub fn get(&self, row: u32) -> Backend {
        let [opened, active, packets, bytes] =
            self.row(row).map_or([0; 4], |fields| fields.map(|field| field.load(Ordering::Relaxed)));
        Backend { opened, active, packets, bytes }
    }

    /// The rows where connections are active.
    pub fn busy(&self) -> Vec<u32> {
        (0..self.rows)
            .filter(|row| self.row(*row).is_some_and(|[_, active, ..]| active.load(Ordering::Relaxed) != 0))
            .collect()
    }

    /// Lets a row begin anew, and gives what it said. Who is active stays: an endpoint that comes again finds its connections.
    pub fn reset(&self, row: u32) -> Backend {
        self.anew().insert(row);
        let Some([opened, active, packets, bytes]) = self.row(row) else { return Backend::default() };
        let [opened, packets, bytes] = [opened, packets, bytes].map(|field| field.swap(0, Ordering::Relaxed));
        Backend { opened, active: active.load(Ordering::Relaxed), packets, bytes }
    }

    /// The rows that began anew since this was last called.
    pub fn take_anew(&self) -> BTreeSet<u32> {
        std::mem::take(&mut *self.anew())
    }

    fn anew(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.anew.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a row say this.
    pub fn set(&self, row: u32, value: &Backend) {
        let values = [value.opened, value.active, value.packets, value.bytes];
        for (field, value) in self.row(row).into_iter().flatten().zip(values) {
            field.store(value, Ordering::Relaxed);
        }
    }

    /// Adds to the active connections of a row.
    pub fn add_active(&self, row: u32, difference: i64) {
        if let Some([_, active, ..]) = self.row(row) {
            active.fetch_add(difference as u64, Ordering::Relaxed);
        }
    }
}
