//! Our folder of the BPF file system: what is pinned where.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kubeferry_ebpf_common::LAYOUT;

use super::error::EbpfError;
use super::kernel::{Shape, definitions};
use super::links::Links;
use super::object;
use crate::backend::nftables::chains::fnv1a;
use crate::settings::EbpfSettings;

/// Our folder of the BPF file system.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folder {
    pub(super) root: PathBuf,
    pub(super) maps: PathBuf,
    pub(super) programs: PathBuf,
}

impl Folder {
    /// The folder for these settings and maps of this shape; nothing is made.
    pub fn new(settings: &EbpfSettings, shape: &Shape) -> Self {
        let root = settings.bpffs_root.join("kubeferry");
        let maps = digest(shape);
        let level = settings.log_level as u8;
        let programs = fnv1a(format!("{maps:016x} {:016x} {level}", fnv1a(object::OBJECT)).as_bytes());
        // No dots: the file system has no such names.
        Self {
            maps: root.join(format!("maps-v{LAYOUT}-{maps:016x}")),
            programs: root.join(format!("programs-v{LAYOUT}-{programs:016x}")),
            root,
        }
    }

    /// Where our maps are pinned.
    pub fn maps(&self) -> &Path {
        &self.maps
    }

    /// Whether they are there.
    pub fn has_maps(&self) -> bool {
        self.maps.join("config").exists()
    }

    /// Where attachments are pinned.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Attachments that are pinned there; none is held yet.
    pub fn open_links(&self) -> Links {
        Links::new(self.file_system(), self.links())
    }

    /// Where the file system is mounted.
    pub(super) fn file_system(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    /// The whole.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folders of maps of other versions or sizes.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn other_maps(&self) -> Result<Vec<PathBuf>, EbpfError> {
        let is_other = |path: &PathBuf| {
            *path != self.maps && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("maps-"))
        };
        Ok(list(&self.root)?.into_iter().filter(is_other).collect())
    }

    /// Removes the maps and programs of other versions or sizes, which nothing is attached to any more.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn tidy(&self) -> Result<(), EbpfError> {
        for entry in list(&self.root)? {
            let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let ours = name.starts_with("maps-") || name.starts_with("programs-");
            if ours && entry != self.maps && entry != self.programs {
                remove(&entry)?;
            }
        }
        Ok(())
    }
}

/// What tells maps that can be adopted.
fn digest(shape: &Shape) -> u64 {
    fnv1a(format!("{LAYOUT} {:?}", definitions(shape)).as_bytes())
}

/// What is in a folder, in order; nothing if it is not there.
///
/// # Errors
/// It cannot be read.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, EbpfError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(EbpfError::pin(folder))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(EbpfError::pin(folder))?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Removes a pin, or a folder with all that is in it. Nothing there is no error.
///
/// # Errors
/// Something cannot be removed.
pub fn remove(path: &Path) -> Result<(), EbpfError> {
    if path.is_dir() {
        for entry in list(path)? {
            remove(&entry)?;
        }
        return fs::remove_dir(path).map_err(EbpfError::pin(path));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(EbpfError::pin(path)(error)),
        _ => Ok(()),
    }
}
