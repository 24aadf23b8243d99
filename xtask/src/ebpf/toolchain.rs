//! Which compiler builds the BPF programs: what is on this machine, and the choice among it.

use std::path::Path;
use std::process::Command;

use anyhow::bail;

use super::linker;
use crate::{cargo, packages, step};

/// What the programs are compiled for: BPF, little endian.
pub const TARGET: &str = "bpfel-unknown-none";
/// The distribution's compiler; on the PATH, rustup's may hide it.
const DISTRIBUTION: &str = "/usr/bin/rustc";

/// Where a compiler comes from, which says how it gets at core for BPF.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A nightly of rustup, by its full name: it compiles core from its component rust-src.
    Nightly(String),
    /// The distribution's: a package of its own has core compiled.
    Distribution,
}

/// A compiler on this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compiler {
    pub origin: Origin,
    /// As it says it: `rustc 1.96.0 (ac68faa20 2026-05-25)`.
    pub version: String,
    /// The major version of its LLVM, where it says so.
    pub llvm: Option<u32>,
    /// Whether core for BPF is there, in the way of its origin.
    pub has_core: bool,
}

impl Compiler {
    /// For people: where it is and what.
    pub fn name(&self) -> String {
        match &self.origin {
            Origin::Nightly(name) => format!("rustup's {name} ({})", self.version),
            Origin::Distribution => format!("the distribution's {DISTRIBUTION} ({})", self.version),
        }
    }

