//! A BPF file system for one test, with nothing of another's in it.

use std::path::Path;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::netns::tool;

/// A mounted BPF file system; with its end, what is pinned there and held by nobody else ends, too.
#[derive(Debug)]
pub struct Bpffs {
    folder: TempDir,
}

impl Bpffs {
    /// Mounts one at a folder of its own.
    ///
    /// # Errors
    /// The kernel has none, or the right to mount (CAP_SYS_ADMIN) is missing.
    pub fn mount() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("kubeferry-test-bpffs-").tempdir()?;
        tool("mount", &["-t", "bpf", "bpf", &folder.path().display().to_string()], "")
            .context("cannot mount a bpffs")?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        // Lazily: a process of the test that is still ending must not keep it.
        if let Err(error) = tool("umount", &["--lazy", &self.folder.path().display().to_string()], "") {
            eprintln!("{error:#}");
        }
    }
}
