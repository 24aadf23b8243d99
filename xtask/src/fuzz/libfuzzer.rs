//! A parser's program of cargo-fuzz: libFuzzer, its arguments, and what it tells.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use crate::cargo::workspace;
use crate::interrupt;

/// How long one input may take, in seconds, on a busy machine.
const SLOWEST: u32 = 25;
/// Memory that one input may take, in MiB, AddressSanitizer's share included.
const MOST_MEMORY: u32 = 2_048;
/// For how long a case that was found is made smaller.
const SHRINKING: Duration = Duration::from_secs(30);

/// One parser.
#[derive(Clone, Debug)]
pub struct Fuzzer {
    pub parser: String,
    pub program: PathBuf,
}

/// What a run came to.
#[derive(Debug)]
pub struct Run {
    pub progress: Progress,
    pub found: Option<Case>,
}

/// Something that was found.
#[derive(Debug)]
pub struct Case {
    /// In `fuzz/regressions`.
    pub file: PathBuf,
    /// What was said of it.
    pub why: String,
}

impl Fuzzer {
    /// What is in the repository for it: `corpus`, or `regressions`.
    pub fn folder(&self, of: &str) -> PathBuf {
        workspace().join("fuzz").join(of).join(&self.parser)
    }

    /// What may be thrown away; made where it is missing.
    fn scratch(&self, of: &str) -> anyhow::Result<PathBuf> {
        let folder = workspace().join("target/fuzz").join(of).join(&self.parser);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    /// Runs to the end, with everything that is said in a file.
    fn libfuzzer(&self, log: &str, set: impl FnOnce(&mut Command)) -> anyhow::Result<(ExitStatus, String)> {
        let log = self.scratch("logs")?.join(log);
        let mut command = Command::new(&self.program);
        // For the program that has all of them.
        command.env("KUBEFERRY_FUZZ_PARSER", &self.parser);
        command.args([format!("-timeout={SLOWEST}"), format!("-rss_limit_mb={MOST_MEMORY}")]);
        set(&mut command);
        let file = std::fs::File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        let status = interrupt::wait(&mut child)?;
        Ok((status, String::from_utf8_lossy(&std::fs::read(&log)?).into_owned()))
    }

    /// Makes inputs up for this long, from what is known and what earlier runs have reached; ends with the first that fails.
    pub fn run(&self, time: Duration) -> anyhow::Result<Run> {
        let (reached, crashes) = (self.scratch("corpus")?, self.scratch("crashes")?);
        let (status, said) = self.libfuzzer("run", |command| {
            command.arg(format!("-max_total_time={}", time.as_secs().max(1)));
            command.arg(format!("-artifact_prefix={}/", crashes.display()));
            command.arg("-print_final_stats=1").arg(reached).arg(self.folder("corpus"));
            let regressions = self.folder("regressions");
            command.args(regressions.is_dir().then_some(regressions));
        })?;
        let progress = Progress::of(&said);
        if status.success() {
            return Ok(Run { progress, found: None });
        }
        let Some((_, crash)) = said.lines().rev().find_map(|line| line.split_once("Test unit written to ")) else {
            let log = self.scratch("logs")?.join("run");
            bail!("{} ended ({status}) and left nothing behind; {} tells more", self.parser, log.display());
        };
        let file = self.keep(Path::new(crash))?;
        Ok(Run { progress, found: Some(Case { file, why: why(&said) }) })
    }

    /// Makes a case smaller, and puts it where the tests find it.
    fn keep(&self, crash: &Path) -> anyhow::Result<PathBuf> {
        let smaller = crash.with_extension("smaller");
        // It ends when nothing smaller fails, and with a failure.
        self.libfuzzer("shrink", |command| {
            command.args(["-minimize_crash=1".to_owned(), format!("-max_total_time={}", SHRINKING.as_secs())]);
            command.arg(format!("-exact_artifact_path={}", smaller.display())).arg(crash);
        })?;
        let bytes = std::fs::read(&smaller).or_else(|_| std::fs::read(crash))?;
        let name: String = Sha256::digest(&bytes).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let folder = self.folder("regressions");
        std::fs::create_dir_all(&folder)?;
        let file = folder.join(name);
        std::fs::write(&file, bytes)?;
        Ok(file)
    }

    /// Adds to the corpus what reaches edges that nothing in it reaches, as few inputs as can be. How often an edge is passed
    /// does not count: that would be thousands.
    pub fn merge(&self) -> anyhow::Result<()> {
        let reached = self.scratch("corpus")?;
        let (status, _) = self.libfuzzer("merge", |command| {
            command.args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"]);
            command.arg(self.folder("corpus")).arg(reached);
        })?;
        if !status.success() {
            bail!("the corpus of {} cannot be merged ({status})", self.parser);
        }
        Ok(())
    }
}

/// The first line of a panic and what it says, or of AddressSanitizer's or libFuzzer's finding.
fn why(said: &str) -> String {
    let mut lines = said.lines().skip_while(|line| !line.contains(" panicked at ") && !line.contains("ERROR: "));
    let [first, second] = [lines.next(), lines.next()].map(Option::unwrap_or_default);
    if first.contains(" panicked at ") { format!("{first} {second}") } else { first.to_owned() }
}

/// Runs, and what was reached, by libFuzzer's last lines.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Progress {
    pub runs: u64,
    pub per_second: u64,
    /// Edges of the program's flow.
    pub edges: u64,
    /// Inputs that reach something that the others do not.
    pub inputs: u64,
}

impl Progress {
    fn of(said: &str) -> Self {
        let number = |text: &str| text.trim().split(['/', ' ']).next().and_then(|digits| digits.parse().ok());
        let after = |word: &str| said.lines().rev().find_map(|line| number(line.split_once(word)?.1)).unwrap_or(0);
        Self {
            runs: after("stat::number_of_executed_units:"),
            per_second: after("stat::average_exec_per_sec:"),
            edges: after(" cov: "),
            inputs: after(" corp: "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_summed_up() {
        let said = "#2\tINITED cov: 52 ft: 53 corp: 1/1b exec/s: 0 rss: 41Mb\n\
            #100\tDONE   cov: 230 ft: 400 corp: 12/1024b lim: 4 exec/s: 50 rss: 60Mb\n\
            stat::number_of_executed_units: 100\nstat::average_exec_per_sec:     50\n";
        assert_eq!(Progress::of(said), Progress { runs: 100, per_second: 50, edges: 230, inputs: 12 });
        assert_eq!(Progress::of(""), Progress::default());
    }

    #[test]
    fn what_failed_is_named() {
        let panic = "#7\tNEW\n\nthread '<unnamed>' (1) panicked at proxy/src/x.rs:1:2:\nno such luck\nnote: run with";
        assert_eq!(why(panic), "thread '<unnamed>' (1) panicked at proxy/src/x.rs:1:2: no such luck");
        let slow =
            "ALARM: working on the last Unit for 26 seconds\n==1== ERROR: libFuzzer: timeout after 26 seconds\nx";
        assert_eq!(why(slow), "==1== ERROR: libFuzzer: timeout after 26 seconds");
    }
}
