//! The maps of the eBPF datapath, opened where it pinned them: demo and benchmark look at the kernel and not at what the
//! proxy says of itself.

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Address, Frontend, FrontendKey, LAYOUT, Slot, TCP};

/// Rows as words of the machine's order: the map's own types are another crate's, and stay what they are.
type KeyWords = [u32; size_of::<FrontendKey>() / 4];
type FrontendWords = [u32; size_of::<Frontend>() / 4];
type SlotWords = [u32; size_of::<Slot>() / 4];

/// The maps of one node.
pub struct Pins {
    folder: PathBuf,
    frontends: HashMap<MapData, KeyWords, FrontendWords>,
    slots: Array<MapData, SlotWords>,
}

/// How many connections got an endpoint so far, and where.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Connected {
    /// When the first packet came by, at a device.
    pub packets: u64,
    /// When the socket connected.
    pub sockets: u64,
}

impl Pins {
    /// Opens the maps below a BPF file system; `None` while there are none.
    ///
    /// # Errors
    /// They are there, and cannot be opened.
    pub fn find(bpffs: &Path) -> anyhow::Result<Option<Self>> {
        let Some(folder) = folder(bpffs, "maps")? else { return Ok(None) };
        // They are pinned one after the other.
        if !folder.join("frontends").exists() || !folder.join("slots").exists() || !folder.join("stats").exists() {
            return Ok(None);
        }
        let open = |name: &str| MapData::from_pin(folder.join(name)).with_context(|| format!("map {name}"));
        let frontends = HashMap::try_from(Map::HashMap(open("frontends")?)).context("map frontends")?;
        let slots = Array::try_from(Map::Array(open("slots")?)).context("map slots")?;
        Ok(Some(Self { frontends, slots, folder }))
    }

    /// Whether a frontend, or an endpoint of one, has this address.
    pub fn has(&self, address: IpAddr) -> anyhow::Result<bool> {
        for row in self.frontends.iter() {
            let (key, frontend) = match row {
                Ok(row) => row,
                // Deleted while we walk.
                Err(MapError::KeyNotFound) => continue,
                Err(error) => return Err(error).context("reading frontends"),
            };
            if leading_address(&key) == address || self.endpoints(&frontend)?.contains(&address) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The endpoints of a TCP service; `None`: no such service.
    pub fn endpoints_of(&self, service: SocketAddr) -> anyhow::Result<Option<Vec<IpAddr>>> {
        match self.frontends.get(&key(service), 0) {
            Ok(frontend) => self.endpoints(&frontend).map(Some),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error).context("reading frontends"),
        }
    }

    /// What the programs have counted.
    pub fn connected(&self) -> anyhow::Result<Connected> {
        let stats = Map::PerCpuArray(MapData::from_pin(self.folder.join("stats")).context("map stats")?);
        let stats: PerCpuArray<MapData, u64> = stats.try_into().context("map stats")?;
        let sum = |counter: Counter| -> anyhow::Result<u64> { Ok(stats.get(&(counter as u32), 0)?.iter().sum()) };
        Ok(Connected { packets: sum(Counter::Connected)?, sockets: sum(Counter::SocketConnected)? })
    }

    fn endpoints(&self, frontend: &FrontendWords) -> anyhow::Result<Vec<IpAddr>> {
        const FIRST: usize = offset_of!(Frontend, cluster_first) / 4;
        const COUNT: usize = offset_of!(Frontend, cluster_count) / 4;
        let range = frontend[FIRST]..frontend[FIRST].saturating_add(frontend[COUNT]);
        range.map(|index| Ok(leading_address(&self.slots.get(&index, 0).context("reading slots")?))).collect()
    }
}

/// The folder of maps or programs of this layout.
pub fn folder(bpffs: &Path, what: &str) -> anyhow::Result<Option<PathBuf>> {
    let root = bpffs.join("kubeferry");
    if !root.exists() {
        return Ok(None);
    }
    let prefix = format!("{what}-v{LAYOUT}-");
    for entry in std::fs::read_dir(&root)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Keys and slots begin with an address.
fn leading_address<const N: usize>(words: &[u32; N]) -> IpAddr {
    const { assert!(offset_of!(FrontendKey, address) == 0 && offset_of!(Slot, address) == 0 && N > 4) };
    Address { words: [words[0], words[1], words[2], words[3]] }.into()
}

fn key(service: SocketAddr) -> KeyWords {
    const { assert!(offset_of!(FrontendKey, port) == 16 && offset_of!(FrontendKey, protocol) == 18) };
    let [a, b, c, d] = Address::from(service.ip()).words;
    let [high, low] = service.port().to_be_bytes();
    [a, b, c, d, u32::from_ne_bytes([high, low, TCP, FrontendKey::ADDRESS])]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_as_programs_write_them() {
        let words = key("10.96.0.50:80".parse().unwrap());
        assert_eq!(
            words.map(u32::to_ne_bytes).concat(),
            [&[0; 10][..], &[255, 255, 10, 96, 0, 50, 0, 80, 6, 0]].concat()
        );
        assert_eq!(leading_address(&words), "10.96.0.50".parse::<IpAddr>().unwrap());
    }
}
