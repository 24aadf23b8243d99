//! `cargo xtask COMMAND`: every developer and CI command, one module each. This file only dispatches.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod bench;
mod cargo;
mod datapath;
mod demo;
mod dependencies;
mod dist;
mod ebpf;
mod faults;
mod fuzz;
mod image;
mod interrupt;
mod ipvs;
mod kernels;
mod licences;
mod miri;
mod netns;
mod nightly;
mod outcome;
mod packages;
mod pins;
mod places;
mod process;
mod release;
mod soak;
mod step;
mod suite;
mod test;
mod vm;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Every developer and CI command of Kubeferry")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Test(test::Args),
    Demo(demo::Args),
    Page(demo::page::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Soak(soak::Args),
    BuildEbpf(ebpf::Args),
    Faults(faults::Args),
    Image(image::Args),
    Dist(dist::Args),
    Licences(licences::Args),
    #[command(hide = true)]
    Web(demo::web::Args),
    #[command(hide = true)]
    Send(demo::send::Args),
    #[command(hide = true)]
    Load(bench::load::Args),
    #[command(hide = true)]
    Arrivals(ipvs::arrivals::Args),
    #[command(hide = true)]
    Leftovers(ipvs::leftovers::Args),
    #[command(hide = true)]
    Verify(kernels::VerifyArgs),
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            step::failed(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    // What demo and benchmark start has its own way to end.
    if !matches!(command, Command::Web(_) | Command::Send(_) | Command::Load(_)) {
        interrupt::watch()?;
    }
    match command {
        Command::Test(args) => test::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Page(args) => demo::page::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Fuzz(args) => fuzz::run(args),
        Command::Soak(args) => soak::run(args),
        Command::BuildEbpf(args) => ebpf::run(args),
        Command::Faults(args) => faults::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Licences(args) => licences::run(&args),
        Command::Web(args) => demo::web::run(args),
        Command::Send(args) => demo::send::run(args),
        Command::Load(args) => bench::load::run(args),
        Command::Arrivals(args) => ipvs::arrivals::run(args),
        Command::Leftovers(args) => ipvs::leftovers::run(args),
        Command::Verify(args) => kernels::verify(args),
    }
}
