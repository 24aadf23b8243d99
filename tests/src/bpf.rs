//! Places for the eBPF datapath of one test: a BPF file system and a cgroup of its own.

mod kernel;
pub mod pinned;
pub mod sockets;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::bpffs::Bpffs;
use crate::client::until;
use anyhow::{Context, Result, ensure};

/// Flags for maps that are small enough for many tests at a time, in which connections do not last.
pub const SMALL_MAPS: [&str; 2] = ["--map-sizes", "flows=20000,affinity=1000,sockets=1000,slots=16384"];

/// The same with room for the connections of many clients: one that is open and silent would be the first to be thrown out.
const ROOM: [&str; 2] = ["--map-sizes", "flows=200000,affinity=1000,sockets=1000,slots=16384"];

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A BPF file system and a cgroup; both go with the value, and with them whatever is pinned and attached there.
#[derive(Debug)]
pub struct Places {
    // Before the cgroup: what is attached there goes with its pins.
    bpffs: Bpffs,
    cgroup: PathBuf,
}

impl Places {
    /// Mounts the one and makes the other. Needs root.
    ///
    /// # Errors
    /// The binary under test has no eBPF datapath, the right is missing, or no cgroup v2 hierarchy is mounted.
    pub fn new() -> Result<Self> {
        ensure!(
            kubeferry::backend::HAS_EBPF,
            "these tests need the eBPF datapath: `cargo xtask test`, or cargo test --features kubeferry/ebpf"
        );
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let hierarchy = lines.find(|fields| fields.get(2) == Some(&"cgroup2")).context("no cgroup v2 is mounted")?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let cgroup = Path::new(hierarchy[1]).join(format!("kubeferry-{}-{number}", std::process::id()));
        let places = Self { bpffs: Bpffs::mount()?, cgroup };
        fs::create_dir(&places.cgroup).context("cannot make a cgroup")?;
        Ok(places)
    }

    /// Where the file system is mounted.
    pub fn bpffs(&self) -> &Path {
        self.bpffs.path()
    }

    /// The cgroup's folder.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Has a `kubeferry` command use them, with maps that are small enough for many tests at a time.
    pub fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.apply_with_all_room(command).args(ROOM)
    }

    /// The same with maps as large as they are where nobody says anything.
    pub fn apply_with_all_room<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.args(["--backend", "ebpf", "--bpffs-root"]).arg(self.bpffs()).arg("--cgroup-root").arg(&self.cgroup)
    }

    /// What is pinned, as paths in our folder; empty where there is none.
    ///
    /// # Errors
    /// The file system cannot be read.
    pub fn pins(&self) -> Result<Vec<String>> {
        let root = self.bpffs().join("kubeferry");
        let (mut pins, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop().filter(|folder| folder.exists()) {
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                match path.is_dir() {
                    true => folders.push(path),
                    false => pins.push(path.strip_prefix(&root)?.display().to_string()),
                }
            }
        }
        pins.sort();
        Ok(pins)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // Attachments do not keep a cgroup, processes that are still ending do for a moment. What is left behind after that
        // is left behind: the test's own outcome matters more.
        let removed = || match fs::remove_dir(&self.cgroup) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => None,
            _ => Some(()),
        };
        if let Err(error) = until("a cgroup to be empty", removed) {
            eprintln!("{error:#}");
        }
    }
}
