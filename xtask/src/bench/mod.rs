//! `cargo xtask bench`: how fast objects reach the kernel, what that costs, what each datapath costs a connection, and
//! what those who watch cost the proxy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;

use crate::datapath::{Backend, Datapath};
use crate::netns::Namespace;
use crate::{cargo, packages, step};
use datapath::{Plan, counting, schedulers};
use generate::Size;
use programming::Rounds;
use report::{Machine, Report};

mod datapath;
mod generate;
pub mod load;
mod metrics;
mod monitor;
mod notices;
mod polling;
mod programming;
mod proxy;
mod report;

/// Namespaces are named `PREFIX-PID-NAME`.
const PREFIX: &str = "kfbench";
/// The sizes of `--huge`, at which kube-proxy's operators report a quarter of an hour for a sync.
const HUGE: [Size; 2] = [Size { services: 45_000, endpoints: 1 }, Size { services: 5_000, endpoints: 50 }];

/// Measure the proxy in network namespaces: time to kernel by cluster size, memory, what a datapath costs packets
#[derive(clap::Args)]
pub struct Args {
    /// Only this part
    part: Option<Part>,
    /// Only this datapath, from objects to the kernel and those who watch
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// Cluster sizes, services x endpoints
    #[arg(long, value_delimiter = ',', default_value = "100x10,1000x10,10000x10")]
    sizes: Vec<Size>,
    /// Also 45000x1 and 5000x50
    #[arg(long)]
    huge: bool,
    /// Fewer and shorter rounds: to see that it works, not for figures
    #[arg(long)]
    quick: bool,
    /// Write all figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// From objects to the kernel
    Programming,
    /// Connections per second, latencies, throughput, and each BPF program alone
    Datapath,
    /// What each scheduler costs on the eBPF datapath
    Schedulers,
    /// What counting traffic costs a connection (`--service-metrics`)
    Counting,
    /// What fifty who watch cost the proxy, at the largest of the sizes
    Polling,
}

/// Runs the parts and prints the tables. Figures do not fail it: they are for people to judge. It is the release build that is measured,
/// or the binary that the environment names.
pub fn run(args: Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::NETWORK, packages::DEVICES])?;
    packages::need_root("bench")?;
    let machine = Machine::this()?;
    let binary = match std::env::var_os("KUBEFERRY_BIN") {
        Some(named) => std::path::absolute(named)?,
        None => cargo::kubeferry(true)?,
    };
    let home = tempfile::Builder::new().prefix(&format!("{PREFIX}-{}-", std::process::id())).tempdir()?;
    let mut report = Report::of(machine);
    // What was measured before something failed took its time, too.
    let measured = measure(&args, &binary, home.path(), &mut report);
    report.print();
    if let Some(path) = &args.json {
        report.write(path)?;
        step::start(format!("all figures are in {}", path.display()));
    }
    measured
}

/// Measures part after part.
fn measure(args: &Args, binary: &Path, home: &Path, report: &mut Report) -> anyhow::Result<()> {
    let wants = |part| args.part.is_none_or(|only| only == part);
    if wants(Part::Programming) {
        let sizes = args.sizes.iter().copied().chain(HUGE.into_iter().filter(|_| args.huge));
        let rounds = if args.quick { Rounds { starts: 1, changes: 10 } } else { Rounds { starts: 5, changes: 100 } };
        step::start("from objects to the kernel");
        for (number, size) in sizes.enumerate() {
            for backend in Backend::ALL.into_iter().filter(|backend| args.backend.is_none_or(|only| only == *backend)) {
                let name = format!("size-{number}-{}", backend.name());
                let datapath = Datapath::create(backend, home, &name)?;
                let node = namespace(&name)?;
                report.programming.push(programming::measure(binary, (&node, &datapath), home, size, rounds)?);
            }
        }
    }
    if wants(Part::Datapath) {
        let large = Size { services: if args.quick { 1_000 } else { 10_000 }, endpoints: 10 };
        let plan = if args.quick {
            Plan { rounds: 2, time: Duration::from_millis(200), large, runs: 10_000 }
        } else {
            Plan { rounds: 5, time: Duration::from_secs(1), large, runs: 100_000 }
        };
        step::start("from a pod to pods elsewhere");
        report.datapath = Some(datapath::measure(binary, home, plan)?);
    }
    if wants(Part::Schedulers) {
        let plan = match args.quick {
            true => schedulers::Plan { rounds: 1, time: Duration::from_millis(100), runs: 2_000 },
            false => schedulers::Plan { rounds: 3, time: Duration::from_millis(500), runs: 20_000 },
        };
        step::start("schedulers");
        report.schedulers = datapath::schedulers::measure(binary, home, plan)?;
    }

    if wants(Part::Counting) {
        let plan = match args.quick {
            true => counting::Plan { rounds: 2, time: Duration::from_millis(200) },
            false => counting::Plan { rounds: 30, time: Duration::from_millis(500) },
        };
        step::start("counting");
        report.counting = counting::measure(binary, home, plan)?;
    }

    if wants(Part::Polling) {
        let time = Duration::from_secs(if args.quick { 3 } else { 30 });
        let size = args.sizes.last().copied().context("no size")?;
        step::start("those who watch");
        for backend in Backend::ALL.into_iter().filter(|backend| args.backend.is_none_or(|only| only == *backend)) {
            let name = format!("poll-{}", backend.name());
            let datapath = Datapath::create(backend, home, &name)?;
            let node = namespace(&name)?;
            let measured = polling::measure(binary, (&node, &datapath), home, size, time)?;
            report.polling.extend(measured);
        }
    }
    Ok(())
}

fn namespace(name: &str) -> anyhow::Result<Namespace> {
    Namespace::create(format!("{PREFIX}-{}-{name}", std::process::id()))
}
