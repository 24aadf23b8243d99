//! A nightly Rust, for what stable Rust has not. It lies in `target/rustup`, where no other command looks: `build-ebpf` would
//! compile the BPF programs with any nightly that has rust-src.

use std::ffi::OsStr;
use std::process::Command;

use anyhow::Context as _;

use crate::cargo::{forget_ourselves, workspace};
use crate::step;

/// The nightly of this day: a later one is another Rust, with lints and faults of its own.
const TOOLCHAIN: &str = "nightly-2026-05-20";

/// A program that calls its cargo and its compiler, or one of these by name, in the workspace's folder, with these components;
/// fetched where one of them is missing.
///
/// # Errors
/// There is no rustup, or what is missing cannot be fetched.
pub fn command(program: impl AsRef<OsStr>, components: &[&str]) -> anyhow::Result<Command> {
    let home = workspace().join("target/rustup");
    let rustup = || {
        let mut command = Command::new("rustup");
        command.env("RUSTUP_HOME", &home).current_dir(workspace());
        command
    };
    step::output(rustup().arg("--version")).with_context(|| format!("{TOOLCHAIN} is fetched by rustup (rustup.rs)"))?;
    let installed = step::output(rustup().args(["component", "list", "--installed", "--toolchain", TOOLCHAIN]));
    let has = |name: &&str| installed.as_ref().is_ok_and(|list| list.lines().any(|line| line.starts_with(*name)));
    if !components.iter().all(has) {
        step::start(format!("fetching {TOOLCHAIN} with {} into {}", components.join(", "), home.display()));
        let mut install = rustup();
        install.args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal", "--no-self-update"]);
        install.args(components.iter().flat_map(|name| ["--component", name]));
        step::run(&mut install).with_context(|| {
            format!("{TOOLCHAIN} cannot be fetched (from static.rust-lang.org, or where RUSTUP_DIST_SERVER says)")
        })?;
    }
    let mut command = rustup();
    // What the cargo that runs us has told us is not for this one.
    forget_ourselves(&mut command);
    command.env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTDOC");
    command.args(["run", TOOLCHAIN]).arg(program);
    Ok(command)
}
