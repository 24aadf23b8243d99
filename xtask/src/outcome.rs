//! What libtest prints, summed up: how many tests passed and failed, and what those that failed said last.

/// Lines of a panic's message that are repeated.
const LINES: usize = 12;
/// Characters of each.
const WIDTH: usize = 600;
/// Words of a failed test that is not run again. `seed`: it was drawn by chance, and another time it is another test. The next are of
/// every test that asks all the time (`LOST` of `tests/src/load.rs`): a request that is lost once in many runs is what these look for,
/// and another run without says nothing about it. So it is with what stayed wrong in the kernel after a fault (`STAYED` of
/// `tests/src/faults/exact.rs`), and with what a stranger's text or packet must never do.
const FINAL: [&str; 6] = [
    "seed",
    "requests failed",
    "the kernel to have exactly what is wanted",
    "injected",
    "an old event was taken over",
    "a source that no range has is served",
];

/// The sum of the outputs of test binaries, line by line.
#[derive(Default, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
    pub filtered_out: usize,
    /// Test binaries that have begun, and that came to an end.
    binaries: [usize; 2],
    failures: Vec<Failure>,
    /// What the next line may belong to.
    inside: Inside,
}

/// A test that failed, with the first words of each of its panics.
#[derive(Default, PartialEq, Eq, Debug)]
struct Failure {
    test: String,
    said: Vec<String>,
    /// It says one of [`FINAL`].
    is_final: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
enum Inside {
    #[default]
    Nothing,
    /// What a failed test has printed.
    Output,
    /// Lines of a panic, so many so far.
    Panic(usize),
}

impl Outcome {
    /// Takes the next line.
    pub fn add(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.inside = Inside::Nothing;
            self.binaries[1] += 1;
            return self.count(counts);
        }
        let begins = line.strip_prefix("running ").and_then(|rest| rest.split_once(' '));
        if begins.is_some_and(|(number, what)| number.parse::<usize>().is_ok() && ["test", "tests"].contains(&what)) {
            self.binaries[0] += 1;
        }
        if line == "failures:" {
            self.inside = Inside::Nothing;
            return;
        }
        if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.failures.push(Failure { test: test.to_owned(), ..Failure::default() });
            self.inside = Inside::Output;
            return;
        }
        if let (Inside::Output | Inside::Panic(_), Some(failure)) = (self.inside, self.failures.last_mut()) {
            let line = line.to_ascii_lowercase();
            failure.is_final |= FINAL.iter().any(|word| line.contains(word));
        }
        let panics = line.starts_with("thread '") && line.contains(" panicked at ");
        self.inside = match self.inside {
            Inside::Nothing => return,
            _ if panics || line.starts_with("Error: ") => Inside::Panic(1),
            Inside::Panic(lines) if lines < LINES && !ends_a_panic(line) => Inside::Panic(lines + 1),
            _ => Inside::Output,
        };
        if let (Inside::Panic(_), Some(failure)) = (self.inside, self.failures.last_mut()) {
            failure.said.push(line.chars().take(WIDTH).collect());
        }
    }

    /// `ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s`
    fn count(&mut self, counts: &str) {
        let Some((_, counts)) = counts.split_once(". ") else { return };
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else { continue };
            let Ok(number) = number.parse::<usize>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                "filtered out" => self.filtered_out += number,
                _ => {}
            }
        }
    }

    /// The tests that failed, where all of them can be run again and would say something: every binary came to its end, and none
    /// was drawn by chance, has lost a request or found the kernel wrong for good.
    pub fn repeatable(&self) -> Option<Vec<String>> {
        let [begun, ended] = self.binaries;
        let all = begun == ended && self.failures.len() == self.failed && !self.failures.iter().any(|f| f.is_final);
        all.then(|| self.failures.iter().map(|failure| failure.test.clone()).collect())
    }

    /// The tests that failed and what they said, so that nobody has to look for it in an hour of output.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.failures.iter().flat_map(|failure| {
            let said = failure.said.iter().filter(|line| !line.is_empty()).map(|line| format!("    {line}"));
            std::iter::once(format!("failed: {}", failure.test)).chain(said)
        })
    }
}

