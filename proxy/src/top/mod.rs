//! `kubeferry top`: what goes by, Service by Service, in a terminal; as plain text where there is none. What is shown is what
//! `/api/v1/` of the running proxy tells.
//!
//! `view` (what is shown, and what a key does to it), `draw`, `plain` and what both
//! say, `words`, are pure; `data` asks the proxy, `terminal` has the screen.

mod data;
mod draw;
mod plain;
mod terminal;
mod view;
mod words;

use std::io::IsTerminal as _;

use crate::args::TopArgs;
use crate::commands::output::{self, OutputError};
use crate::running::RunningProxy;

use view::View;

/// Shows it until told to end; without a terminal, `--count` times, or once.
///
/// # Errors
/// No proxy answers at the start, or the terminal fails. What fails later is shown and tried again.
pub fn top(args: &TopArgs) -> anyhow::Result<()> {
    let proxy = RunningProxy::new(&args.url);
    let view = View::new(args.sort, &args.search, args.service.as_deref());
    if std::io::stdout().is_terminal() && std::io::stdin().is_terminal() && !args.plain {
        let first = data::fetch(&proxy, &view.wanted())?;
        return terminal::run(proxy, view, first, args.interval, args.count);
    }
    for number in 1.. {
        let data = data::fetch(&proxy, &view.wanted())?;
        match output::say(&plain::text(&view, &data)) {
            Err(OutputError::ReaderGone) => break,
            result => result?,
        }
        if number >= args.count.unwrap_or(1) {
            break;
        }
        std::thread::sleep(args.interval);
    }
    Ok(())
}
