//! The table: fault, datapath, requests, failed, slow, the longest, time until right again.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::time::Duration;

use super::traffic::{Recorded, Slow};
use crate::datapath::Datapath;

/// Names a file that rows are appended to as lines of a Markdown table, for `docs/reliability.md`.
pub const REPORT: &str = "KUBEFERRY_FAULTS_REPORT";

/// What one fault came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// What went wrong, for people.
    pub fault: String,
    /// `nftables` or `ebpf`.
    pub datapath: &'static str,
    /// Requests that clients made meanwhile.
    pub requests: usize,
    /// How many of them failed.
    pub failed: usize,
    /// How many were answered late, and the longest that one took.
    pub slow: Slow,
    /// From the fault, or its end where the test says so, until all was right again.
    pub right_after: Duration,
    /// The test that made it.
    pub test: String,
}

impl fmt::Display for Row {
    /// A line of a Markdown table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fault, datapath, requests, failed, slow, right_after, test } = self;
        let [right_after, longest] = [*right_after, slow.longest].map(short);
        write!(
            f,
            "| {fault} | {datapath} | {requests} | {failed} | {} | {longest} | {right_after} | `{test}` |",
            slow.requests
        )
    }
}

fn short(time: Duration) -> String {
    if time.as_millis() < 1000 { format!("{} ms", time.as_millis()) } else { format!("{:.1} s", time.as_secs_f64()) }
}

/// The rows of one test; printed when it ends, also when it fails, and appended to the file that [`REPORT`] names.
#[derive(Debug)]
pub struct Report {
    datapath: &'static str,
    test: String,
    rows: Vec<Row>,
}

impl Report {
    /// A table without rows. It knows the test by its thread, so it is made there.
    pub fn new(datapath: &Datapath) -> Self {
        let test = format!("{} {}", binary(), std::thread::current().name().unwrap_or_default());
        Self { datapath: datapath.name(), test, rows: Vec::new() }
    }

    /// Adds a row.
    pub fn add(&mut self, fault: &str, seen: &Recorded, right_after: Duration) {
        let (requests, failed) = (seen.requests, seen.failures.len());
        let (datapath, test) = (self.datapath, self.test.clone());
        let slow = seen.slow;
        self.rows.push(Row { fault: fault.to_owned(), datapath, requests, failed, slow, right_after, test });
    }

    /// The rows so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let lines: String = self.rows.iter().map(|row| format!("{row}\n")).collect();
        println!("| fault | datapath | requests | failed | slow | longest | right again after | test |\n{lines}");
        if let Some(path) = std::env::var_os(REPORT) {
            let append = |mut file: File| file.write_all(lines.as_bytes());
            if let Err(error) = File::options().create(true).append(true).open(&path).and_then(append) {
                eprintln!("cannot write the report to {}: {error}", path.display());
            }
        }
    }
}

/// The name of the running test binary, without the hash that cargo appends.
fn binary() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.rsplit_once('-').map_or(name.clone(), |(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_line_of_markdown() {
        let mut report = Report::new(&Datapath::Nftables);
        let slow = Slow { requests: 3, in_a_row: 1, longest: Duration::from_millis(1042) };
        let seen = Recorded { requests: 1200, failures: Vec::new(), slow };
        report.add("kill -9", &seen, Duration::from_millis(90));
        report.add("API server away", &seen, Duration::from_millis(2345));
        let lines: Vec<_> = report.rows().iter().map(ToString::to_string).collect();
        let test = "kubeferry_tests faults::report::tests::a_row_is_a_line_of_markdown";
        assert_eq!(lines[0], format!("| kill -9 | nftables | 1200 | 0 | 3 | 1.0 s | 90 ms | `{test}` |"));
        assert!(lines[1].contains("| 2.3 s |"), "{}", lines[1]);
    }
}
