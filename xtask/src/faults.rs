//! `cargo xtask faults`: kills the proxy at random moments under traffic, for as long as one likes.

use crate::cargo::cargo;
use crate::{ebpf, packages, step};

/// Kill the proxy at random moments while every request of its clients is checked, on both datapaths, with seeds printed
#[derive(clap::Args)]
pub struct Args {
    /// How long each datapath is harmed, both at a time
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Repeat this run, whose seed was printed
    #[arg(long)]
    seed: Option<u64>,
}

/// Runs the random part of the tests `faults_process` for longer.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::FAULTS])?;
    packages::need_root("faults")?;
    ebpf::build()?;
    step::start(format!("killing the proxy at random moments for {} minutes", args.minutes));
    let mut command = cargo();
    command.args(["test", "--package", "kubeferry-tests", "--features", "kubeferry/ebpf", "--test", "faults_process"]);
    command.args(["--", "--nocapture", "killed_at_random_moments"]);
    command.env("KUBEFERRY_FAULTS_MINUTES", args.minutes.to_string());
    if let Some(seed) = args.seed {
        command.env("KUBEFERRY_FAULTS_SEED", seed.to_string());
    }
    step::run(&mut command)
}
