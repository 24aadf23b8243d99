//! `cargo xtask fuzz differential`: random clusters and histories of changes, on which the model, both datapaths and real
//! packets have to agree. What happens there is in `tests/README.md`; this builds its program and runs it.

use std::process::Command;

use anyhow::Context as _;

use crate::cargo::{cargo, kubeferry};
use crate::{packages, step};

/// Random clusters: model, nftables, eBPF and packets have to agree after every change
#[derive(clap::Args)]
pub struct Args {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// The first cluster's; the others follow one by one. Without it, one by the clock
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Passed on to the program: see `cargo xtask fuzz differential -- --help`
    #[arg(last = true)]
    pass_on: Vec<String>,
}

/// Fails if there was a disagreement.
pub fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::NETWORK])?;
    packages::need_root("fuzz differential")?;
    let binary = kubeferry(false)?;
    step::start("building the program that makes up clusters");
    let build = ["build", "--quiet", "--package", "kubeferry-tests", "--bins", "--features", "kubeferry/ebpf"];
    step::run(cargo().args(build))?;
    let program = binary.parent().map(|folder| folder.join("differential")).filter(|program| program.is_file());
    let mut command = Command::new(program.context("cargo built no program `differential`")?);
    command.env("KUBEFERRY_BIN", &binary).args(["--minutes", &args.minutes.to_string()]);
    if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    }
    command.args(&args.pass_on).current_dir(crate::cargo::workspace());
    step::start("random clusters");
    step::run(&mut command)
}
