//! Whether at the end everything is as it was at the beginning.

use std::time::Duration;

use serde::Serialize;

use super::sample::{Phase, Sample, name};
use super::trend::Trend;

/// How much more of something there may be at the end than at the beginning, and how long it takes until that can be said.
struct Rule {
    name: &'static str,
    more: u64,
    settles: Duration,
}

/// Threads that have nothing to do end after 10 s; connections that are over are forgotten by `common/src/flow.rs` (UDP after
/// 120 s, and a sweep), or here by connection tracking's timeouts (see [`super::world`]).
const RULES: [Rule; 13] = [
    Rule { name: name::FILES, more: 4, settles: Duration::from_secs(5) },
    Rule { name: name::THREADS, more: 2, settles: Duration::from_secs(12) },
    Rule { name: name::NETLINK, more: 0, settles: Duration::from_secs(5) },
    Rule { name: name::NAMESPACES, more: 0, settles: Duration::ZERO },
    Rule { name: name::INTERFACES, more: 0, settles: Duration::from_secs(5) },
    Rule { name: name::CONNTRACK, more: 0, settles: Duration::from_secs(20) },
    Rule { name: name::ROWS, more: 0, settles: Duration::from_secs(5) },
    Rule { name: name::COUNTERS, more: 0, settles: Duration::from_secs(150) },
    Rule { name: name::MAPS, more: 64 << 10, settles: Duration::from_secs(5) },
    Rule { name: name::PINS, more: 0, settles: Duration::from_secs(5) },
    Rule { name: name::FLOWS, more: 0, settles: Duration::from_secs(150) },
    Rule { name: name::ACTIVE, more: 0, settles: Duration::from_secs(150) },
    Rule { name: name::DIFFERENCE, more: 0, settles: Duration::from_secs(5) },
];
/// Part of the proxy's memory, and bytes at least, by which it may grow in the time looked at.
const GROWTH: (f64, f64) = (0.05, 1024.0 * 1024.0);
/// Part of the time since the last start that memory is not looked at: caches and pools fill.
const WARMING_UP: f64 = 0.2;

/// What came of one count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As at the beginning.
    Level,
    /// More than at the beginning.
    Grown,
    /// More, but the time was too short for it to be less.
    Unsettled,
}

/// A count over the run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Level {
    /// What is counted.
    pub name: &'static str,
    /// At the beginning.
    pub before: u64,
    /// The most while everything changed.
    pub most: u64,
    /// At the end.
    pub after: u64,
    /// What came of it.
    pub outcome: Outcome,
}

/// The counts that a run has, with what came of each after so much quiet time. `before` is the first sample, `after` the last.
pub fn levels(samples: &[Sample], quiet: Duration) -> Vec<Level> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Vec::new() };
    let level = |rule: &Rule| {
        let (before, after) = (*first.counts.get(rule.name)?, *last.counts.get(rule.name)?);
        let most = samples.iter().filter_map(|sample| sample.counts.get(rule.name)).max();
        let outcome = match after <= before + rule.more {
            true => Outcome::Level,
            false if quiet >= rule.settles => Outcome::Grown,
            false => Outcome::Unsettled,
        };
        Some(Level { name: rule.name, before, most: *most?, after, outcome })
    };
    RULES.iter().filter_map(level).collect()
}

/// How the memory of the proxy went since its last start.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Memory {
    /// What is looked at: resident memory, or what of it belongs to no file.
    pub name: &'static str,
    /// How it went; `None`: there are too few samples.
    pub trend: Option<Trend>,
    /// It grows.
    pub grows: bool,
}

/// The memory of the process that ran last, while everything changed.
pub fn memory(samples: &[Sample]) -> [Memory; 2] {
    let churn: Vec<_> = samples.iter().filter(|sample| sample.phase == Phase::Churn).collect();
    let last = churn.last().map(|sample| sample.process);
    let since: Vec<_> = churn.into_iter().filter(|sample| Some(sample.process) == last).collect();
    let since = &since[(since.len() as f64 * WARMING_UP) as usize..];
    let memory = |name, number: fn(&Sample) -> u64| {
        let series: Vec<_> = since.iter().map(|sample| (sample.at, number(sample) as f64)).collect();
        let trend = Trend::of(&series);
        let grows = trend.is_some_and(|trend| trend.grows(GROWTH.1.max(trend.median * GROWTH.0)));
        Memory { name, trend, grows }
    };
    [memory("resident memory", |sample| sample.resident), memory("anonymous memory", |sample| sample.anonymous)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn sample(at: f64, process: u32, resident: u64, counts: &[(&str, u64)]) -> Sample {
        let counts = counts.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect::<BTreeMap<_, _>>();
        Sample { at, phase: Phase::Churn, process, resident, anonymous: resident / 2, counts, rows: BTreeMap::new() }
    }

    #[test]
    fn what_has_grown_is_told_unless_it_needs_more_time() {
        let counts = |files, flows| [(name::FILES, files), (name::FLOWS, flows)];
        let run = |last| [sample(0.0, 1, 0, &counts(10, 0)), sample(1.0, 1, 0, &counts(90, 500)), last];
        let outcomes = |last: &[(&str, u64)], quiet| {
            let levels = levels(&run(sample(2.0, 1, 0, last)), Duration::from_secs(quiet));
            levels.iter().map(|level| (level.most, level.outcome)).collect::<Vec<_>>()
        };
        assert_eq!(outcomes(&counts(14, 0), 10), [(90, Outcome::Level), (500, Outcome::Level)]);
        assert_eq!(outcomes(&counts(15, 1), 10), [(90, Outcome::Grown), (500, Outcome::Unsettled)]);
        assert_eq!(outcomes(&counts(15, 1), 150), [(90, Outcome::Grown), (500, Outcome::Grown)]);
    }

    #[test]
    fn memory_is_that_of_the_last_process_once_it_is_warm() {
        let mib = |mib: f64| (mib * 1024.0 * 1024.0) as u64;
        // The first process grows and is gone; the second begins small.
        let first = (0..100).map(|at| sample(f64::from(at), 1, mib(10.0 + f64::from(at)), &[]));
        let second = |leak: f64| {
            (100..300).map(move |at| {
                let warm = if at < 130 { f64::from(at - 100) * 0.2 } else { 6.0 };
                sample(f64::from(at), 2, mib(10.0 + warm + leak * f64::from(at)), &[])
            })
        };
        let level: Vec<_> = first.clone().chain(second(0.0)).collect();
        assert!(memory(&level).iter().all(|memory| !memory.grows), "{:?}", memory(&level));
        let leak: Vec<_> = first.chain(second(0.02)).collect();
        assert!(memory(&leak)[0].grows, "{:?}", memory(&leak));
        assert_eq!(memory(&leak)[0].trend.map(|trend| trend.samples), Some(160));
    }
}
