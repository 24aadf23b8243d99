//! The maps by which packets are followed (`kubeferry trace --live`). They belong to the programs beside which they are pinned, and
//! are not adopted by others.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, RingBuf};
use kubeferry_ebpf_common::live::{LiveFilter, LiveFollowed, LiveSpent};
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{FlowKey, FrontendKey};
use rustix::fs::{FlockOperation, flock};

use super::error::EbpfError;
use super::folder::list;
use super::table::Table;
use super::{bpf, own_folder};

const FILTER: &str = "live_filter";
const DESTINATIONS: &str = "live_destinations";
const SPENT: &str = "live_spent";
const FOLLOWED: &str = "live_followed";
const EVENTS: &str = "live_events";

/// Their names, in the object and as they are pinned.
pub const MAPS: [&str; 5] = [FILTER, DESTINATIONS, SPENT, FOLLOWED, EVENTS];

/// The maps of programs that run. One process has them at a time.
pub struct LiveMaps {
    folder: PathBuf,
    /// Held for as long as this lives; the kernel lets it go with the process, however that ends.
    _lock: File,
    filter: Table<u32, LiveFilter>,
    destinations: Table<FrontendKey, u32>,
    spent: Table<u32, LiveSpent>,
    followed: Table<FlowKey, LiveFollowed>,
}

impl std::fmt::Debug for LiveMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveMaps").field("folder", &self.folder).finish_non_exhaustive()
    }
}

/// What becomes of opening them.
#[derive(Debug)]
pub enum Opened {
    /// Here they are.
    Maps(LiveMaps),
    /// There are none: no programs of ours, or of a version that does not tell.
    None,
    /// Another process has them.
    Taken,
}

/// Where the maps of programs are pinned that are pinned in this folder.
pub fn folder(programs: &Path) -> PathBuf {
    programs.join("live")
}

impl LiveMaps {
    /// Opens those of the programs that are pinned below the root of a BPF file system.
    ///
    /// # Errors
    /// They cannot be opened, for want of a right for one.
    pub fn open(bpffs_root: &Path) -> Result<Opened, EbpfError> {
        let is_ours =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("programs-"));
        let folders = list(&bpffs_root.join("kubeferry"))?.into_iter().filter(is_ours).map(|path| folder(&path));
        // While programs are replaced there are two; those that were loaded last are attached next.
        let newest = folders
            .filter(|folder| folder.join(EVENTS).exists())
            .max_by_key(|folder| folder.metadata().and_then(|data| data.modified()).ok());
        let Some(folder) = newest else { return Ok(Opened::None) };
        // Whoever could change what is pinned there could have us believe anything.
        for path in [&bpffs_root.join("kubeferry"), &folder] {
            own_folder::make(path)?;
        }
        let lock = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&folder);
        let lock = lock.map_err(EbpfError::pin(&folder))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(Opened::Taken),
            result => result.map_err(|error| EbpfError::pin(&folder)(error.into()))?,
        }
        let maps = Self {
            filter: table(&folder, FILTER)?,
            destinations: table(&folder, DESTINATIONS)?,
            spent: table(&folder, SPENT)?,
            followed: table(&folder, FOLLOWED)?,
            folder,
            _lock: lock,
        };
        Ok(Opened::Maps(maps))
    }

    /// What the programs tell.
    ///
    /// # Errors
    /// The ring buffer cannot be opened.
    pub fn events(&self) -> Result<RingBuf<MapData>, EbpfError> {
        let failed = |error| EbpfError::Map { map: EVENTS, source: io::Error::other(error) };
        let map = MapData::from_pin(self.folder.join(EVENTS)).map_err(failed)?;
        RingBuf::try_from(Map::RingBuf(map)).map_err(failed)
    }

    /// Says what is followed from now on, and forgets what was; nothing is followed before [`LiveMaps::renew`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn begin(&self, destinations: &[(FrontendKey, u32)]) -> Result<(), EbpfError> {
        self.renew(&LiveFilter::OFF)?;
        let old = self.destinations.rows().map_err(EbpfError::map(DESTINATIONS))?;
        let old: Vec<_> = old.into_iter().map(|(key, _)| key).collect();
        self.destinations.delete(&old).map_err(EbpfError::map(DESTINATIONS))?;
        let old = self.followed.rows().map_err(EbpfError::map(FOLLOWED))?;
        let old: Vec<_> = old.into_iter().map(|(key, _)| key).collect();
        self.followed.delete(&old).map_err(EbpfError::map(FOLLOWED))?;
        self.destinations.put(destinations).map_err(EbpfError::map(DESTINATIONS))
    }

    /// Writes the filter.
    ///
    /// # Errors
    /// The kernel's.
    pub fn renew(&self, filter: &LiveFilter) -> Result<(), EbpfError> {
        self.filter.put(&[(0, *filter)]).map_err(EbpfError::map(FILTER))
    }

    /// How many events had no room, ever.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lost(&self) -> Result<u64, EbpfError> {
        Ok(self.spent.get(&0).map_err(EbpfError::map(SPENT))?.map_or(0, |spent| spent.lost))
    }

    /// Whether these are still the maps of the programs: others bring their own.
    pub fn are_in_force(&self) -> bool {
        let there = bpf::open_pin(&self.folder.join(FILTER)).and_then(|map| bpf::number(map.as_fd()));
        there.is_ok_and(|there| bpf::number(self.filter.fd()).is_ok_and(|ours| ours == there))
    }
}

fn table<K: Plain, V: Plain>(folder: &Path, map: &'static str) -> Result<Table<K, V>, EbpfError> {
    bpf::open_pin(&folder.join(map)).and_then(Table::new).map_err(EbpfError::map(map))
}
