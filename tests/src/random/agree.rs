//! A history, brought into force step by step in every world.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::scenario::Scenario;
use crate::executors::Disagreement;
use crate::executors::live::{Live, Look};
use crate::flows::{Expect, Step};

/// What was done, and what came of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Histories that were begun.
    pub clusters: usize,
    /// States that were brought into force.
    pub steps: usize,
    /// Rows that the model was asked about.
    pub flows: usize,
    /// What became of them, by the model.
    pub became: BTreeMap<&'static str, usize>,
    /// Rows that each executor was asked about.
    pub asked: BTreeMap<&'static str, usize>,
}

/// A word for what becomes of a flow.
fn word(expect: &Expect) -> &'static str {
    match expect {
        Expect::Endpoints { affinity: true, .. } => "with affinity",
        Expect::Endpoints { endpoints, .. } if endpoints.len() == 1 => "to one endpoint",
        Expect::Endpoints { .. } | Expect::Same { .. } => "to several",
        Expect::Reject => "rejected",
        Expect::Drop => "dropped",
        Expect::None => "left alone",
    }
}

/// A history as far as everything agreed.
#[derive(Debug, Default)]
pub struct Agreement {
    /// The steps that were made, the last one included.
    pub steps: usize,
    /// What disagreed in the last.
    pub disagreements: Vec<Disagreement>,
}

impl Scenario {
    /// Goes through the history until something disagrees, or `goes_on` says no between two steps.
    ///
    /// # Errors
    /// The harness itself fails.
    pub fn run(&self, how: &Run<'_>, counts: &mut Counts) -> Result<Agreement> {
        let case = self.case()?;
        let mut live = Live::new(&case, how.worlds).context("building the worlds")?;
        counts.clusters += 1;
        let mut agreement = Agreement::default();
        for (number, step) in case.steps.iter().enumerate() {
            if number > 0 && !(how.goes_on)() {
                break;
            }
            let mut step = step.clone();
            live.expect(&mut step).with_context(|| format!("step {}", number + 1))?;
            (how.spoil)(&mut step);
            let outcome = live.step(&step, (how.look)(number)).with_context(|| format!("step {}", number + 1))?;
            counts.steps += 1;
            counts.flows += step.rows.len();
            step.rows.iter().for_each(|row| *counts.became.entry(word(&row.expect)).or_default() += 1);
            for (executor, rows) in outcome.asked {
                *counts.asked.entry(executor).or_default() += rows;
            }
            agreement.steps = number + 1;
            agreement.disagreements = outcome.disagreements;
            if !agreement.disagreements.is_empty() {
                break;
            }
        }
        Ok(agreement)
    }
}

/// How a history is gone through.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The worlds in which: of [`crate::executors::live::WORLDS`].
    pub worlds: &'a [&'a str],
    /// What is looked at in a step.
    pub look: fn(usize) -> Look,
    /// Whether there is time.
    pub goes_on: &'a dyn Fn() -> bool,
    /// Makes the model wrong: for tests of what becomes of a disagreement.
    pub spoil: &'a dyn Fn(&mut Step),
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("worlds", &self.worlds).finish_non_exhaustive()
    }
}

/// What a long run looks at: a third of the rows as packets, every fifth step closely.
pub fn sampled(step: usize) -> Look {
    Look { packets: 3, closely: step % 5 == 4 }
}

/// Everything, in each step.
pub fn everything(_: usize) -> Look {
    Look::ALL
}
