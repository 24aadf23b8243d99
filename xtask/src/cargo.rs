//! Where the workspace is and how its programs are built.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{ebpf, step};

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(PathBuf::new, Path::to_path_buf)
}

/// Where cargo keeps what it downloads and installs.
pub fn home() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).map(PathBuf::from);
    of("CARGO_HOME").or_else(|| Some(of("HOME")?.join(".cargo")))
}

/// The cargo that runs us, in the workspace's folder, and without what `cargo run` tells us about ourselves: build scripts
/// that look at these variables would run again whenever cargo is called by xtask and by hand in turn.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    forget_ourselves(&mut command);
    command
}

/// Takes from a command what `cargo run` tells us about ourselves.
pub fn forget_ourselves(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
}

/// Builds the binary `kubeferry`, with the eBPF datapath, and gives its path.
pub fn kubeferry(release: bool) -> anyhow::Result<PathBuf> {
    ebpf::build()?;
    step::start(if release { "building kubeferry (release)" } else { "building kubeferry" });
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "kubeferry", "--features", "ebpf"]);
    if release {
        build.arg("--release");
    }
    step::run(&mut build)?;
    // target/debug/xtask is what runs: the other profiles are its neighbours, wherever the target folder is.
    let own = std::env::current_exe().context("where is xtask?")?;
    let target = own.parent().and_then(Path::parent).context("xtask is in no target folder")?;
    let binary = target.join(if release { "release" } else { "debug" }).join("kubeferry");
    if !binary.is_file() {
        bail!("cargo built kubeferry, but not as {}", binary.display());
    }
    Ok(binary)
}
