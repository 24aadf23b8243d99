//! What the commands print. Whoever read it may have gone (`kubeferry plan | head -1`): that is no reason to panic.

use std::io::{self, Write};
use std::sync::mpsc;
use std::time::Duration;

/// Why standard output did not take something.
#[derive(thiserror::Error, Debug)]
pub enum OutputError {
    /// Whoever read it has gone: there is nothing left to do, and nobody to be told.
    #[error("nobody reads standard output any more")]
    ReaderGone,
    /// It cannot be written.
    #[error("cannot write to standard output: {0}")]
    Other(io::Error),
}

/// Writes `text` to standard output as it is, at once.
///
/// # Errors
/// [`OutputError`].
pub fn say(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputError::ReaderGone,
        _ => OutputError::Other(error),
    })
}

/// Writes a line to standard error. Nobody may listen there any more, which is no fault of the command.
pub fn complain(line: &str) {
    // In one piece: other processes may write to the same terminal.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The same for a last word: where standard error is a pipe that nobody reads, it is given up after `time`.
pub fn complain_within(line: String, time: Duration) {
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        complain(&line);
        let _ = said.send(());
    });
    let _ = heard.recv_timeout(time);
}

/// An error with its causes; one that its message names already is not said twice.
pub fn whole(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let busy = || io::Error::new(io::ErrorKind::AddrInUse, "in use");
        assert_eq!(whole(&anyhow::Error::new(busy()).context("cannot bind")), "cannot bind: in use");
        let named = anyhow::Error::new(busy()).context("cannot bind: in use; free it").context("cannot serve");
        assert_eq!(whole(&named), "cannot serve: cannot bind: in use; free it");
    }
}
