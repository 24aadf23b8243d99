//! Whole maps that the proxy alone writes, deleted and overwritten as somebody else would.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use kubeferry::backend::ebpf::bpf::definition;

use super::{Pinned, delete_all};
use crate::bpf::kernel;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Written {
    /// What addresses are to the node.
    Addresses,
    /// The endpoints of service ports with affinity.
    Members,
    /// Who may ask load balancer addresses.
    SourceRanges,
}

impl Pinned {
    fn map(&self, map: Written) -> &OwnedFd {
        match map {
            Written::Addresses => &self.addresses,
            Written::Members => &self.members,
            Written::SourceRanges => &self.source_ranges,
        }
    }

    /// Its rows, as bytes.
    ///
    /// # Errors
    /// The kernel's; or a row goes meanwhile.
    pub fn rows(&self, map: Written) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
        let map = self.map(map).as_fd();
        let sizes = definition(map)?;
        let row = |key: Vec<u8>| {
            let value = kernel::get(map, &key, sizes.value as usize)?.context("a row is gone")?;
            Ok((key, value))
        };
        kernel::keys(map, sizes.key as usize)?.into_iter().map(row).collect()
    }

    /// Deletes every row; how many there were.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_rows(&self, map: Written) -> Result<usize> {
        let map = self.map(map);
        delete_all(map, definition(map.as_fd())?.key as usize)
    }

    /// Writes this byte all over the value of every row; how many there are.
    ///
    /// # Errors
    /// The kernel's.
    pub fn overwrite_rows(&self, map: Written, byte: u8) -> Result<usize> {
        let map = self.map(map).as_fd();
        let sizes = definition(map)?;
        let keys = kernel::keys(map, sizes.key as usize)?;
        keys.iter().try_for_each(|key| kernel::put(map, key, &vec![byte; sizes.value as usize]))?;
        Ok(keys.len())
    }
}
