//! `kubeferry top`: what goes by, Service by Service, in a terminal; as plain text where there is none. What is shown is what
//! `/api/v1/` of the running proxy tells.
//!
//! `view` (what is shown, and what a key does to it), `draw` with `list` and `service`, `plain`, what both say, `words`, in the room
//! that there is, `fit`, and `lately`, which compares looks, are pure; `data` asks the proxy, `terminal` has the screen.

mod data;
mod draw;
mod fit;
mod lately;
mod list;
mod plain;
mod service;
mod terminal;
mod view;
mod words;

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use crate::args::TopArgs;
use crate::commands::output::{self, OutputError};
use crate::running::RunningProxy;

use data::Data;
use lately::Lately;
use view::View;

/// For how long plain text waits for rates at most, where an interval is shorter: they need two looks at the counters, a second apart, and
/// counters are looked at no more often than the proxy has time for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Shows it until told to end; without a terminal, `--count` times, or once: at first when there was time to count.
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
    let mut lately = Lately::default();
    let mut look = || -> anyhow::Result<Data> {
        let mut data = data::fetch(&proxy, &view.wanted())?;
        lately.note(Instant::now(), &mut data);
        Ok(data)
    };
    let (start, mut data) = (Instant::now(), look()?);
    while lacks(&data) && start.elapsed() < PATIENCE.max(args.interval) {
        std::thread::sleep(args.interval);
        data = look()?;
    }
    for number in 1.. {
        match output::say(&plain::text(&view, &data)) {
            Err(OutputError::ReaderGone) => break,
            result => result?,
        }
        if number >= args.count.unwrap_or(1) {
            break;
        }
        std::thread::sleep(args.interval);
        data = look()?;
    }
    Ok(())
}

/// Whether something that is counted is not known yet, as it takes another look: rates, or what a Service got lately.
fn lacks(data: &Data) -> bool {
    let traffic = &data.node.traffic;
    let no_rate = traffic.connections_per_second.is_none() && data.node.counts.ports > 0;
    let no_lately = data.lately.iter().any(|spread| spread.over.is_zero());
    traffic.counts_connections && (no_rate || no_lately)
}
