//! A map of the kernel by its rows, as bytes, many in one call: what aya has not.
#![allow(unsafe_code)] // bpf(2) with pointers to rows.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use kubeferry_ebpf_common::plain::Plain;

use super::bpf::{Attributes, MAP_LOOKUP_ELEM, call, definition, fd_word, first_word, pair};

// include/uapi/linux/bpf.h, enum bpf_cmd.
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;
const MAP_DELETE_BATCH: libc::c_int = 27;

/// What the kernel returns inside for what it has not; older ones let it out.
const ENOTSUPP: i32 = 524;

/// How many rows go in one call.
const BATCH: usize = 4_096;

/// A map whose keys and values are these types.
#[derive(Debug)]
pub struct Table<K, V> {
    map: OwnedFd,
    types: std::marker::PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// The map behind a descriptor.
    ///
    /// # Errors
    /// Its keys or values are of another size.
    pub fn new(map: OwnedFd) -> io::Result<Self> {
        let found = definition(map.as_fd())?;
        let wanted = (std::mem::size_of::<K>(), std::mem::size_of::<V>());
        if (found.key as usize, found.value as usize) != wanted {
            return Err(io::Error::other(format!("rows of {}+{} bytes, not {wanted:?}", found.key, found.value)));
        }
        Ok(Self { map, types: std::marker::PhantomData })
    }

