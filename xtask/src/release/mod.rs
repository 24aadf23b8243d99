//! What `image` and `dist` have in common: the static binary, and packing without traces of who packs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::cargo::{cargo, home, workspace};
use crate::{ebpf, step};

pub mod cross;
pub mod tree;

/// A machine that binaries are built for.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// This machine's.
    pub fn own() -> anyhow::Result<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Self::X86_64),
            "aarch64" => Ok(Self::Aarch64),
            other => bail!("binaries are built for x86_64 and aarch64, not for {other}"),
        }
    }

    /// `x86_64`.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// rustc's name of it with glibc.
    pub fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// A compiler for a machine: where it is not rustup's own, what cargo and rustc have to be told.
#[derive(Clone, Default, Debug)]
pub struct Compiler {
    /// For people; empty for the one of this machine.
    pub name: String,
    pub variables: Vec<(String, PathBuf)>,
    pub flags: Vec<String>,
}

/// The version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds `kubeferry` with the eBPF datapath, without any shared library, and gives its path. Paths of this machine are not
/// in it. `release`: as it is shipped; else quickly, for a look at what surrounds it.
pub fn static_binary(arch: Arch, release: bool) -> anyhow::Result<PathBuf> {
    let compiler = if arch == Arch::own()? { Compiler::default() } else { cross::compiler(arch)? };
    let object = ebpf::build_for(arch.name())?;
    step::start(format!("building a static kubeferry for {}", arch.name()));
    if !compiler.name.is_empty() {
        step::note(format!("with {}", compiler.name));
    }
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    flags.push(format!("--remap-path-prefix={}=.", workspace().display()));
    flags.extend(home().map(|home| format!("--remap-path-prefix={}=cargo", home.display())));
    flags.extend(compiler.flags);
    let mut build = cargo();
    build
        .args(["build", "--quiet", "--package", "kubeferry", "--bin", "kubeferry", "--features", "ebpf"])
        .args(["--target", arch.target()])
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("KUBEFERRY_EBPF_OBJECT", &object)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .envs(compiler.variables);
    if release {
        build.arg("--release");
    }
    step::run(&mut build)?;
    let own = std::env::current_exe().context("where is xtask?")?;
    let target = own.parent().and_then(Path::parent).context("xtask is in no target folder")?;
    let binary = target.join(arch.target()).join(if release { "release" } else { "debug" }).join("kubeferry");
    check_static(&binary)?;
    Ok(binary)
}

/// A binary that names no loader needs no library of the machine that it runs on.
fn check_static(binary: &Path) -> anyhow::Result<()> {
    let content = std::fs::read(binary).with_context(|| binary.display().to_string())?;
    match super::image::libraries::needs(&content)? {
        needs if needs.is_static() => Ok(()),
        needs => bail!("{} is not static: it needs {needs:?}", binary.display()),
    }
}

/// The time that everything packed is of: `SOURCE_DATE_EPOCH`, if it is not empty, else that of the commit, else 1970.
pub fn time() -> anyhow::Result<u64> {
    if let Some(given) = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|given| !given.is_empty()) {
        return given.parse().with_context(|| format!("SOURCE_DATE_EPOCH is {given:?}, which is no number of seconds"));
    }
    let log = step::output(Command::new("git").args(["log", "-1", "--format=%ct"]).current_dir(workspace()));
    Ok(log.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0))
}

/// `1.2 MB`.
pub fn size(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
