//! Debian's packages that the image has files of: pinned by version and sum, fetched by apt, unpacked, never installed.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::cargo::workspace;
use crate::release::tree::sha256;
use crate::step;

/// A package: `NAME VERSION SHA256`, one a line of the file `packages.txt`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub sha256: String,
}

/// The files of packages, by path without a slash at the beginning, `lib` and `sbin` being those below `usr`.
#[derive(Default, Debug)]
pub struct Files {
    content: BTreeMap<String, Vec<u8>>,
    links: BTreeMap<String, String>,
}

/// Where the pins are.
pub fn pins() -> PathBuf {
    workspace().join("xtask/src/image/packages.txt")
}

/// Reads the pins.
pub fn pinned(text: &str) -> anyhow::Result<Vec<Package>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some(name), Some(version), Some(sha256), None) if sha256.len() == 64 => {
                    Ok(Package { name, version, sha256 })
                }
                _ => bail!("{line:?} is no NAME VERSION SHA256"),
            }
        })
        .collect()
}

/// Writes the pins anew, with the versions that apt would install now.
pub fn update() -> anyhow::Result<()> {
    step::run(Command::new("apt-get").args(["update", "-qq"]))?;
    let old = fs::read_to_string(pins())?;
    let mut new: String =
        old.lines().take_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    for package in pinned(&old)? {
        let text = step::output(Command::new("apt-cache").args(["show", "--no-all-versions", &package.name]))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.with_context(|| format!("apt knows no {name} of {}", package.name))
        };
        let line = format!("{} {} {}", package.name, field("Version")?, field("SHA256")?);
        if field("Version")? != package.version {
            step::note(format!("{}: {} becomes {}", package.name, package.version, field("Version")?));
        }
        new += &format!("{line}\n");
    }
    fs::write(pins(), new).context("packages.txt")
}

/// The file of a package, fetched if it is not there yet. Its sum is that of the pin.
pub fn fetch(package: &Package) -> anyhow::Result<PathBuf> {
    let folder = workspace().join("target/image/packages");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}.deb", package.sha256));
    if !path.is_file() {
        step::note(format!("fetching {} {}", package.name, package.version));
        let place = tempfile::Builder::new().prefix("new-").tempdir_in(&folder)?;
        let wanted = format!("{}={}", package.name, package.version);
        let download = || {
            let mut apt = Command::new("apt-get");
            apt.args(["download", "-qq", "-o", "APT::Sandbox::User=root", &wanted]).current_dir(&place);
            step::output(&mut apt)
        };
        if download().is_err() {
            // The lists may be old, or never have been there.
            step::run(Command::new("apt-get").args(["update", "-qq"]))?;
            download().with_context(|| {
                format!(
                    "Debian has no {wanted}: if there is a newer one, `cargo xtask image --update-packages` takes it"
                )
            })?;
        }
        let file = fs::read_dir(&place)?.flatten().map(|entry| entry.path()).next().context("apt-get left no file")?;
        fs::rename(file, &path)?;
    }
    let sum = sha256(&fs::read(&path)?);
    if sum != package.sha256 {
        fs::remove_file(&path)?;
        bail!("{} {} has the sum {sum}, and {} is pinned", package.name, package.version, package.sha256);
    }
    Ok(path)
}

impl Files {
    /// Adds all files of a package.
    pub fn unpack(&mut self, package: &Path) -> anyhow::Result<()> {
        let output = Command::new("dpkg-deb").arg("--fsys-tarfile").arg(package).output().context("dpkg-deb")?;
        if !output.status.success() {
            bail!("dpkg-deb cannot read {}: {}", package.display(), String::from_utf8_lossy(&output.stderr));
        }
        for entry in tar::Archive::new(output.stdout.as_slice()).entries()? {
            let mut entry = entry?;
            let path = below_usr(&entry.path()?.display().to_string());
            match entry.header().entry_type() {
                tar::EntryType::Symlink => {
                    let target = entry.link_name()?.context("a link without a target")?.display().to_string();
                    self.links.insert(path, target);
                }
                tar::EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    self.content.insert(path, content);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The content of a file, by way of links.
    pub fn get(&self, path: &str) -> Option<&[u8]> {
        let mut path = below_usr(path);
        for _ in 0..8 {
            let Some(target) = self.links.get(&path) else { break };
            let folder = Path::new(&path).parent().unwrap_or(Path::new(""));
            path = match target.strip_prefix('/') {
                Some(absolute) => below_usr(absolute),
                None => normal(&folder.join(target)),
            };
        }
        self.content.get(&path).map(Vec::as_slice)
    }

    /// The contents of all files below a folder, in the order of their paths.
    pub fn below(&self, folder: &str) -> impl Iterator<Item = &[u8]> {
        self.content.iter().filter(move |(path, _)| path.starts_with(folder)).map(|(_, content)| content.as_slice())
    }
}

/// Where Debian's merged `/usr` has a path of a package.
pub fn below_usr(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_start_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if ["bin", "sbin", "lib", "lib64"].contains(&first) { format!("usr/{path}") } else { path.to_owned() }
}

/// A path without `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components().map(|part| part.as_os_str().to_string_lossy().into_owned()) {
        match part.as_str() {
            ".." => drop(parts.pop()),
            "." => {}
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_lines_of_three_words() {
        let sum = "0".repeat(64);
        let pins = pinned(&format!("# why\n\nlibc6 2.36-9 {sum}\n")).unwrap();
        assert_eq!(pins, [Package { name: "libc6".into(), version: "2.36-9".into(), sha256: sum.clone() }]);
        pinned("libc6 2.36-9").unwrap_err();
        pinned("libc6 2.36-9 0123").unwrap_err();
        assert!(pinned(&fs::read_to_string(super::pins()).unwrap()).unwrap().len() > 5);
    }

    #[test]
    fn links_of_packages_are_followed() {
        let mut files = Files::default();
        files.content.insert("usr/lib/x/libc-2.36.so".into(), b"c".to_vec());
        files.links.insert("usr/lib/x/libc.so.6".into(), "libc-2.36.so".into());
        files.links.insert("usr/lib64/ld.so".into(), "/lib/x/libc.so.6".into());
        files.links.insert("usr/lib/y".into(), "../lib64/./ld.so".into());
        files.links.insert("usr/circle".into(), "circle".into());
        for path in ["/lib/x/libc.so.6", "lib64/ld.so", "./usr/lib/y"] {
            assert_eq!(files.get(path), Some(&b"c"[..]), "{path}");
        }
        assert_eq!(files.get("usr/circle"), None);
        assert_eq!(files.below("usr/lib/x/").collect::<Vec<_>>(), [b"c"]);
    }
}
