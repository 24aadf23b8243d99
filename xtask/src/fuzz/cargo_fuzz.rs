//! cargo-fuzz: compiles the parsers with libFuzzer and every check of a debug build. It is installed by cargo into `target/`. With
//! AddressSanitizer it needs a nightly: sanitizers are no part of a stable Rust.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::cargo::{cargo, forget_ourselves, workspace};
use crate::{nightly, step};

/// The version that builds them.
const VERSION: &str = "0.13.2";

/// Where everything is built.
const FOLDER: &str = "target/fuzz";
/// The program that has all parsers.
const IN_ONE: &str = "in_one";

/// Where the programs are.
pub fn programs() -> PathBuf {
    built("release")
}

fn built(profile: &str) -> PathBuf {
    workspace().join(FOLDER).join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).join(profile)
}

/// Builds a program for each parser.
///
/// # Errors
/// cargo-fuzz or a nightly cannot be had, or something does not compile.
pub fn build() -> anyhow::Result<()> {
    let program = find_or_install()?;
    let mut build = nightly::command(&program, &["rust-std"])?;
    take_lock()?;
    step::start("building the parsers with libFuzzer: the first time takes a quarter of an hour");
    build.args(["fuzz", "build", "--strip-dead-code", "--target-dir", FOLDER]);
    run(build)
}

/// Builds one program with all parsers and tells where it is: by the Rust that is there, without AddressSanitizer, unoptimised.
///
/// # Errors
/// cargo-fuzz cannot be had, or something does not compile.
pub fn build_in_one() -> anyhow::Result<PathBuf> {
    let mut build = Command::new(find_or_install()?);
    forget_ourselves(&mut build);
    build.current_dir(workspace());
    take_lock()?;
    step::start("building the parsers with libFuzzer, in one program: some minutes the first time");
    build.args(["fuzz", "build", "--dev", "--sanitizer", "none", "--target-dir", FOLDER, IN_ONE]);
    run(build)?;
    Ok(built("debug").join(IN_ONE))
}

fn run(mut build: Command) -> anyhow::Result<()> {
    // cargo-fuzz asks for all of it, which would be gigabytes.
    build.env("RUSTFLAGS", "-Cdebuginfo=line-tables-only");
    // Each commit would have them built anew.
    build.env("KUBEFERRY_COMMIT", "fuzzed");
    step::run(&mut build)
}

fn find_or_install() -> anyhow::Result<PathBuf> {
    let root = workspace().join("target/cargo-fuzz");
    let program = root.join("bin/cargo-fuzz");
    if is_version(&program) {
        return Ok(program);
    }
    step::start(format!("installing cargo-fuzz {VERSION} into {}", root.display()));
    let mut install = cargo();
    install.args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--quiet", "--root"]).arg(&root);
    step::run(&mut install).context("cargo-fuzz cannot be installed (from crates.io)")?;
    Ok(program)
}

fn is_version(program: &Path) -> bool {
    step::output(Command::new(program).arg("--version"))
        .is_ok_and(|text| text.trim() == format!("cargo-fuzz {VERSION}"))
}

/// Other people's crates are attacked in the versions that are shipped: the workspace's lock file is theirs, too, beside
/// what only libFuzzer needs.
fn take_lock() -> anyhow::Result<()> {
    let [from, to] = ["Cargo.lock", "fuzz/Cargo.lock"].map(|name| workspace().join(name));
    let written = |path: &Path| path.metadata().and_then(|metadata| metadata.modified());
    let of_workspace = written(&from).with_context(|| from.display().to_string())?;
    if written(&to).is_ok_and(|time| time >= of_workspace) {
        return Ok(());
    }
    let text = std::fs::read(&from)?;
    std::fs::write(&to, text).with_context(|| to.display().to_string())
}
