//! The terminal: keys in, screens out. The proxy is asked on another thread, so that keys never wait for it.

use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::data::{self, Data, Wanted};
use super::draw::draw;
use super::lately::Lately;
use super::view::{Effect, View};
use crate::running::RunningProxy;

/// How long keys are waited for before facts are looked for.
const TICK: Duration = Duration::from_millis(50);

type Answer = (Wanted, anyhow::Result<Data>);

/// The thread that asks the proxy.
struct Asking {
    asks: Sender<Wanted>,
    facts: Receiver<Answer>,
    /// Between two questions.
    interval: Duration,
}

/// Shows `first`, and what comes every `interval`, until told to end, or `count` times.
///
/// # Errors
/// The terminal fails. It is left as it was.
pub fn run(proxy: RunningProxy, view: View, first: Data, interval: Duration, count: Option<u64>) -> anyhow::Result<()> {
    let (asks, wanted) = channel::<Wanted>();
    let (answers, facts) = channel::<Answer>();
    std::thread::Builder::new().name("top".to_owned()).spawn(move || answer(&proxy, &wanted, &answers))?;
    let told = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, told.clone())?;
    }
    end_when_hung_up()?;
    let mut terminal = ratatui::try_init()?;
    let asking = Asking { asks, facts, interval };
    let result = follow(&mut terminal, view, first, &asking, &|shown| {
        count.is_some_and(|count| shown >= count) || told.load(Ordering::Relaxed)
    });
    ratatui::try_restore()?;
    result
}

/// Ends the process when its terminal goes away: there is nobody to show anything to, and nothing to give back. Where no signal
/// tells that, reading of keys would go round and round at the end of file.
fn end_when_hung_up() -> anyhow::Result<()> {
    let keys = if std::io::stdin().is_terminal() {
        std::io::stdin().as_fd().try_clone_to_owned()?
    } else {
        File::open("/dev/tty").context("no terminal to read keys from")?.into()
    };
    let watch = move || {
        // Of a hang-up a poll that asks for nothing is told.
        while let Ok(0) | Err(Errno::INTR) = poll(&mut [PollFd::new(&keys, PollFlags::empty())], None) {}
        std::process::exit(128 + SIGHUP);
    };
    std::thread::Builder::new().name("hang-up".to_owned()).spawn(watch)?;
    Ok(())
}

/// Asks for the newest of what is wanted.
fn answer(proxy: &RunningProxy, wanted: &Receiver<Wanted>, answers: &Sender<Answer>) {
    while let Ok(mut next) = wanted.recv() {
        while let Ok(newer) = wanted.try_recv() {
            next = newer;
        }
        let fetched = data::fetch(proxy, &next);
        if answers.send((next, fetched)).is_err() {
            return;
        }
    }
}

fn follow(
    terminal: &mut DefaultTerminal,
    mut view: View,
    mut data: Data,
    asking: &Asking,
    ends: &dyn Fn(u64) -> bool,
) -> anyhow::Result<()> {
    let (mut asked, mut shown, mut problem) = (Instant::now(), 1u64, None);
    let mut lately = Lately::default();
    lately.note(asked, &mut data);
    let mut changed = true;
    loop {
        if changed {
            terminal.draw(|frame| draw(frame, &view, &data, problem.as_deref()))?;
            changed = false;
        }
        if ends(shown) {
            return Ok(());
        }
        let mut ask = !view.paused && asked.elapsed() >= asking.interval;
        if event::poll(TICK)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match view.press(key, &data) {
                    Effect::Quit => return Ok(()),
                    Effect::Ask => ask = true,
                    Effect::None => {}
                },
                _ => {}
            }
            changed = true;
        }
        if ask {
            asked = Instant::now();
            // The thread ends with this function only.
            let _ = asking.asks.send(view.wanted());
        }
        match asking.facts.recv_timeout(Duration::ZERO) {
            // What was asked for before another key is not shown.
            Ok((wanted, _)) if wanted != view.wanted() => {}
            Ok((_, Ok(newer))) => {
                (data, problem, changed) = (newer, None, true);
                lately.note(Instant::now(), &mut data);
                shown += 1;
                view.fit(&data);
            }
            Ok((_, Err(error))) => (problem, changed) = (Some(format!("{error:#}")), true),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
    }
}
