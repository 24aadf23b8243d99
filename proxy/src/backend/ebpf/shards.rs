//! The array `traffic` in our own memory: packets and bytes of the connections of each row of `backends`, as the programs count them
//! at this moment. Each CPU counts in a shard of its own, or in one that it shares with few others.
#![allow(unsafe_code)] // Memory that the kernel's programs change.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use kubeferry_ebpf_common::Traffic;
use memmap2::{MmapOptions, MmapRaw};

/// All shards take so many bytes at most; what a single one takes, if that is more.
const MOST: u64 = 64 << 20;
/// A shard has a multiple of so many rows, so that none has a cache line, or one of the two that a CPU fetches together, with another.
const ROUND: u32 = 128 / size_of::<Traffic>() as u32;

/// How the array is laid out: one shard after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shards {
    /// Rows of a shard; 0: packets are not counted.
    pub rows: u32,
    /// How many there are: a power of two.
    pub count: u32,
}

impl Shards {
    /// Where packets are not counted.
    pub const NONE: Self = Self { rows: 0, count: 1 };

    /// For so many rows of `backends`, and so many CPUs that the kernel may have.
    pub fn new(backends: u32, cpus: usize) -> Self {
        let rows = backends.checked_next_multiple_of(ROUND).unwrap_or(backends);
        let bytes = u64::from(rows) * size_of::<Traffic>() as u64;
        let wanted = u32::try_from(cpus).ok().and_then(u32::checked_next_power_of_two).unwrap_or(1 << 31);
        let mut count = wanted;
        while count > 1 && bytes * u64::from(count) > MOST {
            count /= 2;
        }
        Self { rows, count }
    }

    /// Of an array with so many rows that belongs to so many of `backends`; `None`: they do not belong together.
    fn found(backends: u32, all: u32) -> Option<Self> {
        let Self { rows, .. } = Self::new(backends, 1);
        match all {
            1 => Some(Self::NONE),
            _ if rows > 0 && all.is_multiple_of(rows) => Some(Self { rows, count: all / rows }),
            _ => None,
        }
    }

    /// Rows of the array: there is no array without.
    pub fn all_rows(&self) -> u32 {
        self.rows.saturating_mul(self.count).max(1)
    }

    /// What the programs take from a CPU's number.
    pub fn mask(&self) -> u32 {
        self.count - 1
    }
}

/// The array.
#[derive(Debug)]
pub struct Sharded {
    map: OwnedFd,
    memory: MmapRaw,
    shards: Shards,
}

impl Sharded {
    /// Of a map of this kind with so many rows, which belongs to so many rows of `backends`.
    ///
    /// # Errors
    /// The kernel refuses, or the map is none of these.
    pub fn new(map: OwnedFd, all: u32, backends: u32) -> io::Result<Self> {
        let shards = Shards::found(backends, all)
            .ok_or_else(|| io::Error::other(format!("{all} rows for {backends} of backends")))?;
        let memory = MmapOptions::new().len(all as usize * size_of::<Traffic>()).map_raw(map.as_raw_fd())?;
        Ok(Self { map, memory, shards })
    }

    /// The map.
    pub fn map(&self) -> &OwnedFd {
        &self.map
    }

    /// Whether packets are counted.
    pub fn counts(&self) -> bool {
        self.shards.rows > 0
    }

    /// A row's packets and bytes in each shard; nothing beyond the last row.
    fn each(&self, row: u32) -> impl Iterator<Item = [&AtomicU64; 2]> {
        const { assert!(size_of::<Traffic>() == 2 * size_of::<u64>()) };
        let Shards { rows, count } = self.shards;
        let first: *mut AtomicU64 = self.memory.as_mut_ptr().cast();
        (0..count).filter(move |_| row < rows).map(move |shard| {
            let at = (shard as usize * rows as usize + row as usize) * 2;
            // SAFETY: inside of the memory, which begins at a page and lives as long as we; everybody changes it atomically.
            [0, 1].map(|field| unsafe { &*first.add(at + field) })
        })
    }

    /// What a row says, all shards together.
    pub fn get(&self, row: u32) -> Traffic {
        sum(self.each(row).map(|fields| fields.map(|field| field.load(Ordering::Relaxed))))
    }

    /// Lets a row begin anew, and gives what it said: what is counted meanwhile is in one or in the other.
    pub fn take(&self, row: u32) -> Traffic {
        sum(self.each(row).map(|fields| fields.map(|field| field.swap(0, Ordering::Relaxed))))
    }

    /// Has a row say this.
    pub fn set(&self, row: u32, value: &Traffic) {
        let values = std::iter::once([value.packets, value.bytes]).chain(std::iter::repeat([0; 2]));
        for (fields, values) in self.each(row).zip(values) {
            fields.into_iter().zip(values).for_each(|(field, value)| field.store(value, Ordering::Relaxed));
        }
    }
}

fn sum(shards: impl Iterator<Item = [u64; 2]>) -> Traffic {
    shards.fold(Traffic::default(), |sum, [packets, bytes]| Traffic {
        packets: sum.packets.wrapping_add(packets),
        bytes: sum.bytes.wrapping_add(bytes),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: u32 = 262_144;

    #[test]
    fn each_cpu_has_a_shard_as_long_as_there_is_memory() {
        let count = |backends, cpus| Shards::new(backends, cpus).count;
        assert_eq!([1, 2, 3, 4, 5].map(|cpus| count(DEFAULT, cpus)), [1, 2, 4, 4, 8]);
        // 4 MiB each.
        assert_eq!([16, 17, 64, 1_000].map(|cpus| count(DEFAULT, cpus)), [16; 4]);
        assert_eq!([64, 1_000].map(|cpus| count(4_096, cpus)), [64, 1_024]);
        assert_eq!(count(DEFAULT, usize::MAX), 16);
        assert_eq!([4_194_304, 4_194_305, u32::MAX].map(|backends| count(backends, 64)), [1; 3]);
        for (backends, cpus) in [(1, 1), (7, 3), (DEFAULT, 1_000), (1_000_000, 64), (2_097_153, 2), (1, usize::MAX)] {
            let shards = Shards::new(backends, cpus);
            assert!(u64::from(shards.all_rows()) * 16 <= MOST, "{backends} {cpus}: {shards:?}");
            assert!(shards.rows >= backends && shards.rows < backends + ROUND, "{backends}: {shards:?}");
            assert!(shards.rows.is_multiple_of(ROUND) && shards.count.is_power_of_two(), "{shards:?}");
            assert_eq!(Shards::found(backends, shards.all_rows()), Some(shards));
        }
    }

    #[test]
    fn what_no_packet_is_counted_in_has_one_row() {
        assert_eq!((Shards::NONE.all_rows(), Shards::NONE.mask()), (1, 0));
        assert_eq!(Shards::found(DEFAULT, 1), Some(Shards::NONE));
        assert_eq!(Shards::found(DEFAULT, DEFAULT + 8), None, "of another map of backends");
        assert_eq!(Shards::new(u32::MAX, 1).all_rows(), u32::MAX, "the kernel will refuse it");
    }
}
