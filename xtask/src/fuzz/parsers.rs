//! `cargo xtask fuzz parsers`: libFuzzer on every parser of what comes from outside; `fuzz/README.md` says what they are.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::cargo_fuzz;
use super::libfuzzer::{Fuzzer, Run};
use crate::cargo::workspace;
use crate::{ebpf, packages, step};

/// libFuzzer on every parser of what comes from outside, or on some of them
#[derive(clap::Args)]
pub struct Args {
    /// Only these: files of fuzz/fuzz_targets
    parsers: Vec<String>,
    /// How long, divided among all of them
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// Add what reaches more of the code to fuzz/corpus
    #[arg(long)]
    merge: bool,
    /// Take them as they were built last, whatever has changed since: building takes long
    #[arg(long)]
    no_build: bool,
    /// Some seconds with each, all in one program that is built in some minutes: by the stable Rust, so without AddressSanitizer
    #[arg(long, conflicts_with_all = ["minutes", "merge", "no_build"])]
    short: bool,
}

/// How long a short run is with each parser.
const SHORT: Duration = Duration::from_secs(4);
/// With those that follow objects or settings to rows: unoptimised, each input takes them tens of milliseconds.
const SHORT_OF_SLOW: Duration = Duration::from_secs(20);
const SLOW: [&str; 5] = ["annotations", "api_list", "api_watch", "command_line", "manifests"];

/// Builds them and runs one after the other. What is found is in `fuzz/regressions` afterwards, and fails the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let parsers = chosen(&args.parsers, known()?)?;
    if !args.no_build {
        packages::ensure(&[packages::BUILD, packages::CPLUSPLUS])?;
        ebpf::build()?;
    }
    let all_in_one = if args.short { Some(cargo_fuzz::build_in_one()?) } else { None };
    if !args.short && !args.no_build {
        cargo_fuzz::build()?;
    }
    let programs = cargo_fuzz::programs();
    let minutes = Duration::from_secs(args.minutes * 60) / u32::try_from(parsers.len())?;
    let share = |parser: &str| if args.short { short(parser) } else { minutes };
    let all = parsers.iter().map(|parser| share(parser)).sum();
    step::start(format!("{} parsers, {} in all", parsers.len(), step::duration(all)));
    let (mut cases, mut runs) = (Vec::new(), 0);
    for parser in parsers {
        let share = share(&parser);
        let program = all_in_one.clone().unwrap_or_else(|| programs.join(&parser));
        let fuzzer = Fuzzer { parser, program };
        let Run { progress, found } = fuzzer.run(share)?;
        step::note(format!(
            "{:<15} {:>10} runs {:>7}/s {:>7} edges {:>6} inputs",
            fuzzer.parser, progress.runs, progress.per_second, progress.edges, progress.inputs
        ));
        runs += progress.runs;
        if let Some(case) = found {
            step::note(format!("  {}", case.why));
            cases.push((fuzzer, case));
        } else if args.merge {
            fuzzer.merge()?;
        }
    }
    if cases.is_empty() {
        step::start(format!("nothing was found with {runs} inputs"));
        return Ok(());
    }
    step::start("found; this runs each once more, and so does `cargo xtask test unit -- fuzzing`:");
    for (fuzzer, case) in &cases {
        let parser = format!("KUBEFERRY_FUZZ_PARSER={} ", fuzzer.parser);
        let variable = if args.short { parser.as_str() } else { "" };
        step::note(format!("{variable}{} {}", relative(&fuzzer.program), relative(&case.file)));
    }
    bail!("{} of the parsers failed", cases.len())
}

/// How long a short run is with a parser.
fn short(parser: &str) -> Duration {
    if SLOW.contains(&parser) { SHORT_OF_SLOW } else { SHORT }
}

fn relative(path: &Path) -> String {
    path.strip_prefix(workspace()).unwrap_or(path).display().to_string()
}

/// The names of all.
fn known() -> anyhow::Result<Vec<String>> {
    let folder = workspace().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        names.extend(entry?.path().file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Those that were asked for, or all.
fn chosen(asked: &[String], known: Vec<String>) -> anyhow::Result<Vec<String>> {
    if let Some(strange) = asked.iter().find(|name| !known.contains(name)) {
        bail!("there is no parser `{strange}`; there are: {}", known.join(", "));
    }
    Ok(if asked.is_empty() { known } else { asked.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_slow_are_there_and_a_short_run_takes_some_minutes() {
        let all = known().unwrap();
        assert!(SLOW.iter().all(|slow| all.iter().any(|name| name == slow)), "{all:?}");
        assert!(all.iter().map(|name| short(name)).sum::<Duration>() < Duration::from_mins(4));
    }

    #[test]
    fn parsers_are_chosen_by_name() {
        let all = known().unwrap();
        assert!(all.iter().any(|name| name == "manifests"));
        assert_eq!(chosen(&[], all.clone()).unwrap(), all);
        assert_eq!(chosen(&["sockets".into()], all.clone()).unwrap(), ["sockets"]);
        assert!(chosen(&["nothing".into()], all).unwrap_err().to_string().contains("manifests, "));
    }
}
