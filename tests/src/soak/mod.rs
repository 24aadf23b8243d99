//! A soak: everything changes for minutes or hours while clients ask from everywhere, every request is checked, and at the end
//! everything has to be as it was: memory, files, threads, rows, connections, what is pinned and attached.

mod asking;
mod churn;
pub mod clients;
mod level;
mod objects;
mod report;
mod sample;
mod trend;
mod world;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use asking::ARGUMENT;
pub use report::Report;
pub use world::Backend;

use crate::client::{Connection, until};
use asking::Asking;
use churn::Churn;
use clients::{Client, Tally};
use level::Outcome;
use sample::{Phase, Sample};
use world::World;

/// Between two lines that tell how it goes.
const TOLD: Duration = Duration::from_secs(5);
/// Between two samples with all that takes the kernel's time.
const THOROUGH: Duration = Duration::from_secs(15);

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Which datapath.
    pub backend: Backend,
    /// How long everything changes.
    pub duration: Duration,
    /// How many changes there are at least, however long they take.
    pub at_least: u64,
    /// How long to wait at most until everything is as it was.
    pub quiet: Duration,
    /// How long pods serve on once they are terminating.
    pub grace: Duration,
    /// What the changes follow from.
    pub seed: u64,
    /// Where to write all samples.
    pub json: Option<PathBuf>,
}

/// Runs it, and prints how it goes and what came of it. `stop` ends it early.
///
/// # Errors
/// It cannot be run, or was ended early. What it found is in the report.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report> {
    let say = |text: String| report::say(plan.backend, &text);
    say(format!("seed {}, {} s of changes", plan.seed, plan.duration.as_secs()));
    let mut world = World::build(plan.backend)?;
    for ip in objects::SERVICES[0].vips() {
        let (client, to) =
            (&world.network.hosts.host("client").namespace, (ip.parse::<std::net::IpAddr>()?, 80).into());
        until("the first answer", || Connection::attempt(client, to)?.ask().ok())?;
    }
    until("the kernel to have what is wanted", || world.difference().ok()?.is_empty().then_some(()))?;
    let began = Instant::now();
    let mut samples = vec![Sample::take(&world, began, Phase::Baseline, true)?];
    let mut churn = Churn::new(plan.seed, plan.grace);
    let mut asking = Asking::start(&world)?;
    let done = all_along(plan, stop, &mut world, &mut churn, &mut asking, began, &mut samples);
    done.with_context(|| format!("the proxy's log ends with\n{}", world.last_words()))?;
    for process in &mut asking {
        process.end()?;
    }
    let clients = tallies(&mut asking)?;
    let quiet = quiet(plan, stop, &world, began, &mut samples)?;
    let report = Report {
        backend: plan.backend,
        seed: plan.seed,
        seconds: plan.duration.as_secs(),
        quiet: quiet.as_secs(),
        did: std::mem::take(&mut churn.did),
        slowest_removal: churn.slowest.as_secs_f64(),
        levels: level::levels(&samples, quiet),
        memory: level::memory(&samples),
        failures: [churn.failures, report::failures(&clients), report::complaints(&world.text_of_log())].concat(),
        clients,
        samples,
    };
    report.print();
    let of_flows = |level: &level::Level| level.name == sample::name::FLOWS && level.outcome != Outcome::Level;
    if let Some(pinned) = world.pinned().filter(|_| report.levels.iter().any(of_flows)) {
        pinned.flows_as_text()?.iter().for_each(|entry| say(format!("left: {entry}")));
    }
    if let Some(path) = &plan.json {
        std::fs::write(path, serde_json::to_string(&report)?).with_context(|| path.display().to_string())?;
        say(format!("all samples are in {}", path.display()));
    }
    Ok(report)
}

/// The changes, until everything is as at the beginning again. The second half of the time goes without a restart, so that one
/// can see what becomes of a process' memory.
fn all_along(
    plan: &Plan,
    stop: &AtomicBool,
    world: &mut World,
    churn: &mut Churn,
    asking: &mut [Asking; 2],
    began: Instant,
    samples: &mut Vec<Sample>,
) -> Result<()> {
    let restarts = (plan.duration / 20).clamp(Duration::from_secs(2), Duration::from_secs(60));
    let often = (plan.duration / 400).clamp(Duration::from_millis(400), Duration::from_secs(5));
    let (mut restart, mut sample, mut thorough, mut tell) = (began + restarts, began, began + THOROUGH, began + TOLD);
    while began.elapsed() < plan.duration || churn.changes() < plan.at_least || churn.restarts == 0 {
        if stop.load(Ordering::Relaxed) {
            bail!("ended early");
        }
        churn.step(world)?;
        let now = Instant::now();
        if now >= restart && (began.elapsed() < plan.duration / 2 || churn.restarts == 0) {
            churn.restart(world)?;
            restart = Instant::now() + restarts;
        }
        if now >= sample {
            samples.push(Sample::take(world, began, Phase::Churn, now >= thorough)?);
            if now >= thorough {
                thorough = now + THOROUGH;
            }
            sample = now + often;
        }
        if now >= tell {
            let clients = tallies(asking)?;
            report::progress(plan.backend, samples, &clients, churn);
            tell = now + TOLD;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    churn.settle(world)
}

fn tallies(asking: &mut [Asking; 2]) -> Result<Vec<(Client, Tally)>> {
    Ok(asking.iter_mut().map(Asking::tallies).collect::<Result<Vec<_>>>()?.concat())
}

/// Waits until every count is level, as long as the plan allows; how long that was.
fn quiet(plan: &Plan, stop: &AtomicBool, world: &World, began: Instant, samples: &mut Vec<Sample>) -> Result<Duration> {
    report::say(plan.backend, "nobody asks any more; waiting until everything is as it was");
    let since = Instant::now();
    loop {
        if stop.load(Ordering::Relaxed) {
            bail!("ended early");
        }
        samples.push(Sample::take(world, began, Phase::Quiet, true)?);
        let quiet = since.elapsed();
        if quiet >= plan.quiet || level::levels(samples, quiet).iter().all(|level| level.outcome == Outcome::Level) {
            return Ok(quiet);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}
