//! `cargo xtask soak`: the datapaths under constant load and constant change, for as long as one likes. The run itself is in
//! `tests/src/soak`, a program of its own for each datapath.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};

use crate::{cargo, ebpf, interrupt, packages, step};

/// Change everything under load, with every request checked, and fail unless all is as before at the end
#[derive(clap::Args)]
pub struct Args {
    /// How long everything changes
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    minutes: f64,
    /// Which datapath; both run at the same time
    #[arg(long, value_enum, default_value = "both")]
    backend: Backends,
    /// The changes are those of this number; a new one each time, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Write all samples into this folder, a file for each datapath
    #[arg(long, value_name = "DIR")]
    json: Option<PathBuf>,
    /// Build for release: without what a debug build checks
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Backends {
    Nftables,
    Ebpf,
    Both,
}

impl Backends {
    const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Nftables => &["nftables"],
            Self::Ebpf => &["ebpf"],
            Self::Both => &["nftables", "ebpf"],
        }
    }
}

/// Runs it on each datapath.
///
/// # Errors
/// A request failed, or something is more at the end than at the beginning.
pub fn run(args: Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::NETWORK])?;
    packages::need_root("soak")?;
    if !(args.minutes.is_finite() && args.minutes > 0.0) {
        bail!("--minutes is a number above 0, not {}", args.minutes);
    }
    let built = build(args.release)?;
    let program = built.join("soak");
    if let Some(folder) = &args.json {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let seed = args.seed.unwrap_or(now);
    step::start(format!("{:.1} minutes of changes under load, seed {seed}", args.minutes));
    let mut running = Vec::new();
    for backend in args.backend.names() {
        let mut command = Command::new(&program);
        command.args(["--backend", backend, "--seconds", &format!("{:.0}", (args.minutes * 60.0).max(1.0))]);
        command.args(["--seed", &seed.to_string()]).env("KUBEFERRY_BIN", built.join("kubeferry")).stdin(Stdio::null());
        if let Some(folder) = &args.json {
            command.arg("--json").arg(folder.join(format!("{backend}.json")));
        }
        let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        running.push((*backend, child));
    }
    let failed = ended(running)?;
    if !failed.is_empty() {
        bail!("not level: {}; `--seed {seed}` makes the same changes", failed.join(" and "));
    }
    step::start("every request was answered, and everything is as it was");
    Ok(())
}

/// Waits for all; who failed. Each is told to clean up where a stop is asked for.
fn ended(running: Vec<(&'static str, Child)>) -> anyhow::Result<Vec<&'static str>> {
    let waiting: Vec<_> = running
        .into_iter()
        .map(|(backend, mut child)| (backend, std::thread::spawn(move || interrupt::wait(&mut child))))
        .collect();
    let mut failed = Vec::new();
    for (backend, thread) in waiting {
        let Ok(status) = thread.join() else { bail!("cannot wait for {backend}") };
        if !status?.success() {
            failed.push(backend);
        }
    }
    Ok(failed)
}

/// Builds `kubeferry` and the program, and gives the folder that they are in.
fn build(release: bool) -> anyhow::Result<PathBuf> {
    ebpf::build()?;
    step::start("building kubeferry and the soak");
    let mut build = cargo::cargo();
    // Of the whole workspace, as the tests: each choice of packages has its own features of what they share.
    build.args([
        "build",
        "--quiet",
        "--workspace",
        "--features",
        "kubeferry/ebpf",
        "--bin",
        "kubeferry",
        "--bin",
        "soak",
    ]);
    if release {
        build.arg("--release");
    }
    step::run(&mut build)?;
    let own = std::env::current_exe().context("where is xtask?")?;
    let target = own.parent().and_then(Path::parent).context("xtask is in no target folder")?;
    Ok(target.join(if release { "release" } else { "debug" }))
}
