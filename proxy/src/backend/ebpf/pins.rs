//! What is pinned in the BPF file system, so that it lives on without a process. We hold it open as well: who removes a pin
//! or the whole file system ends nothing while we run, and what is missing is pinned again.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::bpf;
use super::error::EbpfError;
use super::folder::remove;
use super::own_folder;

/// Pins, by path, with what they are of.
#[derive(Debug)]
pub struct Pins {
    /// Where the file system is mounted.
    root: PathBuf,
    held: BTreeMap<PathBuf, OwnedFd>,
    /// A folder that says that all of it is there.
    seal: Option<PathBuf>,
}

impl Pins {
    /// None yet, in the file system at `root`.
    pub fn new(root: PathBuf) -> Self {
        Self { root, held: BTreeMap::new(), seal: None }
    }

    /// What is held for a path.
    pub fn get(&self, path: &Path) -> Option<BorrowedFd<'_>> {
        self.held.get(path).map(AsFd::as_fd)
    }

    /// Has a folder be there that says that all of it is.
    pub fn seal(&mut self, folder: PathBuf) {
        self.seal = Some(folder);
    }

    /// Holds this and pins it there, in the place of what was. Where that fails [`Pins::keep`] will tell: what is held is
    /// in force all the same.
    pub fn hold(&mut self, path: PathBuf, object: OwnedFd) {
        if let Err(error) = pin(&path, object.as_fd()) {
            tracing::debug!(%error, "not pinned yet");
        }
        self.held.insert(path, object);
    }

    /// Lets go what is at a path, held or pinned.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn release(&mut self, path: &Path) -> Result<(), EbpfError> {
        self.held.remove(path);
        remove(path)
    }

    /// Pins what somebody has unpinned, and what lies where another thing is pinned now; how many that were.
    ///
    /// # Errors
    /// There is no BPF file system any more, or it takes no pin.
    pub fn keep(&self) -> Result<usize, EbpfError> {
        if self.held.is_empty() {
            return Ok(0);
        }
        if bpf::file_system(&self.root).ok() != Some(bpf::BPF_FS) {
            return Err(EbpfError::NoFileSystem(self.root.clone()));
        }
        let mut pinned = 0;
        for (path, object) in &self.held {
            pinned += usize::from(pin(path, object.as_fd())?);
        }
        if let Some(seal) = self.seal.as_ref().filter(|seal| !seal.exists()) {
            own_folder::make(seal)?;
            pinned += 1;
        }
        Ok(pinned)
    }
}

/// Pins an object unless it is; whether it was not.
fn pin(path: &Path, object: BorrowedFd<'_>) -> Result<bool, EbpfError> {
    let number = |object: BorrowedFd<'_>| bpf::number(object).map_err(EbpfError::pin(path));
    let ours = number(object)?;
    if bpf::open_pin(path).and_then(|there| bpf::number(there.as_fd())).is_ok_and(|there| there == ours) {
        return Ok(false);
    }
    remove(path)?;
    let folders: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
    for folder in folders.into_iter().rev() {
        own_folder::make(folder)?;
    }
    bpf::pin(object, path).map_err(EbpfError::pin(path)).map(|()| true)
}
