//! The binary under test, started as an operator starts it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();

/// The path of `kubeferry`: what `KUBEFERRY_BIN` names, else the one that cargo builds (now, if it is not up to date) beside
/// the running test.
///
/// # Errors
/// `KUBEFERRY_BIN` names nothing, or the build fails.
pub fn path() -> Result<&'static Path> {
    let found = BINARY.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    found.as_deref().map_err(|error| anyhow::anyhow!("no binary to test: {error}"))
}

fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KUBEFERRY_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "KUBEFERRY_BIN names {}, which is no file", path.display());
        return path.canonicalize().context("KUBEFERRY_BIN");
    }
    // A test lies in TARGET/PROFILE/deps.
    let test = std::env::current_exe()?;
    let folder = test.parent().and_then(Path::parent).context("the test lies in no target folder")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--package", "kubeferry", "--bin", "kubeferry"]);
    if kubeferry::backend::HAS_EBPF {
        build.args(["--features", "ebpf"]);
    }
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo tells a test of its package would have ring, whose build script asks for it, built anew each time.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|told| name.starts_with(told)))
        {
            build.env_remove(name);
        }
    }
    if folder.ends_with("release") {
        build.arg("--release");
    }
    ensure!(build.status().context("cannot start cargo")?.success(), "cargo build of kubeferry failed");
    let path = folder.join("kubeferry");
    ensure!(path.is_file(), "cargo built no {}: set KUBEFERRY_BIN", path.display());
    Ok(path)
}
