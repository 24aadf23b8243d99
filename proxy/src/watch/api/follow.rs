//! One kind of object: listed in pages, then watched from the list's version on; a cut is gone on from, and what cannot be gone
//! on from is listed anew. The manner is that of client-go's reflector. kube's own watcher does not tell versions, has no pause
//! between watches that end at once, and asks for a version that is gone for ever where 410 is the status of an answer.

use std::cmp::Ordering;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, WatchEvent};
use kube::{Client, Error};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::super::known::Known;
use super::super::stats::WatchStats;
use super::doubt::{Doubts, Listed, order};
use super::explain;
use super::kinds::{PAGE, Watched, fewer};
use super::lenient::Lenient;
use super::lines;
use super::taken::{Taken, name_of};
use crate::state::event::{Event, Kind};
use crate::state::text::tame;

/// The pauses between tries: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How soon a kind that the server does not have is asked for again.
const UNSERVED: Duration = Duration::from_secs(300);
/// How long a page of a list, or the head of a watch, may take; a connection that has died without a word would never end.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a watch may be silent before everything is listed anew. A server sends a bookmark each minute: the connection may
/// have died without a word, or the server does not know our version yet, having been set back to an older one.
const SILENCE: Duration = Duration::from_secs(150);
/// A watch that ends sooner and has told nothing is a failure (client-go's "very short watch").
const SHORT: Duration = Duration::from_secs(1);
/// After so long without a failure the next one is a first one; and after so long, if the watch has told something well.
const CALM: Duration = Duration::from_secs(60);
const GOOD: Duration = Duration::from_secs(5);

/// Nobody listens to the events any more.
struct Unheard;

/// Why there is no list.
enum NoList {
    Unheard,
    Failed(Error),
    Silent,
    /// Its version is missing.
    Nameless,
    NotBelieved(String),
}

impl From<Unheard> for NoList {
    fn from(_: Unheard) -> Self {
        Self::Unheard
    }
}

/// What an event of a watch leads to.
enum Next {
    GoOn,
    /// Another watch from the last version.
    WatchAnew,
    ListAnew,
}

/// Turns one kind's objects into events, until their receiver is gone.
pub(super) async fn follow(watched: Watched, client: Client, tx: mpsc::Sender<Event>, stats: Arc<WatchStats>) {
    let mut follower = Follower {
        kind: watched.kind,
        api: watched.api(&client),
        client,
        watched,
        known: Known::default(),
        doubts: Doubts::default(),
        newest: String::new(),
        failures: 0,
        failed: None,
        is_away: false,
        again: None,
        page: PAGE,
        tx,
        stats,
    };
    while let Ok(version) = follower.list().await
        && follower.watch(version).await.is_ok()
    {
        tracing::info!(kind = follower.kind.as_str(), "listing anew");
    }
}

struct Follower {
    kind: Kind,
    api: Api<Lenient>,
    client: Client,
    watched: Watched,
    known: Known,
    doubts: Doubts,
    /// The highest version that the server has told of; empty before the first list.
    newest: String,
    /// In a row.
    failures: u32,
    failed: Option<Instant>,
    /// The last watch that was asked for had no answer at all.
    is_away: bool,
    /// When it is listed once more, since the last list lacked objects that the watch has not told the end of.
    again: Option<Instant>,
    /// How many objects are asked for at a time.
    page: u32,
    tx: mpsc::Sender<Event>,
    stats: Arc<WatchStats>,
}

impl Follower {
    /// Lists until the list is whole and believed; its version.
    async fn list(&mut self) -> Result<String, Unheard> {
        loop {
            let why = match self.pages().await {
                Ok(version) => {
                    if self.failures > 0 {
                        tracing::info!(kind = self.kind.as_str(), "listed again");
                    }
                    return Ok(version);
                }
                Err(NoList::Unheard) => return Err(Unheard),
                Err(NoList::Failed(error)) if explain::lacks(self.kind, &error) => {
                    if self.doubts.believes_unserved() {
                        self.unserved(&error).await?;
                        continue;
                    }
                    format!("this is not believed yet, what is in force stays: {}", explain::asking(self.kind, &error))
                }
                Err(NoList::Failed(error)) => {
                    if explain::is_cut(&error) && self.page > 1 {
                        self.page = fewer(self.page);
                        tracing::info!(
                            kind = self.kind.as_str(),
                            page = self.page,
                            "asking for fewer objects at a time"
                        );
                    }
                    explain::asking(self.kind, &error)
                }
                Err(NoList::Silent) => {
                    format!("the API server has not answered for {PATIENCE:?} when asked for {}s", self.kind.as_str())
                }
                Err(NoList::Nameless) => format!("the list of {}s has no resourceVersion", self.kind.as_str()),
                Err(NoList::NotBelieved(why)) => {
                    format!("the list of {}s is not believed yet, what is in force stays: {why}", self.kind.as_str())
                }
            };
            self.fail(&why).await;
        }
    }

