//! `cargo test` to its end, shown and summed up, and once more for tests that failed.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, bail};

use crate::cargo::cargo;
use crate::outcome::Outcome;
use crate::test::FEATURES;
use crate::{interrupt, step};

/// How many tests may fail at most to be run again: where more do, it is not the machine.
const MOST_RETRIED: usize = 3;

/// Some test binaries of the workspace.
#[derive(Clone, Copy)]
pub struct Suite<'a> {
    /// Arguments of `cargo test` that say which.
    pub which: &'a [&'a str],
    /// Passed on to each.
    pub pass_on: &'a [String],
    /// What the tests have to know.
    pub variables: &'a [(&'a str, &'a Path)],
    /// How often tests that failed are run again, alone.
    pub retries: u32,
}

impl Suite<'_> {
    /// Runs all of it and sums it up, what was left out included.
    ///
    /// # Errors
    /// A test failed, and again where it was run again.
    pub fn run(self) -> anyhow::Result<()> {
        step::start("testing");
        let (mut passed, mut sum) = self.once(self.pass_on)?;
        step::start(format!(
            "{} passed, {} failed, {} ignored, {} filtered out",
            sum.passed, sum.failed, sum.ignored, sum.filtered_out
        ));
        if std::env::var_os("KUBEFERRY_TEST_KUBECONFIG").is_none() {
            step::note("the scripted API server stood in for a real one: KUBEFERRY_TEST_KUBECONFIG names none");
        }
        sum.failures().for_each(step::note);
        for _ in 0..self.retries {
            let Some(names) = sum.repeatable().filter(|names| !passed && (1..=MOST_RETRIED).contains(&names.len()))
            else {
                break;
            };
            let names_text = names.join(", ");
            step::start(format!("once more, alone: {names_text}"));
            let count = names.len();
            let only =
                ["--exact".to_owned(), "--test-threads=1".to_owned()].into_iter().chain(names).collect::<Vec<_>>();
            (passed, sum) = self.once(&only)?;
            passed &= sum.passed >= count;
            sum.failures().for_each(step::note);
            if passed {
                step::start(format!("FLAKY, failed above and passed alone: {names_text}"));
            }
        }
        if !passed {
            bail!("tests failed");
        }
        Ok(())
    }

    /// Whether `cargo test` succeeded, and what its tests said, which is shown, too.
    fn once(self, pass_on: &[String]) -> anyhow::Result<(bool, Outcome)> {
        let mut command = cargo();
        command.args(["test", "--no-fail-fast"]).args(FEATURES).args(self.which).arg("--").args(pass_on);
        command.envs(self.variables.iter().copied());
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo test")?;
        let stdout = child.stdout.take().context("cargo test has no output")?;
        let reader = std::thread::spawn(move || {
            let mut sum = Outcome::default();
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                println!("{line}");
                sum.add(&line);
            }
            sum
        });
        let status = interrupt::wait(&mut child)?;
        let Ok(sum) = reader.join() else { bail!("cannot read the tests' output") };
        Ok((status.success(), sum))
    }
}