    /// The descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// The value of a key.
    ///
    /// # Errors
    /// The kernel's.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let mut attributes = self.element(key, (&raw mut value) as u64);
        // SAFETY: a key and room for a value of the lengths that the map has (`Table::new`); any bytes are a value.
        match unsafe { call(MAP_LOOKUP_ELEM, &mut attributes) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes rows, in this order.
    ///
    /// # Errors
    /// The kernel's; those before the one that it refuses are written.
    pub fn put(&self, rows: &[(K, V)]) -> io::Result<()> {
        for rows in rows.chunks(BATCH) {
            let (keys, values): (Vec<K>, Vec<V>) = rows.iter().copied().unzip();
            let mut attributes = self.batch(keys.as_ptr() as u64, values.as_ptr() as u64, rows.len());
            let answer = match rows.len() {
                0 | 1 => unsupported(),
                // SAFETY: so many keys and values of the map's lengths, only read.
                _ => unsafe { call(MAP_UPDATE_BATCH, &mut attributes) },
            };
            match answer {
                Err(error) if is_unsupported(&error) => rows.iter().try_for_each(|(key, value)| {
                    let mut attributes = self.element(key, std::ptr::from_ref(value) as u64);
                    // SAFETY: a key and a value of the map's lengths, only read.
                    unsafe { call(MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
                })?,
                result => drop(result?),
            }
        }
        Ok(())
    }

    /// Writes a row whose key is free; whether it was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put_new(&self, key: &K, value: &V) -> io::Result<bool> {
        const NOEXIST: u64 = 1;
        self.put_if(key, value, NOEXIST, libc::EEXIST)
    }

    /// Writes a row whose key is there; whether it was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn put_known(&self, key: &K, value: &V) -> io::Result<bool> {
        const EXIST: u64 = 2;
        self.put_if(key, value, EXIST, libc::ENOENT)
    }

    /// Writes a row unless the kernel says `no`.
    fn put_if(&self, key: &K, value: &V, flags: u64, no: i32) -> io::Result<bool> {
        let mut attributes = self.element(key, std::ptr::from_ref(value) as u64);
        attributes[3] = flags;
        // SAFETY: a key and a value of the map's lengths, only read.
        match unsafe { call(MAP_UPDATE_ELEM, &mut attributes) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(no) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes rows; those that are not there are no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&self, keys: &[K]) -> io::Result<usize> {
        let mut deleted = 0;
        for key in keys {
            // SAFETY: a key of the map's length, only read.
            match unsafe { call(MAP_DELETE_ELEM, &mut self.element(key, 0)) } {
                Ok(_) => deleted += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// Deletes a row of a hash map, and gives what it had when it went (Linux 5.14). A program that had found it goes on to have its
    /// memory.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        let mut attributes = self.element(key, (&raw mut value) as u64);
        // SAFETY: as for `get`.
        match unsafe { call(MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes rows that are there, in few calls. A row that is gone ends a call early: the rest goes one by one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_many(&self, keys: &[K]) -> io::Result<usize> {
        let mut deleted = 0;
        for keys in keys.chunks(BATCH) {
            let mut attributes = self.batch(keys.as_ptr() as u64, 0, keys.len());
            // SAFETY: so many keys of the map's length, only read.
            match unsafe { call(MAP_DELETE_BATCH, &mut attributes) } {
                Ok(_) => deleted += keys.len(),
                Err(_) => deleted += self.delete(keys)?,
            }
        }
        Ok(deleted)
    }

    /// All rows; of a map that programs write to at the same time, those that were met.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rows(&self) -> io::Result<Vec<(K, V)>> {
        let mut rows = Vec::new();
        match self.each_batch(|part| rows.extend_from_slice(part)) {
            Err(error) if is_unsupported(&error) => self.walk(),
            result => result.map(|()| rows),
        }
    }

    /// All rows, some thousands at a time.
    ///
    /// # Errors
    /// The kernel's.
    pub fn each_batch(&self, mut take: impl FnMut(&[(K, V)])) -> io::Result<()> {
        let mut room = BATCH;
        // The position is a hash bucket's number or a key, whichever is longer.
        let mut position = vec![0u8; std::mem::size_of::<K>().max(8)];
        let mut next = position.clone();
        let mut started = false;
        // Used for each call again: memory that is taken and given back in large pieces stays with the allocator.
        let (mut keys, mut values, mut part) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            keys.resize(room, K::new_zeroed());
            values.resize(room, V::new_zeroed());
            let mut attributes = self.batch(keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64, room);
            attributes[0] = if started { position.as_ptr() as u64 } else { 0 };
            attributes[1] = next.as_mut_ptr() as u64;
            // SAFETY: room for so many keys and values of the map's lengths, and for two positions; any bytes are a key or value.
            let end = match unsafe { call(MAP_LOOKUP_BATCH, &mut attributes) } {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // A hash bucket with more rows than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                    room *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let count = (first_word(attributes[4]) as usize).min(room);
            part.clear();
            part.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
            take(&part);
            if end {
                return Ok(());
            }
            std::mem::swap(&mut position, &mut next);
            started = true;
        }
    }

    /// All rows one by one, as kernels before 5.6 (5.14 for an LPM trie) want it.
    fn walk(&self) -> io::Result<Vec<(K, V)>> {
        let mut rows = Vec::new();
        let mut key: Option<K> = None;
        loop {
            let mut next = K::new_zeroed();
            let mut attributes = Attributes::default();
            attributes[0] = pair(fd_word(self.fd()), 0);
            attributes[1] = key.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64);
            attributes[2] = (&raw mut next) as u64;
            // SAFETY: a key of the map's length or none, and room for another.
            match unsafe { call(MAP_GET_NEXT_KEY, &mut attributes) } {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(rows),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.get(&next)? {
                rows.push((next, value));
            }
            key = Some(next);
        }
    }

    fn element(&self, key: &K, value: u64) -> Attributes {
        let mut attributes = Attributes::default();
        attributes[0] = pair(fd_word(self.fd()), 0);
        attributes[1] = std::ptr::from_ref(key) as u64;
        attributes[2] = value;
        attributes
    }

    /// in_batch, out_batch, keys, values, count and map_fd, elem_flags, flags.
    fn batch(&self, keys: u64, values: u64, count: usize) -> Attributes {
        let mut attributes = Attributes::default();
        attributes[2] = keys;
        attributes[3] = values;
        attributes[4] = pair(count as u32, fd_word(self.fd()));
        attributes
    }
}

fn unsupported() -> io::Result<libc::c_long> {
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | ENOTSUPP | libc::EOPNOTSUPP))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd as _, OwnedFd};

    use super::*;

    /// A map as `flows` is one: hashed, of the least recently used.
    fn lru() -> Table<u64, u64> {
        const MAP_CREATE: libc::c_int = 0;
        const LRU_HASH: u32 = 9;
        let mut attributes = Attributes::default();
        attributes[0] = pair(LRU_HASH, 8);
        attributes[1] = pair(8, 1_024);
        // SAFETY: numbers, no pointers.
        let map = unsafe { call(MAP_CREATE, &mut attributes) }.unwrap();
        // SAFETY: the kernel has just opened it for us.
        Table::new(unsafe { OwnedFd::from_raw_fd(map as libc::c_int) }).unwrap()
    }

    #[test]
    fn a_row_that_is_taken_says_what_it_had_when_it_went() {
        let table = lru();
        table.put(&[(1, 10), (2, 20)]).unwrap();
        let seen = table.get(&1).unwrap();
        table.put(&[(1, 11)]).unwrap();
        assert_eq!((seen, table.take(&1).unwrap()), (Some(10), Some(11)));
        assert_eq!((table.take(&1).unwrap(), table.get(&1).unwrap()), (None, None));
        assert_eq!(table.rows().unwrap(), [(2, 20)]);
    }
}
