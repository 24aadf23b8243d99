//! Random clusters for as long as one likes: the program of `cargo xtask fuzz differential`. Its exit code is 1 where something
//! disagreed, and 2 where the harness failed.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use kubeferry_tests::random::Campaign;
use signal_hook::consts::{SIGINT, SIGTERM};

/// Random clusters and histories of changes, on which the model, both datapaths and real packets have to agree.
#[derive(Parser, Debug)]
#[command(name = "differential")]
struct Args {
    /// How long.
    #[arg(long, default_value_t = 5)]
    minutes: u64,
    /// The first cluster's; the others follow one by one. Without it, one by the clock.
    #[arg(long)]
    seed: Option<u64>,
    /// No more clusters than these.
    #[arg(long)]
    clusters: Option<u64>,
    /// States of each cluster.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Flows in each state.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(1..))]
    flows: u16,
    /// Where a disagreement is written, as a folder for `tests/flows`.
    #[arg(long, default_value = "target/differential")]
    cases: PathBuf,
    /// How many seconds making a disagreement small may take.
    #[arg(long, default_value_t = 240)]
    shrinking: u64,
    /// After so many disagreements it ends.
    #[arg(long, default_value_t = 5)]
    findings: usize,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let campaign = Campaign {
        seed: args.seed.unwrap_or(clock),
        time: Duration::from_secs(args.minutes * 60),
        clusters: args.clusters,
        steps: usize::from(args.steps),
        flows: usize::from(args.flows),
        cases: args.cases,
        shrinking: Duration::from_secs(args.shrinking),
        findings: args.findings,
    };
    // What it has made in the kernel goes with its values: it ends by itself.
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        if let Err(error) = signal_hook::flag::register(signal, stopped.clone()) {
            eprintln!("cannot listen for signals: {error}");
            return ExitCode::from(2);
        }
    }
    match campaign.run(&stopped, &mut |line| println!("{line}")) {
        Ok(report) if report.found.is_empty() => ExitCode::SUCCESS,
        Ok(report) => {
            println!("seeds that disagree: {:?}", report.found);
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(2)
        }
    }
}
