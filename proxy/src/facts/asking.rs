//! How the servers ask the run loop: one question at a time, one snapshot for all who ask at one time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::{ServiceFacts, Snapshot};
use crate::desired::trace::{Flow, Trace};
use crate::state::objects::ObjectName;

/// How long the run loop has to answer: a load of a very large table may take seconds.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last snapshot stands in for one that the loop is too busy to take.
const BUSY: Duration = Duration::from_secs(2);
/// How old a snapshot may be while nothing has changed.
const UNCHANGED: Duration = Duration::from_secs(1);
/// Between two snapshots while things change: this, or more if they take long.
const CHANGED: Duration = Duration::from_millis(100);
/// Of the loop's time, snapshots take no more than one part in so many.
const PART: u32 = 20;
/// How long a snapshot that nobody asks for is kept.
const KEPT: Duration = Duration::from_secs(10);

/// A question to the run loop. Whoever asked may have gone.
#[derive(Debug)]
pub enum Ask {
    /// Everything, as it is now.
    Snapshot(oneshot::Sender<Arc<Snapshot>>),
    /// One Service whole; `None`: there is none of this name.
    Service(ObjectName, oneshot::Sender<Told<Option<ServiceFacts>>>),
    /// Where a packet would go.
    Trace(Flow, oneshot::Sender<Told<Trace>>),
    /// Look at the counters, for `/metrics`.
    Count(oneshot::Sender<()>),
}

/// What the run loop told.
#[derive(Debug)]
pub struct Told<T> {
    /// The facts.
    pub what: T,
    /// How much of the loop's time they took.
    pub took: Duration,
}

impl<T> Told<T> {
    /// What `make` makes now.
    pub fn by(make: impl FnOnce() -> T) -> Self {
        let start = Instant::now();
        Self { what: make(), took: start.elapsed() }
    }
}

/// The run loop's end.
pub type Asks = mpsc::Receiver<Ask>;

/// Asks the run loop. Clones ask the same loop and share its answers.
#[derive(Clone, Debug)]
pub struct Facts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asks: mpsc::Sender<Ask>,
    /// Goes up with every change; the run loop's.
    generation: Arc<AtomicU64>,
    last: Mutex<Option<Taken>>,
    /// Held by whoever takes the next.
    taking: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug)]
struct Taken {
    snapshot: Arc<Snapshot>,
    at: Instant,
    took: Duration,
}

/// Both ends, and what the run loop adds 1 to whenever there is something new to tell.
pub fn channel() -> (Facts, Asks, Arc<AtomicU64>) {
    let (asks, receiver) = mpsc::channel(4);
    let generation = Arc::new(AtomicU64::new(0));
    let inner =
        Inner { asks, generation: generation.clone(), last: Mutex::new(None), taking: tokio::sync::Mutex::new(()) };
    (Facts(Arc::new(inner)), receiver, generation)
}

impl Facts {
    /// Everything as it is now, or was a second ago if nothing has changed; while the loop is busy, as it was last. `None`:
    /// the loop has ended, or never answered within 10 s.
    pub async fn snapshot(&self) -> Option<Arc<Snapshot>> {
        if let Some(taken) = self.fresh() {
            return Some(taken);
        }
        let whole = async {
            let _taking = self.0.taking.lock().await;
            if let Some(taken) = self.fresh() {
                return Some(taken);
            }
            if let Some(last) = self.last() {
                sleep((last.took * PART).clamp(CHANGED, UNCHANGED).saturating_sub(last.at.elapsed())).await;
            }
            let generation = self.0.generation.load(Ordering::Acquire);
            let start = Instant::now();
            let mut snapshot = self.ask(Ask::Snapshot).await?;
            if let Some(own) = Arc::get_mut(&mut snapshot) {
                own.number = generation;
            }
            let taken = Taken { snapshot: snapshot.clone(), at: Instant::now(), took: start.elapsed() };
            *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(taken);
            self.forget_later();
            Some(snapshot)
        };
        match timeout(if self.last().is_some() { BUSY } else { PATIENCE }, whole).await {
            Ok(answer) => answer,
            Err(_) => self.last().map(|last| last.snapshot),
        }
    }

    /// One Service whole. `None`: the loop did not answer.
    pub async fn service(&self, name: ObjectName) -> Option<Told<Option<ServiceFacts>>> {
        self.ask(|reply| Ask::Service(name, reply)).await
    }

    /// Where a packet would go. `None`: the loop did not answer.
    pub async fn trace(&self, flow: Flow) -> Option<Told<Trace>> {
        self.ask(|reply| Ask::Trace(flow, reply)).await
    }

    /// Has the counters of `/metrics` be those of now, if the loop has the time.
    pub async fn count(&self) {
        let _ = timeout(BUSY, self.ask(Ask::Count)).await;
    }

    fn last(&self) -> Option<Taken> {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn fresh(&self) -> Option<Arc<Snapshot>> {
        let last = self.last()?;
        let unchanged = last.snapshot.number == self.0.generation.load(Ordering::Acquire);
        (unchanged && last.at.elapsed() < UNCHANGED).then_some(last.snapshot)
    }

    /// A snapshot of a large cluster is megabytes, and keeps what is gone alive.
    fn forget_later(&self) {
        let weak = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            sleep(KEPT).await;
            if let Some(inner) = weak.upgrade() {
                let mut last = inner.last.lock().unwrap_or_else(PoisonError::into_inner);
                if last.as_ref().is_some_and(|last| last.at.elapsed() >= KEPT) {
                    *last = None;
                }
            }
        });
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let answer = async {
            let (sender, receiver) = oneshot::channel();
            self.0.asks.send(ask(sender)).await.ok()?;
            receiver.await.ok()
        };
        timeout(PATIENCE, answer).await.ok()?
    }
}
