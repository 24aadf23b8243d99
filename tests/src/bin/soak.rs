//! `cargo xtask soak` runs this program once for each datapath; it runs itself for the clients.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use kubeferry_tests::soak::{self, Backend, Plan, clients};
use signal_hook::consts::{SIGINT, SIGTERM};

/// A soak of one datapath
#[derive(Parser)]
struct Args {
    /// How long everything changes
    #[arg(long)]
    seconds: u64,
    /// How many changes there are at least, however long they take
    #[arg(long, default_value_t = 1)]
    at_least: u64,
    #[arg(long, value_enum)]
    backend: Backend,
    /// How long to wait at most until everything is as it was
    #[arg(long, default_value_t = 180)]
    quiet: u64,
    /// How long pods serve on once they are terminating, in milliseconds
    #[arg(long, default_value_t = 4_000)]
    grace: u64,
    #[arg(long)]
    seed: u64,
    /// Write all samples to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    // Who stops us stops the clients by their input: they have nothing to do but to wait for that.
    let stop = Arc::new(AtomicBool::new(false));
    let handled =
        [SIGINT, SIGTERM].iter().try_for_each(|signal| signal_hook::flag::register(*signal, stop.clone()).map(drop));
    match handled.context("cannot listen for signals").and_then(|()| run(&stop)) {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            for fault in faults {
                eprintln!("not level: {fault}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(stop: &AtomicBool) -> Result<Vec<String>> {
    if std::env::args().nth(1).is_some_and(|first| first == soak::ARGUMENT) {
        return clients::serve().map(|()| Vec::new());
    }
    let Args { seconds, at_least, backend, quiet, grace, seed, json } = Args::parse();
    let [duration, quiet] = [seconds, quiet].map(Duration::from_secs);
    let plan = Plan { backend, duration, at_least, quiet, grace: Duration::from_millis(grace), seed, json };
    Ok(soak::run(&plan, stop)?.faults())
}
