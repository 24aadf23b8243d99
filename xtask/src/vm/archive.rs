//! The file system that a virtual machine starts with: an archive of cpio's format "newc", which the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst). Written here, so that no file has to be made and owned by root.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// What is at a path.
#[derive(Debug)]
enum Entry {
    Folder,
    /// A symbolic link and its target.
    Link(PathBuf),
    /// A file of this machine, with its content as it is when the archive is written.
    Copy {
        from: PathBuf,
        mode: u32,
    },
    Text {
        text: String,
        mode: u32,
    },
}

const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const FILE: u32 = 0o100_000;

/// Files by their paths, each with the folders that it is in.
#[derive(Debug, Default)]
pub struct Archive {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Archive {
    /// Adds an empty folder.
    pub fn folder(&mut self, at: impl AsRef<Path>) {
        self.add(at.as_ref(), Entry::Folder);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, at: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.add(at.as_ref(), Entry::Link(target.into()));
    }

    /// Adds a copy of a file of this machine; of a link, what it leads to.
    pub fn copy(&mut self, at: impl AsRef<Path>, from: impl Into<PathBuf>, executable: bool) {
        let mode = FILE | if executable { 0o755 } else { 0o644 };
        self.add(at.as_ref(), Entry::Copy { from: from.into(), mode });
    }

    /// Adds a file with this content.
    pub fn text(&mut self, at: impl AsRef<Path>, text: impl Into<String>, executable: bool) {
        let mode = FILE | if executable { 0o755 } else { 0o644 };
        self.add(at.as_ref(), Entry::Text { text: text.into(), mode });
    }

    /// Adds copies of a folder's files and of those in the folders below.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn copy_tree(&mut self, at: &Path, from: &Path) -> anyhow::Result<()> {
        for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
            let path = entry?.path();
            let at = at.join(path.file_name().unwrap_or_default());
            if path.is_dir() {
                self.copy_tree(&at, &path)?;
            } else {
                self.copy(at, path, false);
            }
        }
        Ok(())
    }

    fn add(&mut self, at: &Path, entry: Entry) {
        let at = relative(at);
        for parent in at.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            self.entries.entry(parent.to_owned()).or_insert(Entry::Folder);
        }
        self.entries.insert(at.to_owned(), entry);
    }

    /// Writes all of it.
    ///
    /// # Errors
    /// A file cannot be read or is too large for the format (4 GiB), or the output cannot be written.
    pub fn write(&self, out: &mut impl Write) -> anyhow::Result<()> {
        // Folders come before what is in them: that is their order.
        for (number, (path, entry)) in self.entries.iter().enumerate() {
            let (mode, content) = match entry {
                Entry::Folder => (FOLDER, Vec::new()),
                Entry::Link(target) => (LINK, target.as_os_str().as_encoded_bytes().to_vec()),
                Entry::Text { text, mode } => (*mode, text.clone().into_bytes()),
                Entry::Copy { from, mode } => (*mode, fs::read(from).with_context(|| from.display().to_string())?),
            };
            // Inode 0 is left to the end: the kernel takes two files of one inode for one.
            member(out, number + 1, mode, path.as_os_str().as_encoded_bytes(), &content)?;
        }
        member(out, 0, 0, b"TRAILER!!!", &[])
    }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

fn member(out: &mut impl Write, inode: usize, mode: u32, name: &[u8], content: &[u8]) -> anyhow::Result<()> {
    let Ok(size) = u32::try_from(content.len()) else {
        bail!("{} has {} bytes, too many for an archive", String::from_utf8_lossy(name), content.len());
    };
    let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
    let name_size = u32::try_from(name.len() + 1)?;
    // Inode, mode, user, group, links, time, size, device (2), device that a node stands for (2), size of the name, sum.
    let fields = [u32::try_from(inode)?, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut header = String::from("070701");
    for field in fields {
        header += &format!("{field:08x}");
    }
    out.write_all(header.as_bytes())?;
    out.write_all(name)?;
    out.write_all(&[0])?;
    pad(out, header.len() + name.len() + 1)?;
    out.write_all(content)?;
    pad(out, content.len())
}

/// Zeros up to the next multiple of four.
fn pad(out: &mut impl Write, written: usize) -> anyhow::Result<()> {
    Ok(out.write_all(&[0; 3][..written.next_multiple_of(4) - written])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_folders_first_and_everything_at_multiples_of_four() {
        let mut archive = Archive::default();
        archive.text("/etc/motd", "hello", false);
        archive.link("/bin/sh", "busybox");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let places: Vec<_> = ["bin\0", "bin/sh\0", "etc\0", "etc/motd\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name).unwrap())
            .collect();
        assert!(places.is_sorted(), "{places:?}");
        assert!(places.iter().all(|at| at % 4 == 110 % 4), "{places:?}");
        let motd = places[3] - 110;
        assert_eq!(&text[motd..motd + 6], "070701");
        // The size stands in the seventh field, the content behind the padded name.
        assert_eq!(&text[motd + 6 + 6 * 8..motd + 6 + 7 * 8], "00000005");
        assert_eq!(&text[(motd + 110 + 9).next_multiple_of(4)..][..5], "hello");
    }
}
