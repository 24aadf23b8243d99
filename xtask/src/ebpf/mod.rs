//! `cargo xtask build-ebpf`: the BPF object of `proxy-ebpf`, which proxy/build.rs makes part of the binary.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::cargo::workspace;
use crate::{cargo, packages, step};

mod linker;
mod object;
mod toolchain;
#[cfg(test)]
mod unsafety;
mod verify;

/// Build the BPF programs, for `cargo build --features ebpf`
#[derive(clap::Args)]
pub struct Args {
    /// Load every program into this kernel (root), print what its verifier counts, and write target/bpf/report.json
    #[arg(long)]
    report: bool,
}

/// Builds and checks the object.
pub fn run(args: Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD])?;
    if args.report {
        packages::need_root("build-ebpf --report")?;
    }
    let (object, checked) = build_and_check()?;
    if args.report {
        verify::report(&object, &checked, &folder().join("report.json"))?;
    }
    Ok(())
}

/// Builds the object for commands that need a binary with it.
pub fn build() -> anyhow::Result<()> {
    build_and_check().map(drop)
}

/// Where the object is once it is built.
pub fn object() -> PathBuf {
    folder().join("kubeferry.bpf.o")
}

/// Loads every program of an object into this kernel, as `--report` does.
pub fn report(object: &Path, to: &Path) -> anyhow::Result<()> {
    verify::report(object, &object::check(object)?, to)
}

/// Builds the object for binaries of a machine, by aya's name for it, and gives its path.
pub fn build_for(machine: &str) -> anyhow::Result<PathBuf> {
    build_and_check_for(machine).map(|(object, _)| object)
}

fn folder() -> PathBuf {
    workspace().join("target/bpf")
}

fn build_and_check() -> anyhow::Result<(PathBuf, object::Checked)> {
    build_and_check_for(std::env::consts::ARCH)
}

fn build_and_check_for(machine: &str) -> anyhow::Result<(PathBuf, object::Checked)> {
    let own = machine == std::env::consts::ARCH;
    // What another machine's binaries embed must not have ours built anew.
    let folder = if own { folder() } else { workspace().join(format!("target/bpf-{machine}")) };
    step::start(if own {
        "building the BPF programs".to_owned()
    } else {
        format!("building the BPF programs for {machine}")
    });
    let compiler = toolchain::find()?;
    let linker = linker::find_or_install()?;
    step::run(
        compiler
            .cargo_build()
            .args(["--quiet", "--release", "--manifest-path", "proxy-ebpf/Cargo.toml", "--target-dir"])
            .arg(&folder)
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(&linker, machine)?.join("\x1f")),
    )?;
    let built = folder.join(toolchain::TARGET).join("release/kubeferry-ebpf");
    let checked = object::check(&built)?;
    let kept = folder.join("kubeferry.bpf.o");
    if copy_if_changed(&built, &kept)? {
        step::note(format!("the object is {}", kept.display()));
    } else {
        step::note("the object is as it was");
    }
    Ok((kept, checked))
}

/// Flags for the compiler, which go through the environment: a configuration file of cargo would be everybody's.
fn rust_flags(linker: &Path, machine: &str) -> anyhow::Result<Vec<String>> {
    let mut flags = vec![
        // BTF is made of debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        // Registers, and with them the arguments of some helpers, are of the machine that the programs run on.
        format!("--cfg=bpf_target_arch=\"{}\"", bpf_target_arch(machine)?),
        "--check-cfg=cfg(bpf_target_arch,values(any()))".to_owned(),
        // Debian's compiler comes without clippy: warnings are what stands between us and a slip.
        "-Dwarnings".to_owned(),
    ];
    // The same object wherever workspace and crates are.
    flags.push(format!("--remap-path-prefix={}=.", workspace().display()));
    flags.extend(cargo::home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    Ok(flags)
}

/// aya's name for the machine's architecture.
fn bpf_target_arch(machine: &str) -> anyhow::Result<&str> {
    match machine {
        "x86_64" | "aarch64" => Ok(machine),
        other => bail!("the BPF programs are not built for {other}, only for x86_64 and aarch64"),
    }
}

/// Copies a file unless the copy has the same content already: what is built from it need not be built again then.
fn copy_if_changed(from: &Path, to: &Path) -> anyhow::Result<bool> {
    let content = std::fs::read(from).with_context(|| from.display().to_string())?;
    if std::fs::read(to).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    std::fs::write(to, content).with_context(|| to.display().to_string())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_written_only_when_something_changed() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, "one").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        assert!(!copy_if_changed(&from, &to).unwrap());
        std::fs::write(&from, "two").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        assert_eq!(std::fs::read(&to).unwrap(), b"two");
    }

    #[test]
    fn the_flags_name_linker_and_architecture() {
        bpf_target_arch("riscv64").unwrap_err();
        let flags = rust_flags(Path::new("/somewhere/bpf-linker"), "aarch64").unwrap();
        assert!(flags.contains(&"-Clinker=/somewhere/bpf-linker".to_owned()), "{flags:?}");
        assert!(flags.contains(&"--cfg=bpf_target_arch=\"aarch64\"".to_owned()), "{flags:?}");
    }
}
