//! Whether the kernel has every row that is wanted and no other: `kubeferry plan --diff`.

use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::client::until_for;

/// What a test says that waited for that in vain. It has failed, whatever comes of it a second time (`xtask/src/outcome.rs`, which has
/// the words, too).
const STAYED: &str = "the kernel to have exactly what is wanted";

/// Waits until what `plan --diff` prints is nothing; how long that took.
///
/// # Errors
/// It is not within this time: what differs is part of the message.
pub fn until_exact(within: Duration, mut plan: impl FnMut() -> Result<Output>) -> Result<Duration> {
    let since = Instant::now();
    let mut differs = String::new();
    let is_exact = || {
        differs = match plan() {
            Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => format!("{error:#}"),
        };
        differs.is_empty().then_some(())
    };
    let exact = until_for(within, STAYED, is_exact);
    exact.with_context(|| format!("it differs by:\n{differs}"))?;
    Ok(since.elapsed())
}