    /// One list. The first is told as it comes; of a later one nothing is told before all of it is there and is believed.
    async fn pages(&mut self) -> Result<String, NoList> {
        let is_first = self.newest.is_empty();
        let had = self.known.count(self.kind);
        let mut params = self.watched.list_params(self.page);
        let (mut kept, mut objects) = (Vec::new(), 0);
        self.known.begin_list();
        let version = loop {
            let page = timeout(PATIENCE, self.api.list(&params)).await.map_err(|_| NoList::Silent)?;
            let page = page.map_err(NoList::Failed)?;
            objects += page.items.len();
            for object in page.items {
                self.stats.of(self.kind).event();
                let taken = Taken::new(self.kind, object);
                if is_first {
                    self.tell(taken).await?;
                } else if !self.known.is_as_told(self.kind, &taken.name, taken.version) {
                    kept.push(taken);
                }
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                break page.metadata.resource_version.filter(|version| !version.is_empty()).ok_or(NoList::Nameless)?;
            }
        };
        if is_first {
            self.doubts.believed();
        } else {
            let may_be_empty = self.kind == Kind::ServiceCidr;
            let list = Listed { version: &version, objects };
            if let Some(why) = self.doubts.about(list, &self.newest, had, may_be_empty) {
                return Err(NoList::NotBelieved(why));
            }
        }
        for taken in kept {
            self.tell(taken).await?;
        }
        let gone = self.listed().await?;
        self.newest.clone_from(&version);
        // Of the second, not again: in a busy cluster something always goes between a watch and a list.
        let is_second = self.again.take().is_some_and(|again| again <= Instant::now());
        if gone > 0 && !is_second {
            let (kind, after) = (self.kind.as_str(), pause(u32::MAX));
            tracing::warn!(kind, gone, list_again_in = ?after, "the list lacks objects that there were, and no watch told of their end");
            self.again = Some(Instant::now() + after);
        }
        Ok(version)
    }

    /// Watches until only a new list can help.
    async fn watch(&mut self, mut version: String) -> Result<(), Unheard> {
        loop {
            let began = Instant::now();
            let answer =
                timeout(PATIENCE, lines::watch(&self.client, &self.api, &self.watched.watch_params(), &version)).await;
            let stream = match answer {
                Err(_) => {
                    let kind = self.kind.as_str();
                    self.fail(&format!("the API server has not answered for {PATIENCE:?} when asked to watch {kind}s"))
                        .await;
                    continue;
                }
                Ok(Err(error)) => {
                    let is_answer = matches!(error, Error::Api(_));
                    if is_answer && self.is_away {
                        // That it could not be asked until now is no reason to wait longer.
                        self.failures = 0;
                    }
                    self.is_away = !is_answer;
                    self.fail(&explain::asking(self.kind, &error)).await;
                    // A list tells whether there are any at all.
                    if explain::lacks(self.kind, &error) || explain::needs_list(&error, self.failures) {
                        return Ok(());
                    }
                    continue;
                }
                Ok(Ok(stream)) => stream,
            };
            let mut stream = pin!(stream);
            let mut silent = true;
            loop {
                let silence = Instant::now() + SILENCE;
                let until = self.again.map_or(silence, |again| again.min(silence));
                let Ok(item) = timeout_at(until, stream.next()).await else { return Ok(()) };
                let Some(item) = item else { break };
                silent = false;
                match self.hear(item, &mut version).await? {
                    Next::GoOn => {}
                    Next::WatchAnew => break,
                    Next::ListAnew => return Ok(()),
                }
            }
            if silent && began.elapsed() < SHORT {
                self.fail(&format!("the watch of {}s ended at once", self.kind.as_str())).await;
            }
        }
    }

