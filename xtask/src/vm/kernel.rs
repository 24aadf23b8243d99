//! Debian's kernels for virtual machines: fetched with apt, unpacked below target/vm, never installed.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::folder;
use crate::step;

/// A line of kernels, by the version's first two numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Series(&'static str);

impl Series {
    /// Debian 12's.
    pub const V6_1: Self = Self("6.1");
    /// Debian 13's, and of bookworm-security and -backports.
    pub const V6_12: Self = Self("6.12");

    /// `6.1`.
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// The image.
    pub image: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series that is unpacked already; without one, the newest that apt knows, which is fetched.
    ///
    /// # Errors
    /// Another machine than x86-64, no apt, or no such kernel in its sources.
    pub fn find_or_fetch(series: Series) -> anyhow::Result<Self> {
        if std::env::consts::ARCH != "x86_64" {
            bail!("virtual machines are made for x86_64 alone: the kernel has to run the programs of this machine");
        }
        fs::create_dir_all(folder()).with_context(|| folder().display().to_string())?;
        let here: Vec<String> =
            fs::read_dir(folder())?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        if let Some(package) = newest(series, here.iter().map(String::as_str)) {
            return Self::unpacked(&folder().join(package));
        }
        let package = match known(series)? {
            Some(package) => package,
            None => {
                step::start("asking the package sources for kernels");
                step::run(Command::new("apt-get").args(["update", "-qq"]))?;
                let sources = "bookworm has 6.1, its -security and -backports, and trixie, have 6.12";
                known(series)?.with_context(|| {
                    format!("apt knows no package linux-image-{}*-cloud-amd64: {sources}", series.name())
                })?
            }
        };
        step::start(format!("fetching {package}"));
        // Into a place of its own, which is given its name when it is whole.
        let place = tempfile::Builder::new().prefix("new-").tempdir_in(folder())?;
        step::run(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(&place))?;
        let file = fs::read_dir(&place)?.flatten().map(|entry| entry.path()).next();
        let file = file.with_context(|| format!("apt-get download {package} left no file"))?;
        let tree = place.path().join("tree");
        step::run(Command::new("dpkg").arg("-x").arg(&file).arg(&tree))?;
        let at = folder().join(&package);
        fs::rename(&tree, &at).with_context(|| at.display().to_string())?;
        Self::unpacked(&at)
    }

    /// The kernel of an unpacked package.
    fn unpacked(tree: &Path) -> anyhow::Result<Self> {
        // Debian 13 has /lib below /usr.
        let modules = [tree.join("lib/modules"), tree.join("usr/lib/modules")].into_iter().find(|path| path.is_dir());
        let modules = modules.with_context(|| format!("{} has no modules", tree.display()))?;
        let release = fs::read_dir(&modules)?.flatten().next().context("a package without modules")?.file_name();
        let release = release.to_string_lossy().into_owned();
        let image = tree.join(format!("boot/vmlinuz-{release}"));
        if !image.is_file() {
            bail!("{} is not there", image.display());
        }
        Ok(Self { image, modules: modules.join(&release), release })
    }
}

/// The newest package of a series that apt knows.
fn known(series: Series) -> anyhow::Result<Option<String>> {
    let names = step::output(Command::new("apt-cache").args(["pkgnames", &format!("linux-image-{}.", series.name())]))?;
    Ok(newest(series, names.lines()).map(str::to_owned))
}

/// The newest of a series among names of packages. `linux-image-6.1.0-56-cloud-amd64` is one, and
/// `linux-image-6.12.117+deb12-cloud-amd64`; those that end with `-unsigned` or `-dbg` are others' business.
fn newest<'a>(series: Series, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let version = |name: &'a str| {
        let version = name.strip_prefix("linux-image-")?.strip_suffix("-cloud-amd64")?;
        version.strip_prefix(series.name())?.strip_prefix('.')?;
        Some(version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u32>().ok()).collect())
    };
    let mut found: Vec<(Reverse<Vec<u32>>, &str)> =
        names.filter_map(|name| Some((Reverse(version(name)?), name))).collect();
    found.sort();
    found.first().map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_highest_number_and_not_the_last_name() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-dbg",
            "linux-image-6.1.0-57-cloud-amd64-unsigned",
            "linux-image-6.1.0-58-amd64",
            "linux-image-6.12.99+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12-cloud-amd64",
            "new-123",
        ];
        let of = |series| newest(series, names.into_iter());
        assert_eq!(of(Series::V6_1), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(of(Series::V6_12), Some("linux-image-6.12.117+deb12-cloud-amd64"));
        assert_eq!(newest(Series::V6_12, names[..5].iter().copied()), None);
    }
}
