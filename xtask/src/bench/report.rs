//! The tables, with the aims beside the figures, and the JSON file.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::connections::Connections;
use super::programming::Programming;
use crate::step;

/// All figures of a run.
#[derive(Serialize, Debug)]
pub struct Report {
    pub machine: Machine,
    pub programming: Vec<Programming>,
    pub connections: Option<Connections>,
}

/// What it ran on: figures of different machines are not to be compared.
#[derive(Serialize, Debug)]
pub struct Machine {
    pub cpus: usize,
    pub kernel: String,
    pub nft: String,
    /// Tasks that wanted a CPU in the minute before: with others at work the figures are worth little.
    pub load_before: f64,
}

impl Machine {
    /// This one.
    pub fn this() -> anyhow::Result<Self> {
        Ok(Self {
            cpus: std::thread::available_parallelism()?.get(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            nft: step::output(Command::new("nft").arg("--version"))?.trim().to_owned(),
            load_before: load_average()?,
        })
    }
}

impl Report {
    /// Prints the tables in Markdown.
    pub fn print(&self) {
        let Machine { cpus, kernel, nft, load_before } = &self.machine;
        println!("\n{cpus} CPUs, Linux {kernel}, {nft}, load average before: {load_before}\n");
        if !self.programming.is_empty() {
            self.print_programming();
        }
        if let Some(connections) = &self.connections {
            print_connections(connections);
        }
    }

    fn print_programming(&self) {
        println!(
            "| services × endpoints | rows | `nft -f` | start | ratio | restart | first sync | one change | rows | burst | \
             resident | peak |"
        );
        println!("|{}", " ---: |".repeat(12));
        for p in &self.programming {
            let dash = || "–".to_owned();
            println!(
                "| {} × {} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {} in {} | {:.0} MiB | {:.0} MiB |",
                p.services,
                p.endpoints,
                p.rows.map_or_else(dash, |rows| format!("{rows:.0}")),
                seconds(median(&p.nft_f)),
                seconds(median(&p.start)),
                p.start_ratio(),
                seconds(median(&p.restart)),
                p.first_sync.map_or_else(dash, seconds),
                seconds(median(&p.change)),
                p.change_rows,
                p.burst.changes,
                seconds(p.burst.seconds),
                p.resident,
                p.resident_peak,
            );
        }
        println!("\nAims: start at most 2 × `nft -f`; one change under 1 ms; under 100 MiB at 10000 × 10.");
        if let Some((first, last)) = self.growth() {
            let ratio = median(&last.change) / median(&first.change);
            println!(
                "One change at {} services beside {}: {ratio:.2} × (aim: at most 1.3).",
                last.services, first.services
            );
        }
        println!();
    }

    /// The smallest and the largest cluster with the same number of endpoints a service.
    fn growth(&self) -> Option<(&Programming, &Programming)> {
        let first = self.programming.first()?;
        let last = self.programming.iter().rev().find(|p| p.endpoints == first.endpoints)?;
        (last.services > first.services).then_some((first, last))
    }

    /// Writes all figures, round by round.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }
}

fn print_connections(c: &Connections) {
    println!("| new TCP connections through a node | per second | of connection tracking alone | of nothing at all |");
    println!("| --- | ---: | ---: | ---: |");
    for (name, rates) in [
        ("nothing at all".to_owned(), &c.nothing),
        ("connection tracking alone".to_owned(), &c.tracking),
        (format!("ClusterIP, {} services", c.small_services), &c.small),
        (format!("ClusterIP, {} services", c.large_services), &c.large),
    ] {
        println!(
            "| {name} | {:.0} | {:.3} | {:.3} |",
            median(rates),
            Connections::ratio(rates, &c.tracking),
            Connections::ratio(rates, &c.nothing)
        );
    }
    println!(
        "\nAim: at least 0.95 of connection tracking alone. {} services beside {}: {:.3}.\n",
        c.large_services,
        c.small_services,
        Connections::ratio(&c.large, &c.small)
    );
}

/// The middle one, or the mean of the two in the middle; not a number if there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn load_average() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    text.split(' ').next().and_then(|load| load.parse().ok()).context("no number in /proc/loadavg")
}

fn seconds(value: f64) -> String {
    Duration::try_from_secs_f64(value).map_or_else(|_| "–".to_owned(), step::duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0, 2.0, 3.0])), (2.0, 2.5));
        assert!(median(&[]).is_nan());
        assert_eq!(Connections::ratio(&[1.0, 9.0, 3.0], &[2.0, 9.0, 6.0]), 0.5);
    }
}
