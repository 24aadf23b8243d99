//! Makes the BPF object part of the binary, where the feature `ebpf` is on (`cargo xtask build-ebpf` builds the object), and
//! tells it which commit it is of.

#[path = "build/commit.rs"]
mod commit;

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Names another object than the one xtask builds; relative to the workspace.
const OBJECT: &str = "KUBEFERRY_EBPF_OBJECT";
/// Names the commit where neither git nor an archive does, as in the build of an image.
const COMMIT: &str = "KUBEFERRY_COMMIT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    tell_commit();
    println!("cargo::rerun-if-env-changed={OBJECT}");
    if env::var_os("CARGO_FEATURE_EBPF").is_none() {
        return;
    }
    if let Err(error) = embed() {
        println!("cargo::error={error}");
    }
}

/// `version.rs` shows it. Debug builds have none: each commit would have them built anew.
fn tell_commit() {
    println!("cargo::rerun-if-env-changed={COMMIT}");
    println!("cargo::rerun-if-changed=commit.txt");
    let build = if env::var("PROFILE").is_ok_and(|profile| profile == "release") {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = commit::SOURCES.map(|name| workspace.join(name));
        for path in commit::watched(&workspace).iter().chain(&sources) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
        let named = env::var(COMMIT).ok().filter(|commit| !commit.is_empty());
        let archived = fs::read_to_string("commit.txt").unwrap_or_default();
        named.or_else(|| commit::find(&workspace, &archived)).unwrap_or_else(|| "unknown commit".to_owned())
    } else {
        "debug build".to_owned()
    };
    println!("cargo::rustc-env={COMMIT}={build}");
}

/// Copies the object to where `backend::ebpf::object` includes it from.
fn embed() -> Result<(), String> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo sets no {name}"));
    let workspace = folder("CARGO_MANIFEST_DIR")?.join("..");
    let named = env::var_os(OBJECT).filter(|path| !path.is_empty());
    let path = workspace.join(named.as_deref().unwrap_or("target/bpf/kubeferry.bpf.o".as_ref()));
    println!("cargo::rerun-if-changed={}", path.display());
    let object = fs::read(&path).map_err(|error| missing(&path, named.is_some(), &error))?;
    if !object.starts_with(b"\x7fELF") {
        return Err(format!("{} is no BPF object: it does not begin as ELF files do", path.display()));
    }
    let copy = folder("OUT_DIR")?.join("kubeferry.bpf.o");
    fs::write(&copy, object).map_err(|error| format!("cannot write {}: {error}", copy.display()))
}

fn missing(path: &Path, named: bool, error: &std::io::Error) -> String {
    let path = path.display();
    if named {
        format!("cannot read {path}, which {OBJECT} names: {error}")
    } else {
        format!("the feature `ebpf` needs the BPF object: run `cargo xtask build-ebpf` first ({path}: {error})")
    }
}