/// Whether the message is over before this line.
fn ends_a_panic(line: &str) -> bool {
    line.starts_with("note: run with ") || line == "stack backtrace:"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.add(line));
        outcome
    }

    #[test]
    fn results_are_summed_over_binaries() {
        let sum = outcome(
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
             test x::y ... ok\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        );
        assert_eq!((sum.passed, sum.failed, sum.ignored, sum.filtered_out), (14, 1, 1, 3));
        assert_eq!(sum.failures().count(), 0);
    }

    #[test]
    fn what_failed_is_repeated_with_what_it_said() {
        let sum = outcome(
            "thread 'elsewhere' panicked at shown/and/passed.rs:1:1:\n\nfailures:\n\n---- a::b stdout ----\nmuch log\n\n\
             thread 'a::b' (77) panicked at tests/a.rs:12:5:\nassertion failed: left\n  right: 2\n\
             note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\nmore log\n\n\
             thread '<unnamed>' (78) panicked at tests/a.rs:1:1:\nanother\nstack backtrace:\n   0: x\n\
             ---- c stdout ----\nError: no such luck\n\n\nfailures:\n    a::b\n    c\n\n\
             test result: FAILED. 2 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n",
        );
        let told = [
            "failed: a::b",
            "    thread 'a::b' (77) panicked at tests/a.rs:12:5:",
            "    assertion failed: left",
            "      right: 2",
            "    thread '<unnamed>' (78) panicked at tests/a.rs:1:1:",
            "    another",
            "failed: c",
            "    Error: no such luck",
        ];
        assert_eq!(sum.failures().collect::<Vec<_>>(), told);
    }

    #[test]
    fn what_cannot_be_run_again_alike_is_not() {
        let failed = |binary: &str, said: &str, end: &str| {
            let text = format!("running 2 tests\n\n---- {binary} stdout ----\n{said}\n\nfailures:\n    {binary}\n\n");
            if end.is_empty() { "running 1 test\nsignal: 11".to_owned() } else { text + end }
        };
        let end = "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        assert_eq!(outcome(&failed("a", "x", end)).repeatable(), Some(vec!["a".to_owned()]));
        assert_eq!(outcome(&failed("a", "KUBEFERRY_FAULTS_SEED=7", end)).repeatable(), None);
        let lost = "thread 'a' (77) panicked at tests/a.rs:1:1:\n2 of 1034 requests failed, the first of them:\nUDP";
        assert_eq!(outcome(&failed("a", lost, end)).repeatable(), None);
        let stayed = "called `Result::unwrap()` on an `Err` value: it differs by:\n- endpoints4 10.96.0.10\n\nCaused by:\n    \
            waited 120s for the kernel to have exactly what is wanted";
        assert_eq!(outcome(&failed("a", stayed, end)).repeatable(), None);
        assert_eq!(
            outcome(&failed("a", "waited 30s for every client to be served", end)).repeatable(),
            Some(vec!["a".to_owned()])
        );
        assert_eq!(outcome(&(failed("a", "x", end) + &failed("b", "x", ""))).repeatable(), None);
    }

    #[test]
    fn what_is_final_is_told_in_the_words_that_are_looked_for() {
        let load = include_str!("../../tests/src/load.rs");
        assert!(load.contains(&format!("pub const LOST: &str = {:?};", FINAL[1])));
        let exact = include_str!("../../tests/src/faults/exact.rs");
        assert!(exact.contains(&format!("const STAYED: &str = {:?};", FINAL[2])));
    }

    #[test]
    fn long_words_are_cut() {
        let line = "x".repeat(2 * WIDTH);
        let lines = vec![line; 2 * LINES].join("\n");
        let sum = outcome(&format!("---- a stdout ----\nthread 'a' panicked at a.rs:1:1:\n{lines}\n"));
        assert_eq!(sum.failures().map(|line| line.len()).collect::<Vec<_>>()[2..], [WIDTH + 4; LINES - 1]);
    }
}
