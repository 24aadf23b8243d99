//! `cargo xtask test`: formatting, lints, documentation and every test.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;

use crate::cargo::{cargo, workspace};
use crate::release::Arch;
use crate::suite::Suite;
use crate::{dist, ebpf, image, ipvs, kernels, licences, miri, packages, step};

/// Everything is tested with the eBPF datapath in it, and always built as a whole: each choice of packages has its own features of
/// what they share, for which all of it would be built again.
pub const FEATURES: [&str; 2] = ["--features", "kubeferry/ebpf"];

/// GiB that all of it takes in the target folder.
const ROOM: u64 = 14;

/// Check formatting, lints and documentation, build, and run every test
#[derive(clap::Args)]
pub struct Args {
    /// Only this part: `check` (formatting, lints, documentation, licences), `unit` (needs no root), `ipvs` (beside the
    /// kernel's IPVS, in a virtual machine), `kernels` (other kernels, in virtual machines), `verifier` (the programs alone before the
    /// oldest of these), `miri` (what the programs and we share, in Rust's interpreter), `release` (archives and image, and the static binary against an API server), or a file
    /// or folder of tests/tests
    part: Option<String>,
    /// Run tests that failed once more, alone, up to so many times. Those that pass then are told, and do not fail the command:
    /// on a machine that others use, too, a test with real traffic may meet a pause that is longer than it waits
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "pass_on")]
    retries: u32,
    /// Passed on to the test binaries, e.g. a filter or --nocapture; `kernels` is told by it which kernels and files, e.g.
    /// `6.12 machine`, and `release` that the archive of another machine is to be tried, too: `aarch64`, under qemu, which takes forty minutes
    /// more
    #[arg(last = true)]
    pass_on: Vec<String>,
}

/// Runs the parts in order; the first that fails ends the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let began = Instant::now();
    warn_of_a_full_disk(&workspace())?;
    let part = args.part.as_deref();
    if args.retries > 0 && matches!(part, Some("check" | "kernels" | "miri" | "verifier")) {
        bail!("--retries is not for this part");
    }
    let test = |which: &[&str], variables: &[(&str, &Path)]| {
        Suite { which, pass_on: &args.pass_on, variables, retries: args.retries }.run()
    };
    match part {
        None => {
            packages::ensure(packages::ALL_OF_TEST)?;
            packages::need_root("test")?;
            ebpf::build()?;
            check()?;
            let built = build()?;
            test(&["--workspace"], &built.known())?;
        }
        Some("check") => {
            packages::ensure(&[packages::BUILD])?;
            ebpf::build()?;
            check()?;
        }
        Some("unit") => {
            packages::ensure(&[packages::BUILD, packages::NETWORK])?;
            ebpf::build()?;
            test(&["--workspace", "--lib", "--bins"], &[])?;
        }
        Some("ipvs") => {
            packages::ensure(&[packages::BUILD])?;
            let recorded = ipvs::record()?;
            ebpf::build()?;
            // Beside the kernel's own assignments, not those in the repository.
            test(&["--workspace", "--test", "ipvs"], &[("KUBEFERRY_IPVS_RECORDING", &recorded)])?;
        }
        Some("release") => {
            packages::ensure(&[packages::BUILD, packages::NETWORK])?;
            packages::need_root("test release")?;
            let (others, pass_on) = machines(&args.pass_on);
            let binary = dist::check(&others)?;
            image::check(&binary)?;
            build()?;
            // With names resolved and TLS spoken by what is shipped.
            let which = ["--workspace", "--test", "apiserver"];
            let variables: &[(&str, &Path)] = &[("KUBEFERRY_BIN", &binary)];
            Suite { which: &which, pass_on: &pass_on, variables, retries: args.retries }.run()?;
        }
        Some("kernels") => kernels::run(&args.pass_on)?,
        Some("verifier") => kernels::verifier()?,
        Some("miri") => miri::run(&args.pass_on)?,
        Some(file) => {
            let known = test_files()?;
            if !known.iter().any(|name| name == file) {
                bail!(
                    "there is no part `{file}`; there are: check, unit, ipvs, kernels, miri, release, verifier, {}",
                    known.join(", ")
                );
            }
            packages::ensure(packages::ALL_OF_TEST)?;
            packages::need_root(&format!("test {file}"))?;
            ebpf::build()?;
            let built = build()?;
            test(&["--workspace", "--test", file], &built.known())?;
        }
    }
    step::start(format!("done in {}", step::duration(began.elapsed())));
    Ok(())
}

