//! Files that are to be packed: the same tree gives the same bytes, whoever packs it, wherever and whenever.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use flate2::{Compression, GzBuilder};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

/// What lies at a path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    Folder,
    File {
        content: Vec<u8>,
        executable: bool,
    },
    /// A symbolic link to this path.
    Link(String),
}

/// Entries by path, without a slash at the beginning. Folders above a file are there by themselves.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Adds an entry, and the folders above it.
    ///
    /// # Panics
    /// Never: what was at the path before is replaced.
    pub fn add(&mut self, path: &str, entry: Entry) {
        let mut above = Path::new(path);
        while let Some(parent) = above.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.0.entry(parent.display().to_string()).or_insert(Entry::Folder);
            above = parent;
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { content: content.into(), executable: false });
    }

    /// Adds a program.
    pub fn program(&mut self, path: &str, content: impl Into<Vec<u8>>) {
        self.add(path, Entry::File { content: content.into(), executable: true });
    }

    /// Adds everything of a folder of the disk below a path; links and other oddities are refused.
    pub fn copy(&mut self, path: &str, from: &Path) -> anyhow::Result<()> {
        for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
            let entry = entry?;
            let below = format!("{path}/{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.copy(&below, &entry.path())?;
            } else if kind.is_file() {
                self.file(&below, std::fs::read(entry.path())?);
            } else {
                bail!("{} is neither file nor folder", entry.path().display());
            }
        }
        Ok(())
    }

    /// A tar archive, everything of root and of one time, in seconds since 1970.
    pub fn tar(&self, time: u64) -> anyhow::Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.0 {
            let mut header = Header::new_gnu();
            header.set_mtime(time);
            header.set_uid(0);
            header.set_gid(0);
            let mut content: &[u8] = &[];
            let (kind, mode) = match entry {
                Entry::Folder => (EntryType::Directory, 0o755),
                Entry::Link(_) => (EntryType::Symlink, 0o777),
                Entry::File { content: bytes, executable } => {
                    content = bytes;
                    (EntryType::Regular, if *executable { 0o755 } else { 0o644 })
                }
            };
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_size(content.len() as u64);
            match entry {
                Entry::Link(target) => tar.append_link(&mut header, path, target),
                Entry::Folder => tar.append_data(&mut header, format!("{path}/"), content),
                Entry::File { .. } => tar.append_data(&mut header, path, content),
            }
            .with_context(|| path.clone())?;
        }
        Ok(tar.into_inner()?)
    }
}

/// Compresses, without a name and a time in the header.
pub fn gzip(content: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    gzip.write_all(content)?;
    Ok(gzip.finish()?)
}

/// SHA-256 in hexadecimal digits.
pub fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("b")).unwrap();
        std::fs::write(folder.path().join("b/two"), "2").unwrap();
        let mut copied = Tree::default();
        copied.program("a/one", "1");
        copied.copy("a", folder.path()).unwrap();
        let mut written = Tree::default();
        written.file("a/b/two", "2");
        written.add("a/b", Entry::Folder);
        written.program("a/one", "1");
        assert_eq!(copied, written);
        let pack = |tree: &Tree, time| gzip(&tree.tar(time).unwrap()).unwrap();
        assert_eq!(pack(&copied, 7), pack(&written, 7));
        assert_ne!(pack(&copied, 7), pack(&written, 8));
        written.file("a/one", "1");
        assert_ne!(pack(&copied, 7), pack(&written, 7), "it is no program any more");
    }

    #[test]
    fn archives_can_be_unpacked() {
        let mut tree = Tree::default();
        let long = "folder/".repeat(20) + "file";
        tree.program(&long, "x");
        tree.add("lib", Entry::Link("usr/lib".into()));
        let folder = tempfile::tempdir().unwrap();
        let packed = tree.tar(0).unwrap();
        tar::Archive::new(packed.as_slice()).unpack(folder.path()).unwrap();
        assert_eq!(std::fs::read(folder.path().join(long)).unwrap(), b"x");
        assert_eq!(std::fs::read_link(folder.path().join("lib")).unwrap(), Path::new("usr/lib"));
    }

    #[test]
    fn sums_are_as_sha256sum_prints_them() {
        assert_eq!(sha256(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
