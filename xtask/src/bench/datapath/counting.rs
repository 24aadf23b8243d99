//! What counting traffic costs a connection: `--service-metrics` in many short rounds, since what is looked for is less than what
//! differs from one second to the next. First packets alone show it: what they pay more is set beside a whole connection's time.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use super::super::generate::{Cluster, PORT, Size};
use super::super::load::{self, Opened};
use super::super::report::median;
use super::{
    AT_TC, AT_TC_COUNTING, Bench, COUNT_ALL, COUNT_CONNECTIONS, TARGETS, at, drop_time, first_packets, order, uncounted,
};
use crate::datapath::Backend;
use crate::step;

/// With these, programs that count nothing come into the place of the proxy's, whatever it asks for.
const UNCOUNTED: &str = "eBPF, nothing";
const UNCOUNTED_AGAIN: &str = "eBPF, nothing, again";

/// What is counted, with the flags for it. The first of a datapath is what its others are set beside.
const LEVELS: [(&str, Backend, &[&str]); 8] = [
    ("nftables, nothing", Backend::Nftables, &[]),
    ("nftables, nothing, again", Backend::Nftables, &[]),
    ("nftables, connections", Backend::Nftables, COUNT_CONNECTIONS),
    ("nftables, all", Backend::Nftables, COUNT_ALL),
    (UNCOUNTED, Backend::Ebpf, AT_TC),
    (UNCOUNTED_AGAIN, Backend::Ebpf, AT_TC),
    ("eBPF, connections", Backend::Ebpf, AT_TC),
    ("eBPF, all", Backend::Ebpf, AT_TC_COUNTING),
];

/// A level, with what was measured of it, one entry a round.
#[derive(Clone, Serialize, Debug)]
pub struct Level {
    pub name: &'static str,
    pub backend: Backend,
    pub rounds: Vec<Round>,
}

/// What was measured at once.
#[derive(Clone, Copy, Serialize, Debug)]
pub struct Round {
    #[serde(flatten)]
    pub opened: Opened,
    /// Seconds for each first packet.
    pub first_packet: f64,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    /// For each of the two measurements of a level in a round.
    pub time: Duration,
}

/// Measures all of it.
pub fn measure(binary: &Path, home: &Path, plan: Plan) -> anyhow::Result<Vec<Level>> {
    let bench = Bench::new(binary, home)?;
    first_packets::silence(&bench.server)?;
    let cluster = Cluster::create(home, Size { services: TARGETS, endpoints: 10 })?;
    let mut levels = LEVELS.map(|(name, backend, _)| Level { name, backend, rounds: Vec::new() });
    for round in 0..=plan.rounds {
        let mut line = String::new();
        for index in order(levels.len(), round) {
            let (name, backend, flags) = LEVELS[index];
            bench.clear()?;
            let proxy = bench.proxy(backend, flags);
            // Events of connection tracking cost something only while somebody listens: that one goes on.
            let listening = flags == COUNT_ALL;
            let running = if listening { Some(proxy.start(&cluster)?) } else { None };
            if !listening {
                drop_time(proxy.once(&cluster))?;
            }
            let counts = ![UNCOUNTED, UNCOUNTED_AGAIN].contains(&name);
            if !counts {
                uncounted::replace(&bench.ebpf)?;
            }
            let targets = at(&cluster.cluster_ips(TARGETS), PORT);
            let opened = load::open(&bench.client, bench.ebpf.cgroup(), &targets, plan.time)?;
            let first_packet = first_packets::seconds_each(&bench.client, &bench.server, &targets)?;
            if backend == Backend::Ebpf {
                let counted = uncounted::counted(&bench.ebpf)?;
                ensure!(counts == (counted > 0), "{name}: {counted} connections were counted");
            }
            drop(running);
            let [connect, first] = [opened.connect.median, first_packet].map(|seconds| seconds * 1e6);
            line += &format!("  {name} {:.0}, {connect:.1} µs, {first:.2} µs", opened.connections);
            // The first round warms up.
            if round > 0 {
                levels[index].rounds.push(Round { opened, first_packet });
            }
        }
        step::note(format!("round {round} of {}, connections/s:{line}", plan.rounds));
    }
    bench.clear()?;
    Ok(levels.into())
}

/// Prints the table in Markdown.
pub fn print(levels: &[Level]) {
    println!(
        "| counted | connections/s | beside nothing counted | connect and request | beside nothing counted | first packet | more for \
         it | of a connection |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    );
    for level in levels {
        let Some(base) = levels.iter().find(|other| other.backend == level.backend) else { continue };
        let rate = |round: &Round| round.opened.connections;
        let time = |round: &Round| round.opened.connect.median;
        let first = |round: &Round| round.first_packet;
        let (rates, times) = (middle(level, rate), middle(level, time));
        let mut more: Vec<f64> =
            level.rounds.iter().zip(&base.rounds).map(|(one, other)| first(one) - first(other)).collect();
        let (low, high) = interval(&mut more);
        let more = median(&more);
        println!(
            "| {} | {rates:.0} | {} | {:.1} µs | {} | {:.2} µs | {:.0} ns ({:.0} to {:.0}) | {:.2} % ({:.2} to {:.2}) |",
            level.name,
            beside(level, base, rate),
            times * 1e6,
            beside(level, base, time),
            middle(level, first) * 1e6,
            more * 1e9,
            low * 1e9,
            high * 1e9,
            more * rates * 100.0,
            low * rates * 100.0,
            high * rates * 100.0,
        );
    }
    println!(
        "\nThe last column is what the first packet costs more, of the time in which a connection is made when as many are made as \
         go.\n"
    );
}

fn middle(level: &Level, figure: fn(&Round) -> f64) -> f64 {
    median(&level.rounds.iter().map(figure).collect::<Vec<_>>())
}

/// The median of the ratios within rounds, and between what values it is in 19 of 20 cases.
fn beside(one: &Level, other: &Level, figure: fn(&Round) -> f64) -> String {
    let mut ratios: Vec<f64> =
        one.rounds.iter().zip(&other.rounds).map(|(one, other)| figure(one) / figure(other)).collect();
    let (low, high) = interval(&mut ratios);
    format!("{:.3} ({low:.3} to {high:.3})", median(&ratios))
}

/// Where the median of what these are samples of lies, with 95 %: by the order of the samples, whatever their distribution.
fn interval(samples: &mut [f64]) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    let count = samples.len() as f64;
    let rank = ((count - 1.96 * count.sqrt()) / 2.0).max(0.0) as usize;
    let at = |rank: usize| samples.get(rank).copied().unwrap_or(f64::NAN);
    (at(rank), at(samples.len().saturating_sub(rank + 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_binomial_distribution() {
        let mut samples: Vec<f64> = (0..100).rev().map(f64::from).collect();
        assert_eq!(interval(&mut samples), (40.0, 59.0));
        assert_eq!(interval(&mut [3.0, 1.0, 2.0]), (1.0, 3.0));
    }
}
