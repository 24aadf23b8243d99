//! Many histories, one after the other, until the time is over.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::agree::{Counts, Run, sampled};
use super::folder::write;
use super::scenario::Scenario;
use super::shrink::shrink;
use crate::executors::live::WORLDS;

/// How often is said how far it is.
const PROGRESS: Duration = Duration::from_secs(30);

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Campaign {
    /// The first history's seed; the others follow one by one.
    pub seed: u64,
    /// How long. A step that was begun is ended; so is making a disagreement small, which has its own time.
    pub time: Duration,
    /// No more histories than these.
    pub clusters: Option<u64>,
    /// States of a history.
    pub steps: usize,
    /// Flows in a state.
    pub flows: usize,
    /// Where cases are written.
    pub cases: PathBuf,
    /// How long making a disagreement small may take.
    pub shrinking: Duration,
    /// After so many disagreements it ends.
    pub findings: usize,
}

/// What came of a campaign.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// What was done.
    pub counts: Counts,
    /// The seeds of histories in which something disagreed.
    pub found: Vec<u64>,
    /// How long it took.
    pub took: Duration,
}

impl Campaign {
    /// Goes through histories until the time is over, enough was found or it is `stopped` between two steps, and tells of it line by line. Each disagreement is
    /// made small and written as a case.
    ///
    /// # Errors
    /// The harness itself fails; the seed is said.
    pub fn run(&self, stopped: &AtomicBool, tell: &mut dyn FnMut(&str)) -> Result<Report> {
        let began = Instant::now();
        let mut report = Report::default();
        let mut told = began;
        for seed in
            (self.seed..).take(self.clusters.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX)))
        {
            let goes_on = || began.elapsed() < self.time && !stopped.load(Ordering::Relaxed);
            if !goes_on() || report.found.len() >= self.findings {
                break;
            }
            self.history(seed, &goes_on, &mut report, tell).with_context(|| format!("seed {seed}"))?;
            report.took = began.elapsed();
            if told.elapsed() >= PROGRESS {
                told = Instant::now();
                tell(&format!("{report}"));
            }
        }
        report.took = began.elapsed();
        tell(&format!("{report}"));
        Ok(report)
    }

    fn history(
        &self,
        seed: u64,
        goes_on: &dyn Fn() -> bool,
        report: &mut Report,
        tell: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let start = Instant::now();
        let scenario = Scenario::new(seed, self.steps, self.flows)?;
        let how = Run { worlds: &WORLDS, look: sampled, goes_on, spoil: &|_| () };
        let agreement = scenario.run(&how, &mut report.counts)?;
        let (steps, took) = (agreement.steps, start.elapsed().as_secs_f64());
        let outcome = if agreement.disagreements.is_empty() { "agreed" } else { "DISAGREED" };
        tell(&format!("seed {seed}: {steps} steps in {took:.1} s, {outcome}"));
        if agreement.disagreements.is_empty() {
            return Ok(());
        }
        report.found.push(seed);
        tell(&format!("  again: {}", self.again(seed)));
        tell(&format!("  step {steps} was: {}", scenario.states[steps - 1].what));
        agreement.disagreements.iter().take(10).for_each(|found| tell(&format!("  {found}")));
        let (small, disagreements) = shrink(&scenario, &agreement, self.shrinking, &|_| ())?;
        let lines: Vec<_> = disagreements.iter().map(|found| found.to_string()).collect();
        let why = format!("Found by cargo xtask fuzz differential, seed {seed}:\n{}", lines.join("\n"));
        let folder = write(&small, &self.cases, &format!("seed_{seed}"), &why)?;
        tell(&format!("  made small: {} steps, in {}", small.states.len(), folder.display()));
        lines.iter().take(10).for_each(|line| tell(&format!("  {line}")));
        Ok(())
    }

    /// The command that goes through one history again.
    fn again(&self, seed: u64) -> String {
        let Self { steps, flows, .. } = self;
        format!("cargo xtask fuzz differential --seed {seed} -- --clusters 1 --steps {steps} --flows {flows}")
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { clusters, steps, flows, became, asked } = &self.counts;
        let took = self.took.as_secs_f64();
        let rate = f64::from(u32::try_from(*steps).unwrap_or(u32::MAX)) / took.max(0.001);
        write!(f, "{took:.0} s: {clusters} clusters, {steps} steps ({rate:.1} a second), {flows} flows, ")?;
        let list = |counts: &BTreeMap<&str, usize>| {
            counts.iter().map(|(of, count)| format!("{of} {count}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "{} disagreements", self.found.len())?;
        writeln!(f, "  of the flows: {}", list(became))?;
        write!(f, "  by executor: {}", list(asked))
    }
}
