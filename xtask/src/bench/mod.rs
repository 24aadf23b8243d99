//! `cargo xtask bench`: how fast objects reach the kernel, what that costs, and what the rules cost a connection.

use std::path::PathBuf;
use std::time::Duration;

use crate::netns::Namespace;
use crate::{cargo, packages, step};
use connections::Plan;
use generate::Size;
use programming::Rounds;
use report::{Machine, Report};

mod connections;
mod generate;
mod load;
mod metrics;
mod monitor;
mod programming;
mod proxy;
mod report;

/// Namespaces are named `PREFIX-PID-NAME`.
const PREFIX: &str = "kfbench";
/// The sizes of `--huge`, at which kube-proxy's operators report a quarter of an hour for a sync.
const HUGE: [Size; 2] = [Size { services: 45_000, endpoints: 1 }, Size { services: 5_000, endpoints: 50 }];

/// Measure the proxy in network namespaces: time to kernel by cluster size, memory, connections per second
#[derive(clap::Args)]
pub struct Args {
    /// Only this part
    part: Option<Part>,
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
    /// Connections per second
    Datapath,
}

/// Runs the parts and prints the tables. Figures do not fail it: they are for people to judge.
pub fn run(args: Args) -> anyhow::Result<()> {
    packages::ensure(&[packages::BUILD, packages::NETWORK])?;
    packages::need_root("bench")?;
    let machine = Machine::this()?;
    let binary = cargo::kubeferry(true)?;
    let home = tempfile::Builder::new().prefix(&format!("{PREFIX}-{}-", std::process::id())).tempdir()?;
    let mut report = Report { machine, programming: Vec::new(), connections: None };

    if args.part != Some(Part::Datapath) {
        let sizes = args.sizes.iter().copied().chain(HUGE.into_iter().filter(|_| args.huge));
        let rounds = if args.quick { Rounds { starts: 1, changes: 10 } } else { Rounds { starts: 5, changes: 100 } };
        step::start("from objects to the kernel");
        for (number, size) in sizes.enumerate() {
            let node = namespace(&format!("size-{number}"))?;
            report.programming.push(programming::measure(&binary, &node, home.path(), size, rounds)?);
        }
    }
    if args.part != Some(Part::Programming) {
        let large = Size { services: if args.quick { 1_000 } else { 10_000 }, endpoints: 10 };
        let plan = if args.quick {
            Plan { rounds: 2, time: Duration::from_millis(500), large }
        } else {
            Plan { rounds: 9, time: Duration::from_secs(2), large }
        };
        step::start("connections per second");
        report.connections = Some(connections::measure(&binary, home.path(), plan)?);
    }

    report.print();
    if let Some(path) = &args.json {
        report.write(path)?;
        step::start(format!("all figures are in {}", path.display()));
    }
    Ok(())
}

fn namespace(name: &str) -> anyhow::Result<Namespace> {
    Namespace::create(format!("{PREFIX}-{}-{name}", std::process::id()))
}
