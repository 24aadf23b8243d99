//! The tables, with the aims beside the figures, and the JSON file.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use super::datapath;
use super::polling;
use super::programming::Programming;
use crate::datapath::Backend;
use crate::step;

/// All figures of a run.
#[derive(Serialize, Debug)]
pub struct Report {
    pub machine: Machine,
    pub programming: Vec<Programming>,
    pub datapath: Option<datapath::Figures>,
    pub schedulers: Vec<datapath::schedulers::Scheduler>,
    pub counting: Vec<datapath::counting::Level>,
    pub polling: Vec<polling::Polling>,
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
    /// One without figures.
    pub fn of(machine: Machine) -> Self {
        Self {
            machine,
            programming: Vec::new(),
            datapath: None,
            schedulers: Vec::new(),
            counting: Vec::new(),
            polling: Vec::new(),
        }
    }

    /// Prints the tables in Markdown.
    pub fn print(&self) {
        let Machine { cpus, kernel, nft, load_before } = &self.machine;
        println!("\n{cpus} CPUs, Linux {kernel}, {nft}, load average before: {load_before}\n");
        if !self.programming.is_empty() {
            self.print_programming();
        }
        if let Some(figures) = &self.datapath {
            datapath::report::print(figures);
        }
        if !self.schedulers.is_empty() {
            datapath::schedulers::print(&self.schedulers);
        }
        if !self.counting.is_empty() {
            datapath::counting::print(&self.counting);
        }
        if !self.polling.is_empty() {
            polling::print(&self.polling);
        }
    }

    fn print_programming(&self) {
        println!(
            "| services × endpoints | datapath | rows | `nft -f` | start | ratio | restart | first sync | one change | rows | burst | \
             resident | peak |"
        );
        println!("|{}", " ---: |".repeat(13));
        for p in &self.programming {
            let dash = || "–".to_owned();
            println!(
                "| {} × {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} in {} | {:.0} MiB | {:.0} MiB |",
                p.services,
                p.endpoints,
                p.backend.name(),
                p.rows.map_or_else(dash, |rows| format!("{rows:.0}")),
                seconds(median(&p.nft_f)),
                seconds(median(&p.start)),
                if p.nft_f.is_empty() { dash() } else { format!("{:.2}", p.start_ratio()) },
                seconds(median(&p.restart)),
                p.first_sync.map_or_else(dash, seconds),
                seconds(median(&p.change)),
                p.change_rows.map_or_else(dash, |rows| rows.to_string()),
                p.burst.changes,
                seconds(p.burst.seconds),
                p.resident,
                p.resident_peak,
            );
        }
        println!("\nAims: start at most 2 × `nft -f`; one change under 1 ms; under 100 MiB at 10000 × 10.");
        for backend in Backend::ALL {
            if let Some((first, last)) = self.growth(backend) {
                let ratio = median(&last.change) / median(&first.change);
                println!(
                    "One change with {} at {} services beside {}: {ratio:.2} × (aim: at most 1.3).",
                    backend.name(),
                    last.services,
                    first.services
                );
            }
        }
        println!();
    }

    /// The smallest and the largest cluster with the same number of endpoints a service.
    fn growth(&self, backend: Backend) -> Option<(&Programming, &Programming)> {
        let of = || self.programming.iter().filter(|p| p.backend == backend);
        let first = of().next()?;
        let last = of().rfind(|p| p.endpoints == first.endpoints)?;
        (last.services > first.services).then_some((first, last))
    }

    /// Writes all figures, round by round.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| path.display().to_string())
    }
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
    }
}