    /// Takes in what a watch tells.
    async fn hear(&mut self, item: kube::Result<WatchEvent<Lenient>>, version: &mut String) -> Result<Next, Unheard> {
        let (object, is_there) = match item {
            Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => (object, true),
            Ok(WatchEvent::Deleted(object)) => (object, false),
            Ok(WatchEvent::Bookmark(mark)) => {
                self.stats.of(self.kind).heard();
                return Ok(self.advance(&mark.metadata.resource_version, version).await);
            }
            Ok(WatchEvent::Error(status)) => {
                self.fail(&format!("the watch of {}s ended: {}", self.kind.as_str(), status.message)).await;
                let code = status.code;
                return Ok(if explain::is_lost(code, self.failures) { Next::ListAnew } else { Next::WatchAnew });
            }
            Err(error) => {
                self.fail(&explain::asking(self.kind, &error)).await;
                let lost = explain::needs_list(&error, self.failures);
                return Ok(if lost { Next::ListAnew } else { Next::WatchAnew });
            }
        };
        let next = self.advance(object.metadata.resource_version.as_deref().unwrap_or_default(), version).await;
        if matches!(next, Next::GoOn) {
            self.stats.of(self.kind).event();
            match is_there {
                true => self.tell(Taken::new(self.kind, object)).await?,
                false => {
                    let mut events = Vec::new();
                    self.known.remove(self.kind, &name_of(self.kind, &object), &mut |event| events.push(event));
                    self.send(events).await?;
                }
            }
        }
        Ok(next)
    }

    /// A watch has come to this version. Versions of a watch only grow: one that does not tells what is over, and who knows
    /// what it has left out.
    async fn advance(&mut self, told: &str, version: &mut String) -> Next {
        let kind = self.kind.as_str();
        if told.is_empty() {
            self.fail(&format!("the watch of {kind}s told of an object without a resourceVersion")).await;
            return Next::ListAnew;
        }
        if order(told, version) == Some(Ordering::Less) {
            self.fail(&format!("the watch of {kind}s went back from version {version} to {told}: not taken over"))
                .await;
            return Next::ListAnew;
        }
        // Where it goes wrong again and again after a good beginning, there is a pause all the same.
        let has_just_failed = self.failed.is_some_and(|failed| failed.elapsed() < GOOD);
        self.failures = if has_just_failed { self.failures.min(2) } else { 0 };
        version.clear();
        version.push_str(told);
        if order(told, &self.newest) != Some(Ordering::Less) {
            self.newest.clone_from(version);
        }
        Next::GoOn
    }

    /// An older cluster has no ServiceCIDRs, or does not let us see them; then there are none.
    async fn unserved(&mut self, error: &Error) -> Result<(), Unheard> {
        if explain::is_forbidden(error) {
            let why = explain::asking(self.kind, error);
            tracing::warn!(kind = self.kind.as_str(), retry_in = ?UNSERVED, "{why}");
        }
        self.known.begin_list();
        self.listed().await.map(drop)?;
        sleep(UNSERVED).await;
        Ok(())
    }

    /// The list has ended: how many objects it lacks that there were.
    async fn listed(&mut self) -> Result<usize, Unheard> {
        let mut events = Vec::new();
        self.known.listed(self.kind, &mut |event| events.push(event));
        let gone = events.len();
        events.push(Event::Listed(self.kind));
        self.stats.of(self.kind).list();
        self.send(events).await.map(|()| gone)
    }

    async fn tell(&mut self, taken: Taken) -> Result<(), Unheard> {
        let mut events = Vec::new();
        taken.put(&mut self.known, &mut |event| events.push(event));
        self.send(events).await
    }

    async fn send(&self, events: Vec<Event>) -> Result<(), Unheard> {
        for event in events {
            self.tx.send(event).await.map_err(|_| Unheard)?;
        }
        Ok(())
    }

    async fn fail(&mut self, why: &str) {
        if self.failed.is_some_and(|failed| failed.elapsed() > CALM) {
            self.failures = 0;
        }
        self.stats.of(self.kind).error();
        let pause = pause(self.failures);
        self.failures += 1;
        tracing::warn!(kind = self.kind.as_str(), retry_in = ?pause, "{}", tame(why, explain::LONGEST));
        sleep(pause).await;
        self.failed = Some(Instant::now());
    }
}

/// How long to wait after this many failures in a row: doubling, and spread out so that the nodes of a cluster do not
/// come back all at once.
fn pause(failures: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests;
