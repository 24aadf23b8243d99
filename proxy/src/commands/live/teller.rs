//! Tells of packets in a thread of its own: whoever reads may be slow or not read at all, and the proxy may not answer. Neither may
//! hold up the end of the trace.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

use super::lines;
use super::model::Model;
use crate::args::TraceOutput;
use crate::commands::output::{self, OutputError};
use crate::live::journey::Journey;
use crate::live::judge::{Judgement, judge};
use crate::running::RunningProxy;

/// Packets that wait to be told of; what is seen beyond is counted.
const WAITING: usize = 1024;
/// For how long after a write the model may know other rows than a packet met: a packet is told of up to a second later.
const CHANGING: SignedDuration = SignedDuration::from_secs(2);

/// The thread, as seen by the one who follows.
#[derive(Debug)]
pub struct Teller {
    /// Closed: no more come.
    journeys: Option<SyncSender<(Timestamp, Journey)>>,
    done: oneshot::Receiver<()>,
    is_done: bool,
    shared: Arc<Shared>,
    taken: u64,
    /// What found no room.
    without_room: u64,
}

#[derive(Debug, Default)]
struct Shared {
    told: AtomicU64,
    differ: AtomicU64,
    open: AtomicU64,
    /// The trace ends: the proxy is not waited for any more.
    ending: AtomicBool,
    failed: Mutex<Option<anyhow::Error>>,
}

/// What became of the packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// Those that were told of.
    pub told: u64,
    /// Of these, those that did not go where the model sends them.
    pub differ: u64,
    /// Of these, those that could not be held to what the model says.
    pub open: u64,
    /// Those that were seen, and not told of.
    pub untold: u64,
}

impl Teller {
    /// Starts the thread, which ends by itself after `count` packets.
    pub fn start(proxy: RunningProxy, output: TraceOutput, count: Option<u64>) -> Self {
        let (journeys, coming) = sync_channel(WAITING);
        let (over, done) = oneshot::channel();
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        // Not of the runtime, which would wait for it at its end.
        std::thread::spawn(move || {
            let model = Model::new(proxy);
            if let Err(error) = tell(&coming, model, output, count, &theirs) {
                *theirs.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
            let _ = over.send(());
        });
        Self { journeys: Some(journeys), done, is_done: false, shared, taken: 0, without_room: 0 }
    }

    /// Takes a packet in that was seen just now.
    pub fn take(&mut self, journey: Journey) {
        let Some(journeys) = &self.journeys else { return };
        match journeys.try_send((Timestamp::now(), journey)) {
            Ok(()) => self.taken += 1,
            Err(TrySendError::Full(_)) => self.without_room += 1,
            // The thread has all that it was to tell of.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Waits until the thread has ended: there were enough packets, or nobody reads any more.
    pub async fn done(&mut self) {
        if !self.is_done {
            // It cannot be dropped without a word but by a panic, which is an end as well.
            let _ = (&mut self.done).await;
            self.is_done = true;
        }
    }

    /// No more packets come: waits until the thread has told of those that wait.
    pub async fn finish(&mut self) {
        self.shared.ending.store(true, Ordering::Release);
        self.journeys = None;
        self.done().await;
    }

    /// What was told until now.
    ///
    /// # Errors
    /// It could not be written.
    pub fn end(self) -> anyhow::Result<Told> {
        let number = |of: &AtomicU64| of.load(Ordering::Acquire);
        if let Some(error) = self.shared.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let Shared { told, differ, open, .. } = &*self.shared;
        let (told, differ, open) = (number(told), number(differ), number(open));
        // With `--count`, what came after the last one is nobody's loss.
        let waiting = if self.is_done { 0 } else { self.taken.saturating_sub(told) };
        let untold = waiting + self.without_room;
        Ok(Told { told, differ, open, untold })
    }
}

fn tell(
    coming: &Receiver<(Timestamp, Journey)>,
    mut model: Model,
    output: TraceOutput,
    count: Option<u64>,
    shared: &Shared,
) -> anyhow::Result<()> {
    let add = |to: &AtomicU64, is_one| to.fetch_add(u64::from(is_one), Ordering::AcqRel);
    for (at, journey) in coming {
        let told = model.ask(&journey, &shared.ending);
        let judgement = told.as_ref().ok().map(|told| match judge(&journey, told) {
            Judgement::Differs(_) if told.changed.is_some_and(|changed| at.duration_since(changed) < CHANGING) => {
                Judgement::Open(
                    "rows for this destination were written at that moment, and the model may know other ones than the packet met",
                )
            }
            judgement => judgement,
        });
        let text = match output {
            TraceOutput::Json => lines::json(at, &journey, told.as_ref().ok(), judgement.as_ref())?,
            TraceOutput::Text => lines::text(at, &journey, &told, judgement.as_ref()),
        };
        match output::say(&format!("{text}\n")) {
            Err(OutputError::ReaderGone) => break,
            result => result?,
        }
        add(&shared.differ, matches!(judgement, Some(Judgement::Differs(_))));
        add(&shared.open, matches!(judgement, None | Some(Judgement::Open(_))));
        let told = add(&shared.told, true) + 1;
        if count.is_some_and(|count| told >= count) {
            break;
        }
    }
    Ok(())
}
