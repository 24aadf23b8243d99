//! How often Events are posted: a pure function of what was reported when.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::closed::Closed;
use super::turns::Turns;
use super::{Notice, Reason, Regarding};

/// So many Events may come at once.
pub const BURST: u32 = 20;
/// Beyond them, so many a minute.
pub const PER_MINUTE: u32 = 10;
/// How long the same Event, of the same object with the same reason and note, is not posted again: API servers forget Events
/// after an hour, so what stays wrong stays visible.
pub const AGAIN: Duration = Duration::from_secs(3600);
/// How long another note of the same object and reason waits.
const OTHER_NOTE: Duration = Duration::from_secs(60);
/// Of reports that are not posted, no more than this are remembered; those that are posted are few.
const REMEMBERED: usize = 10_000;
/// How often those that are old are looked for, where there are so many.
const CLEANED: Duration = Duration::from_secs(60);

/// What becomes of a report.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is to be posted.
    Post,
    /// It has been posted lately.
    Repeated,
    /// There are too many, or the API server does not take them at present.
    Dropped {
        /// It is the first time for this note: what stays wrong is reported many times, and counts once. Of what there is no room to
        /// remember nobody knows, and it does not count.
        first: bool,
    },
}

/// What is posted again for another note only after a while.
pub(super) type Key = (Regarding, Reason);

#[derive(Clone, Copy, Debug)]
struct Known {
    note: u64,
    at: Instant,
    posted: bool,
}

/// Decides which reports become Events. Where there are more than may be posted, the namespaces come one after the other.
#[derive(Debug)]
pub struct Limiter {
    tokens: f64,
    refilled: Instant,
    known: HashMap<Key, Known>,
    /// When old ones were last looked for.
    cleaned: Option<Instant>,
    closed: Closed,
    turns: Turns,
}

impl Limiter {
    /// Nothing was reported yet.
    pub fn new(now: Instant) -> Self {
        let (tokens, known, cleaned) = (BURST.into(), HashMap::new(), None);
        Self { tokens, refilled: now, known, cleaned, closed: Closed::default(), turns: Turns::new(now) }
    }

    /// Decides about a report; one that is to be posted counts as posted.
    pub fn admit(&mut self, now: Instant, notice: &Notice) -> Verdict {
        let gained = (now - self.refilled).as_secs_f64() * f64::from(PER_MINUTE) / 60.0;
        self.tokens = (self.tokens + gained).min(BURST.into());
        self.refilled = now;
        self.turns.clean(now);
        let key = (notice.regarding.clone(), notice.reason);
        let note = hash(&notice.note);
        let known = self.known.get(&key).filter(|known| now - known.at < AGAIN).copied();
        let same = known.is_some_and(|known| known.note == note);
        let recent = known.is_some_and(|known| known.posted && now - known.at < OTHER_NOTE);
        if same && known.is_some_and(|known| known.posted) {
            return Verdict::Repeated;
        }
        if recent {
            // The note that was posted is remembered, and with it when the next may come.
            return Verdict::Dropped { first: false };
        }
        let is_closed = self.closed.is(now, notice.regarding.posted_in());
        if is_closed || self.tokens < 1.0 || self.tokens < f64::from(self.turns.before(&key)) + 1.0 {
            if !is_closed {
                self.turns.waits(now, &key);
            }
            let has_room = self.has_room(&key, now);
            if has_room {
                self.known.insert(key, Known { note, at: now, posted: false });
            }
            return Verdict::Dropped { first: has_room && !same };
        }
        self.tokens -= 1.0;
        self.turns.had(now, &key);
        // However many wait: what is posted and forgotten would be posted again.
        self.has_room(&key, now);
        self.known.insert(key, Known { note, at: now, posted: true });
        Verdict::Post
    }

    /// It was not posted after all: it may be at the next report.
    pub fn forget(&mut self, notice: &Notice) {
        self.known.remove(&(notice.regarding.clone(), notice.reason));
    }

    /// The API server took this Event.
    pub fn succeeded(&mut self, notice: &Notice) {
        self.closed.succeeded(notice.regarding.posted_in());
    }

    /// The API server did not take this Event, nor would it others. For a while nothing is posted; the answer is the end of that
    /// while.
    pub fn failed(&mut self, now: Instant, notice: &Notice) -> Instant {
        self.not_posted(notice);
        self.closed.failed(now)
    }

    /// The API server forbids this Event, and perhaps those of its namespace alone. For a while nothing is posted there; the answer is
    /// the end of that while.
    pub fn refused(&mut self, now: Instant, notice: &Notice) -> Instant {
        self.not_posted(notice);
        self.closed.refused(now, notice.regarding.posted_in())
    }

    fn not_posted(&mut self, notice: &Notice) {
        if let Some(known) = self.known.get_mut(&(notice.regarding.clone(), notice.reason)) {
            known.posted = false;
        }
    }

    /// Whether this report can be remembered beside the others.
    fn has_room(&mut self, key: &Key, now: Instant) -> bool {
        let is_full = self.known.len() >= REMEMBERED && !self.known.contains_key(key);
        if is_full && self.cleaned.is_none_or(|cleaned| now - cleaned >= CLEANED) {
            self.cleaned = Some(now);
            self.known.retain(|_, old| now - old.at < AGAIN);
        }
        !is_full || self.known.len() < REMEMBERED
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
#[path = "limiter_tests.rs"]
mod tests;
