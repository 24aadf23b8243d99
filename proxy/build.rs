//! Makes the BPF object part of the binary, where the feature `ebpf` is on. `cargo xtask build-ebpf` builds the object.

use std::path::{Path, PathBuf};
use std::{env, fs};

/// Names another object than the one xtask builds; relative to the workspace.
const OBJECT: &str = "KUBEFERRY_EBPF_OBJECT";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OBJECT}");
    if env::var_os("CARGO_FEATURE_EBPF").is_none() {
        return;
    }
    if let Err(error) = embed() {
        println!("cargo::error={error}");
    }
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