/// The machines that words name, whose archives take long and are tried only where they are asked for, and the other words.
fn machines(words: &[String]) -> (Vec<Arch>, Vec<String>) {
    let (named, others): (Vec<_>, Vec<_>) = words.iter().cloned().partition(|word| Arch::from_str(word, false).is_ok());
    (named.iter().filter_map(|word| Arch::from_str(word, false).ok()).collect(), others)
}

/// Says before an hour of building where it may end for want of room.
fn warn_of_a_full_disk(folder: &Path) -> anyhow::Result<()> {
    let disk =
        rustix::fs::statvfs(folder).with_context(|| format!("cannot ask for the room in {}", folder.display()))?;
    let left = disk.f_bavail * disk.f_frsize / (1 << 30);
    if left < ROOM {
        step::note(format!(
            "{left} GiB are left in {}: building everything from nothing takes up to {ROOM}, less with CARGO_INCREMENTAL=0",
            folder.display()
        ));
    }
    Ok(())
}

fn check() -> anyhow::Result<()> {
    step::start("checking the format");
    step::run(cargo().args(["fmt", "--all", "--", "--check"]))?;
    // Workspaces of their own. There is no clippy for the BPF programs: Debian's compiler comes without, and rustup's has no
    // core for BPF. Their build refuses warnings instead.
    for other in ["proxy-ebpf/Cargo.toml", "fuzz/Cargo.toml"] {
        step::run(cargo().args(["fmt", "--manifest-path", other, "--", "--check"]))?;
    }
    step::start("checking lints");
    let deny = ["--", "-D", "warnings"];
    step::run(cargo().args(["clippy", "--quiet", "--workspace", "--all-targets"]).args(FEATURES).args(deny))?;
    step::start("checking lints without the eBPF datapath");
    step::run(cargo().args(["clippy", "--quiet", "--package", "kubeferry", "--all-targets"]).args(deny))?;
    licences::check()?;
    step::start("checking documentation");
    let mut doc = cargo();
    doc.args(["doc", "--quiet", "--workspace", "--no-deps"]).args(FEATURES).env("RUSTDOCFLAGS", "-Dwarnings");
    step::run(&mut doc)
}

/// The binary under test, which is one for all tests.
struct Built(Option<PathBuf>);

impl Built {
    /// What tests have to know to take it, and not to build one of their own.
    fn known(&self) -> Vec<(&str, &Path)> {
        self.0.iter().map(|path| ("KUBEFERRY_BIN", path.as_path())).collect()
    }
}

/// The binary under test: the one that the environment names, or one that is built as the tests' is, with what takes pictures of
/// terminals. Nothing else is built: a new xtask would take the place of the one that runs, which starts itself again.
pub fn binary() -> anyhow::Result<PathBuf> {
    step::start("building");
    let programs = ["--bin", "kubeferry", "--bin", "terminal-picture"];
    step::run(cargo().args(["build", "--quiet", "--workspace"]).args(FEATURES).args(programs))?;
    match std::env::var_os("KUBEFERRY_BIN") {
        Some(named) => Ok(named.into()),
        None => built(),
    }
}

/// Builds everything; where the environment names a binary under test, that one is left to the tests.
fn build() -> anyhow::Result<Built> {
    step::start("building");
    step::run(cargo().args(["build", "--quiet", "--workspace"]).args(FEATURES))?;
    if std::env::var_os("KUBEFERRY_BIN").is_some() {
        return Ok(Built(None));
    }
    built().map(|binary| Built(Some(binary)))
}

/// The binary that cargo has built beside this one.
fn built() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("where is xtask?")?;
    let binary = own.parent().context("xtask is in no target folder")?.join("kubeferry");
    if !binary.is_file() {
        bail!("cargo built no {}", binary.display());
    }
    Ok(binary)
}

/// The names of the files and folders in tests/tests: each is a test binary, and a part of its own.
fn test_files() -> anyhow::Result<Vec<String>> {
    let folder = workspace().join("tests/tests");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if (path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file())
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_named_by_what_is_passed_on() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(machines(&words("")), (Vec::new(), Vec::new()));
        assert_eq!(machines(&words("aarch64 --nocapture pacing")), (vec![Arch::Aarch64], words("--nocapture pacing")));
        assert_eq!(machines(&words("aarch64_only AARCH64")), (Vec::new(), words("aarch64_only AARCH64")));
    }
}
