//! Compiling for the other machine: Debian's rustc and its cross compiler for C, with the standard library that Debian has
//! compiled there, unpacked and not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use super::{Arch, Compiler};
use crate::cargo::workspace;
use crate::{packages, step};

/// Debian's compiler, whose standard libraries for all machines are of one version.
const RUSTC: &str = "/usr/bin/rustc";
/// The package of the standard library, also that of rustc in Debian 12.
const LIBRARY: &str = "libstd-rust-web-dev";

/// A compiler for a machine other than this one.
///
/// # Errors
/// It can not be had here; the message says why.
pub fn compiler(arch: Arch) -> anyhow::Result<Compiler> {
    let name = arch.name();
    if (Arch::own()?, arch) != (Arch::X86_64, Arch::Aarch64) {
        bail!(
            "a binary for {name} is built on {name}: for other machines, only that of aarch64 on x86_64 is known here"
        );
    }
    packages::ensure(&[packages::CROSS_AARCH64])
        .with_context(|| format!("a binary for {name} needs Debian's compilers for it"))?;
    let version = step::output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "rustc-web"]))
        .with_context(|| format!("a binary for {name} needs Debian's rustc-web"))?;
    let sysroot = library(arch, &version).with_context(|| {
        format!("a binary for {name} needs its standard library, Debian's {LIBRARY}:arm64 {version}")
    })?;
    let gcc = format!("{name}-linux-gnu-gcc");
    let target = arch.target().replace('-', "_");
    let variables = [("RUSTC".to_owned(), RUSTC), (format!("CC_{target}"), gcc.as_str())];
    Ok(Compiler {
        name: format!("Debian's rustc-web {version} and {gcc}"),
        variables: variables.into_iter().map(|(name, value)| (name, PathBuf::from(value))).collect(),
        flags: vec![format!("--sysroot={}", sysroot.display()), format!("-Clinker={gcc}")],
    })
}

/// The folder that has the library at `lib/rustlib/TARGET`, unpacked now if it is not there yet.
fn library(arch: Arch, version: &str) -> anyhow::Result<PathBuf> {
    let folder = workspace().join("target/cross");
    let root = folder.join(format!("{}-{version}", arch.name()));
    let sysroot = root.join("usr");
    if sysroot.join("lib/rustlib").join(arch.target()).is_dir() {
        return Ok(sysroot);
    }
    step::start(format!("fetching Rust's library for {}", arch.name()));
    fs::create_dir_all(&folder)?;
    let place = tempfile::Builder::new().prefix("new-").tempdir_in(&folder)?;
    // apt's lists of another architecture, without making it one of this machine's.
    let lists = place.path().join("lists");
    let cache = place.path().join("cache");
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(cache.join("archives/partial"))?;
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        for option in ["APT::Architectures::=amd64", "APT::Architectures::=arm64"] {
            command.args(["-o", option]);
        }
        command.arg("-o").arg(format!("Dir::State::Lists={}", lists.display()));
        command.arg("-o").arg(format!("Dir::Cache={}", cache.display()));
        // The folder is ours alone.
        command.args(["-o", "APT::Sandbox::User=root", "-qq"]);
        command.args(args).current_dir(place.path());
        step::run(&mut command)
    };
    apt(&["update"])?;
    apt(&["download", &format!("{LIBRARY}:arm64={version}")])?;
    let package = only_package(place.path())?;
    let tree = place.path().join("tree");
    step::run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&tree))?;
    fs::rename(&tree, &root).with_context(|| root.display().to_string())?;
    Ok(sysroot)
}

/// The one `.deb` of a folder.
fn only_package(folder: &Path) -> anyhow::Result<PathBuf> {
    let found = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    found.into_iter().find(|path| path.extension().is_some_and(|it| it == "deb")).context("apt-get left no package")
}
