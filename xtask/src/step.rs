//! What a command is doing, in short lines, and how it runs other programs.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::interrupt;

/// A new step: `==> building kubeferry`.
pub fn start(what: impl AsRef<str>) {
    say(&format!("==> {}", what.as_ref()));
}

/// A detail of the step.
pub fn note(what: impl AsRef<str>) {
    say(&format!("    {}", what.as_ref()));
}

/// The last words of a command that failed: the error and every cause of it.
pub fn failed(error: &anyhow::Error) {
    say(&format!("==> FAILED: {error:#}"));
}

/// One line to standard output, which may be a closed pipe: that is not our failure.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// `83 s`, `1.24 s`, `12.3 ms` or `0.42 ms`.
pub fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        s if s >= 10.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Runs a program with our output, without input. A failure names the whole command line.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    interrupt::check()?;
    let line = command_line(command);
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot start `{line}`"))?;
    let status = interrupt::wait(&mut child)?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a short program quietly and gives its standard output. A failure carries its standard error.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let line = command_line(command);
    let out: Output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{line}`"))?;
    if !out.status.success() {
        bail!("`{line}` failed: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Runs a short program quietly with `input` as its standard input.
pub fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let line = command_line(command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{line}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early closes the pipe; its own message says more than ours.
        let _ = stdin.write_all(input.as_bytes());
    }
    let out = child.wait_with_output().with_context(|| format!("waiting for `{line}`"))?;
    if !out.status.success() {
        bail!("`{line}` failed: {}: {}", out.status, String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(())
}

/// The command as one would type it.
fn command_line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_keep_three_figures() {
        let shown: Vec<_> = [83.4, 1.239, 0.0123, 0.000_42].map(Duration::from_secs_f64).map(duration).into();
        assert_eq!(shown, ["83 s", "1.24 s", "12.3 ms", "0.42 ms"]);
    }

    #[test]
    fn a_failure_names_the_command_and_its_words() {
        let error = output(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"])).unwrap_err().to_string();
        assert!(
            error.contains("sh -c") && error.contains("exit status: 3") && error.contains("no such luck"),
            "{error}"
        );
        feed(&mut Command::new("cat"), "x").unwrap();
    }
}
