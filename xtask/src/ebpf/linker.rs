//! bpf-linker: makes one BPF object of the compiler's bitcode. It is installed by cargo where it is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::bail;

use crate::{cargo, packages, step};

/// The version that builds the programs.
const VERSION: &str = "0.13.0";
/// The LLVM that it is compiled with: compilers with a newer one write what it cannot read.
pub const LLVM: u32 = 22;
/// Where Debian's packages have that LLVM.
const LLVM_FOLDER: &str = "/usr/lib/llvm-22";

/// The linker's path; installs it, and the LLVM that it is compiled with, if it is not there.
pub fn find_or_install() -> anyhow::Result<PathBuf> {
    if let Some(path) = find() {
        return Ok(path);
    }
    let llvm = env::var_os("LLVM_PREFIX").map_or_else(|| PathBuf::from(LLVM_FOLDER), PathBuf::from);
    if !llvm.join("bin/llvm-config").is_file() {
        packages::ensure(&[packages::LLVM])?;
    }
    step::start(format!("installing bpf-linker {VERSION}: compiling it takes minutes, once on a machine"));
    let feature = format!("llvm-{LLVM}");
    let mut path = vec![llvm.join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    let mut install = cargo::cargo();
    install
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--no-default-features",
            "--features",
            &feature,
        ])
        .env("PATH", env::join_paths(path)?)
        .env("LLVM_PREFIX", &llvm)
        .env("LLVM_SYS_221_PREFIX", &llvm);
    step::run(&mut install)?;
    match find() {
        Some(path) => Ok(path),
        None => bail!("cargo installed bpf-linker {VERSION}, but it is neither in cargo's folder nor on the PATH"),
    }
}

/// The first bpf-linker of our version.
fn find() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    for folder in install_folders().into_iter().chain(env::split_paths(&path)) {
        let path = folder.join("bpf-linker");
        match version(&path) {
            Some(found) if found == VERSION => return Some(path),
            Some(other) => step::note(format!("{} is version {other}, not {VERSION}", path.display())),
            None => {}
        }
    }
    None
}

/// Where `cargo install` puts programs, unless its configuration says otherwise.
fn install_folders() -> Vec<PathBuf> {
    let root = env::var_os("CARGO_INSTALL_ROOT").map(PathBuf::from);
    [root, cargo::home()].into_iter().flatten().map(|folder| folder.join("bin")).collect()
}

/// `0.13.0` of `bpf-linker 0.13.0`; nothing where there is no such program, or it does not run.
fn version(path: &Path) -> Option<String> {
    let text = step::output(Command::new(path).arg("--version")).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}
