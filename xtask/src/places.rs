//! What the eBPF datapath of a node needs beside a network namespace: a BPF file system and a cgroup of its own.
//!
//! The cgroup hierarchy is mounted anew: `ip netns exec` hides the one below /sys from what runs in a namespace.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::step;

/// How long the last process of a cgroup may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// How the folders that we mount at begin, below a run's home.
const BPFFS: &str = "bpf-";
const HIERARCHY: &str = "cgroup-";

/// The places of one node. Dropping them ends what is pinned and attached there; what runs in the cgroup has to end before.
#[derive(Debug)]
pub struct Places {
    bpffs: PathBuf,
    hierarchy: PathBuf,
    cgroup: PathBuf,
}

impl Places {
    /// Makes both for a node, mounted below `home`, a run's own folder.
    ///
    /// # Errors
    /// The kernel has no BPF file system or no cgroup v2, or the right to mount them is missing.
    pub fn create(home: &Path, node: &str) -> anyhow::Result<Self> {
        let hierarchy = home.join(format!("{HIERARCHY}{node}"));
        let cgroup = hierarchy.join(cgroup_name(home, node));
        let places = Self { bpffs: home.join(format!("{BPFFS}{node}")), hierarchy, cgroup };
        mount("bpf", &places.bpffs)?;
        mount("cgroup2", &places.hierarchy)?;
        fs::create_dir(&places.cgroup).with_context(|| format!("cgroup {}", places.cgroup.display()))?;
        Ok(places)
    }

    /// Where the BPF file system is mounted: for `--bpffs-root`.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// The cgroup's folder: for `--cgroup-root`.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Leaves both when we go.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.bpffs, &self.hierarchy, &self.cgroup) {
            step::note(format!("{error:#}"));
        }
    }
}

/// Removes the places of an earlier run, by its home.
///
/// # Errors
/// A process still runs in a cgroup, or something cannot be unmounted: then nothing below `home` may be deleted.
pub fn clean(home: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(home)? {
        if let Some(node) = entry?.file_name().to_string_lossy().strip_prefix(BPFFS) {
            let hierarchy = home.join(format!("{HIERARCHY}{node}"));
            remove(&home.join(format!("{BPFFS}{node}")), &hierarchy, &hierarchy.join(cgroup_name(home, node)))?;
        }
    }
    Ok(())
}

/// Moves the calling process, with all its threads, into a cgroup.
pub fn enter(cgroup: &Path) -> anyhow::Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, "0").with_context(|| file.display().to_string())
}

fn cgroup_name(home: &Path, node: &str) -> String {
    format!("{}-{node}", home.file_name().unwrap_or_default().to_string_lossy())
}

fn mount(kind: &str, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    step::output(Command::new("mount").args(["-t", kind, "none"]).arg(folder)).map(drop)
}

/// Removes what is there of them. The links that are pinned go first, and with them what is attached to the cgroup.
fn remove(bpffs: &Path, hierarchy: &Path, cgroup: &Path) -> anyhow::Result<()> {
    unmount(bpffs)?;
    remove_cgroup(cgroup)?;
    unmount(hierarchy)
}

fn unmount(folder: &Path) -> anyhow::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    if mounts.lines().filter_map(|line| line.split(' ').nth(1)).any(|mounted| Path::new(mounted) == folder) {
        // Lazily: a process that is still ending must not keep it.
        step::output(Command::new("umount").arg("--lazy").arg(folder))?;
    }
    Ok(())
}

fn remove_cgroup(folder: &Path) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && began.elapsed() < PATIENCE => {
                // Its last process is still ending.
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cgroup {} is still there", folder.display()));
            }
            _ => return Ok(()),
        }
    }
}
