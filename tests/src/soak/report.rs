//! What a run says: how it goes, and what came of it.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::churn::Churn;
use super::clients::{Client, Manner, Tally};
use super::level::{Level, Memory, Outcome};
use super::sample::{Sample, name};
use super::world::Backend;

/// What came of a run.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Report {
    /// The datapath.
    pub backend: Backend,
    /// What the changes followed from.
    pub seed: u64,
    /// How long everything changed.
    pub seconds: u64,
    /// How long it took until everything was as it was, or as long as was allowed.
    pub quiet: u64,
    /// What was done how often.
    pub did: BTreeMap<&'static str, u64>,
    /// The longest from an EndpointSlice without an endpoint to a kernel that gives it to nobody, in seconds.
    pub slowest_removal: f64,
    /// Counts at the beginning and at the end.
    pub levels: Vec<Level>,
    /// The proxy's memory over time.
    pub memory: [Memory; 2],
    /// Requests that failed, and what else went wrong.
    pub failures: Vec<String>,
    /// Those who asked.
    pub clients: Vec<(Client, Tally)>,
    /// All samples, in order.
    pub samples: Vec<Sample>,
}

impl Report {
    /// What has to be as at the beginning and is not, and what failed.
    pub fn faults(&self) -> Vec<String> {
        let grown = self.levels.iter().filter(|level| level.outcome == Outcome::Grown);
        let grown =
            grown.map(|level| format!("{}: {} at the beginning, {} at the end", level.name, level.before, level.after));
        let memory = self.memory.iter().filter(|memory| memory.grows).map(|memory| format!("{} grows", memory.name));
        grown.chain(memory).chain(self.failures.iter().cloned()).collect()
    }

    /// Prints it.
    pub fn print(&self) {
        let mut text = String::new();
        // To memory, where nothing can fail.
        let _ = self.write(&mut text);
        for line in text.lines() {
            say(self.backend, line);
        }
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        for (what, times) in &self.did {
            writeln!(out, "  {times:>7}  {what}")?;
        }
        writeln!(out, "  {:<38} {:>9} {:>7} {:>6} {:>6} {:>9}", "", "answered", "failed", "again", "slow", "longest")?;
        for manner in Manner::ALL {
            let mut sum = Tally::default();
            self.clients.iter().filter(|(client, _)| client.manner == manner).for_each(|(_, tally)| sum.add(tally));
            let longest = if sum.longest > 0.0 { format!("{:.0} ms", sum.longest * 1e3) } else { String::new() };
            let Tally { answered, failed, again, slow, .. } = sum;
            writeln!(out, "  {:<38} {answered:>9} {failed:>7} {again:>6} {slow:>6} {longest:>9}", manner.name())?;
        }
        writeln!(out, "  {:<38} {:>9} {:>9} {:>9}", "", "before", "most", "after")?;
        for Level { name, before, most, after, outcome } in &self.levels {
            let outcome = match outcome {
                Outcome::Level => "",
                Outcome::Grown => "NOT LEVEL",
                Outcome::Unsettled => "not judged: the quiet time was too short for it",
            };
            writeln!(out, "  {name:<38} {before:>9} {most:>9} {after:>9} {outcome}")?;
        }
        for Memory { name, trend, grows } in &self.memory {
            match trend {
                None => writeln!(out, "  {name}: not judged, the run was too short for it")?,
                Some(trend) => writeln!(
                    out,
                    "  {name}: {:.1} MiB, {:+.1} KiB a minute by {} samples of {:.0} s ({:+.1} deviations){}",
                    trend.median / MIB,
                    trend.per_minute / 1024.0,
                    trend.samples,
                    trend.seconds,
                    trend.deviations,
                    if *grows { " NOT LEVEL" } else { "" }
                )?,
            }
        }
        writeln!(out, "  an endpoint that went was given to nobody after {:.0} ms at most", self.slowest_removal * 1e3)
    }
}

const MIB: f64 = 1024.0 * 1024.0;

/// A line of a run to standard output, which may be a closed pipe: that is not our failure.
pub(super) fn say(backend: Backend, text: &str) {
    use std::io::Write;
    let backend = match backend {
        Backend::Nftables => "nftables",
        Backend::Ebpf => "eBPF    ",
    };
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{backend} {text}").and_then(|()| out.flush());
}

/// The line of every few seconds.
pub(super) fn progress(backend: Backend, samples: &[Sample], clients: &[(Client, Tally)], churn: &Churn) {
    let Some(last) = samples.last() else { return };
    let mut sum = Tally::default();
    clients.iter().for_each(|(_, tally)| sum.add(tally));
    let (pods, services) = churn.counts();
    let count = |name: &str| last.counts.get(name).copied().unwrap_or_default();
    let connections = count(name::FLOWS) + count(name::CONNTRACK);
    let changes = churn.changes();
    say(
        backend,
        &format!(
            "{:>5.0} s: {} answers, {} failed; {changes} changes, {pods} pods, {services} Services more; {:.1} MiB, {} files, \
             {} threads, {} rows, {connections} entries of connections",
            last.at,
            sum.answered,
            sum.failed,
            last.resident as f64 / MIB,
            count(name::FILES),
            count(name::THREADS),
            count(name::ROWS),
        ),
    );
}

/// The requests that failed: the first of each client, and how many more.
pub(super) fn failures(clients: &[(Client, Tally)]) -> Vec<String> {
    let mut all = Vec::new();
    for (client, tally) in clients {
        all.extend(tally.failures.iter().cloned());
        let more = tally.failed.saturating_sub(tally.failures.len() as u64);
        if more > 0 {
            all.push(format!("{} to {}: {more} more", client.who, client.to));
        }
    }
    all
}

/// What the proxy's log says that a run like this should not make it say.
pub(super) fn complaints(log: &str) -> Vec<String> {
    let bad = |line: &&str| line.contains("panicked") || line.contains(" ERROR ");
    log.lines().filter(bad).take(10).map(|line| format!("the log: {line}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_of_any_sort_is_named() {
        let level = |name, outcome| Level { name, before: 1, most: 3, after: 2, outcome };
        let memory = |grows| Memory { name: "resident memory", trend: None, grows };
        let mut report = Report {
            backend: Backend::Nftables,
            seed: 1,
            seconds: 1,
            quiet: 1,
            did: BTreeMap::new(),
            slowest_removal: 0.0,
            levels: vec![level("rows", Outcome::Level), level("pins", Outcome::Unsettled)],
            memory: [memory(false), memory(false)],
            failures: Vec::new(),
            clients: Vec::new(),
            samples: Vec::new(),
        };
        assert_eq!(report.faults(), [""; 0]);
        report.levels.push(level("threads", Outcome::Grown));
        report.memory[1] = memory(true);
        report.failures.push("no answer".into());
        assert_eq!(
            report.faults(),
            ["threads: 1 at the beginning, 2 at the end", "resident memory grows", "no answer"]
        );
    }

    #[test]
    fn panics_and_errors_of_the_log_are_faults() {
        let log = "t  INFO x: fine\nt ERROR x: not fine\nthread 'main' panicked at y\n";
        assert_eq!(complaints(log).len(), 2);
    }
}