    /// Why it serves.
    pub fn merit(&self) -> &'static str {
        match self.origin {
            Origin::Nightly(_) => "it has rust-src to compile core from",
            Origin::Distribution => "it has core for BPF compiled",
        }
    }

    /// Why it does not serve, if so.
    fn fault(&self) -> Option<String> {
        match (&self.origin, self.llvm) {
            (Origin::Nightly(name), _) if !self.has_core => {
                Some(format!("has no rust-src (`rustup component add rust-src --toolchain {name}`)"))
            }
            (Origin::Distribution, _) if !self.has_core => Some(format!("has no core for {TARGET}")),
            (_, Some(llvm)) if llvm > linker::LLVM => {
                Some(format!("writes bitcode of LLVM {llvm}, bpf-linker reads up to {}", linker::LLVM))
            }
            _ => None,
        }
    }

    /// A cargo of this compiler's kind that will build for BPF in the workspace's folder.
    pub fn cargo_build(&self) -> Command {
        let mut command = match &self.origin {
            Origin::Nightly(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo", "build", "-Z", "build-std=core"]).current_dir(cargo::workspace());
                command.env_remove("RUSTC");
                command
            }
            Origin::Distribution => {
                let mut command = cargo::cargo();
                // A target without std is for nightlies only, says cargo; this compiler does what they do when told so.
                command.arg("build").env("RUSTC", DISTRIBUTION).env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.args(["--target", TARGET]);
        command
    }
}

/// The first compiler that serves, in the order given, and what is wrong with those before it.
fn choose(compilers: &[Compiler]) -> (Option<&Compiler>, Vec<String>) {
    let mut faults = Vec::new();
    for compiler in compilers {
        match compiler.fault() {
            None => return (Some(compiler), faults),
            Some(fault) => faults.push(format!("{}: it {fault}", compiler.name())),
        }
    }
    (None, faults)
}

/// Finds a compiler and says which and why. Where none is there, the distribution's is installed if that can be done.
///
/// # Errors
/// There is none and it cannot be installed: the message has what to do by hand.
pub fn find() -> anyhow::Result<Compiler> {
    if let Some(compiler) = look() {
        return Ok(compiler);
    }
    step::note("no compiler for BPF is here: rustup's nightly with rust-src would serve, or Debian's rustc-web");
    packages::ensure(&[packages::BPF_COMPILER])?;
    match look() {
        Some(compiler) => Ok(compiler),
        None => bail!(
            "no compiler here serves for BPF; a nightly of rustup with rust-src and LLVM {} or older does, \
             and Debian's packages rustc-web and libstd-rust-web-dev-bpf do",
            linker::LLVM
        ),
    }
}

fn look() -> Option<Compiler> {
    let found: Vec<Compiler> = nightlies().into_iter().chain(distribution()).collect();
    let (chosen, faults) = choose(&found);
    for fault in faults {
        step::note(format!("not {fault}"));
    }
    let chosen = chosen?;
    step::note(format!("with {}: {}", chosen.name(), chosen.merit()));
    Some(chosen.clone())
}

/// The nightlies of rustup, if there is a rustup.
fn nightlies() -> Vec<Compiler> {
    let list = step::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    let nightly = |name: &str| {
        let ask = || {
            let mut command = Command::new("rustup");
            command.args(["run", name, "rustc"]);
            command
        };
        let core = |sysroot: &Path| sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
        inspect(ask, Origin::Nightly(name.to_owned()), core)
    };
    names.filter(|name| name.starts_with("nightly")).filter_map(nightly).collect()
}

/// The distribution's compiler, if there is one.
fn distribution() -> Option<Compiler> {
    let core = |sysroot: &Path| sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir();
    inspect(|| Command::new(DISTRIBUTION), Origin::Distribution, core)
}

/// Asks a compiler what it is; one that does not run is none.
fn inspect(ask: impl Fn() -> Command, origin: Origin, core: impl Fn(&Path) -> bool) -> Option<Compiler> {
    let (version, llvm) = read_version(&step::output(ask().arg("-vV")).ok()?);
    let sysroot = step::output(ask().args(["--print", "sysroot"])).ok()?;
    Some(Compiler { origin, version, llvm, has_core: core(Path::new(sysroot.trim())) })
}

/// The first line of `rustc -vV` and the major version of its LLVM.
fn read_version(text: &str) -> (String, Option<u32>) {
    let llvm = text.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = llvm.and_then(|version| version.split('.').next()?.trim().parse().ok());
    (text.lines().next().unwrap_or_default().to_owned(), major)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiler(origin: Origin, llvm: u32, has_core: bool) -> Compiler {
        Compiler { origin, version: "rustc 1.96.0".to_owned(), llvm: Some(llvm), has_core }
    }

    fn nightly(llvm: u32, has_core: bool) -> Compiler {
        compiler(Origin::Nightly("nightly-x86_64-unknown-linux-gnu".to_owned()), llvm, has_core)
    }

    #[test]
    fn the_first_that_serves_is_taken() {
        let ours = compiler(Origin::Distribution, 22, true);
        assert_eq!(choose(&[nightly(22, true), ours.clone()]), (Some(&nightly(22, true)), vec![]));
        let unknown = Compiler { llvm: None, ..nightly(0, true) };
        assert_eq!(choose(std::slice::from_ref(&unknown)).0, Some(&unknown));

        let found = [nightly(22, false), nightly(23, true), ours.clone()];
        let (chosen, faults) = choose(&found);
        assert_eq!(chosen, Some(&ours));
        assert!(faults[0].contains("rustup component add rust-src --toolchain nightly-x86_64"), "{faults:?}");
        assert!(faults[1].contains("LLVM 23"), "{faults:?}");
    }

    #[test]
    fn without_core_none_serves() {
        let found = [nightly(22, false), compiler(Origin::Distribution, 15, false)];
        let (chosen, faults) = choose(&found);
        assert_eq!((chosen, faults.len()), (None, 2));
        assert!(faults[1].starts_with("the distribution's /usr/bin/rustc"), "{faults:?}");
        assert_eq!(choose(&[]), (None, vec![]));
    }

    #[test]
    fn versions_are_read_as_rustc_prints_them() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(read_version(text), ("rustc 1.96.0 (ac68faa20 2026-05-25)".to_owned(), Some(22)));
        assert_eq!(read_version("rustc 1.96.0\n").1, None);
    }

    #[test]
    fn each_origin_has_its_way_to_core() {
        let line = |compiler: Compiler| {
            let command = compiler.cargo_build();
            let words = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>();
            let rustc = command.get_envs().find(|(name, _)| *name == "RUSTC").and_then(|(_, value)| value);
            (words.join(" "), rustc.map(|path| path.to_string_lossy().into_owned()))
        };
        let (words, rustc) = line(nightly(22, true));
        assert_eq!(
            (words.as_str(), rustc),
            ("run nightly-x86_64-unknown-linux-gnu cargo build -Z build-std=core --target bpfel-unknown-none", None)
        );
        let (words, rustc) = line(compiler(Origin::Distribution, 22, true));
        assert_eq!((words.as_str(), rustc.as_deref()), ("build --target bpfel-unknown-none", Some("/usr/bin/rustc")));
    }
}
