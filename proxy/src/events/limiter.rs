//! How often Events are posted: a pure function of what was reported when.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

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
/// How long nothing is posted after the API server has refused an Event or was away; doubled each time.
pub const PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
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

type Key = (Regarding, Reason);

#[derive(Clone, Copy, Debug)]
struct Known {
    note: u64,
    at: Instant,
    posted: bool,
}

/// Decides which reports become Events.
#[derive(Debug)]
pub struct Limiter {
    tokens: f64,
    refilled: Instant,
    known: HashMap<Key, Known>,
    /// When old ones were last looked for.
    cleaned: Option<Instant>,
    closed_until: Option<Instant>,
    failures: u32,
}

impl Limiter {
    /// Nothing was reported yet.
    pub fn new(now: Instant) -> Self {
        let (tokens, known, cleaned) = (BURST.into(), HashMap::new(), None);
        Self { tokens, refilled: now, known, cleaned, closed_until: None, failures: 0 }
    }

    /// Decides about a report; one that is to be posted counts as posted.
    pub fn admit(&mut self, now: Instant, notice: &Notice) -> Verdict {
        let gained = (now - self.refilled).as_secs_f64() * f64::from(PER_MINUTE) / 60.0;
        self.tokens = (self.tokens + gained).min(BURST.into());
        self.refilled = now;
        let key = (notice.regarding.clone(), notice.reason);
        let note = hash(&notice.note);
        let known = self.known.get(&key).filter(|known| now - known.at < AGAIN).copied();
        let same = known.is_some_and(|known| known.note == note);
        let recent = known.is_some_and(|known| known.posted && now - known.at < OTHER_NOTE);
        if same && known.is_some_and(|known| known.posted) {
            return Verdict::Repeated;
        }
        let closed = self.closed_until.is_some_and(|until| now < until);
        if recent {
            // The note that was posted is remembered, and with it when the next may come.
            return Verdict::Dropped { first: false };
        }
        if closed || self.tokens < 1.0 {
            let has_room = self.has_room(&key, now);
            if has_room {
                self.known.insert(key, Known { note, at: now, posted: false });
            }
            return Verdict::Dropped { first: has_room && !same };
        }
        self.tokens -= 1.0;
        // However many wait: what is posted and forgotten would be posted again.
        self.has_room(&key, now);
        self.known.insert(key, Known { note, at: now, posted: true });
        Verdict::Post
    }

    /// It was not posted after all: it may be at the next report.
    pub fn forget(&mut self, notice: &Notice) {
        self.known.remove(&(notice.regarding.clone(), notice.reason));
    }

    /// The API server took an Event.
    pub fn succeeded(&mut self) {
        self.failures = 0;
        self.closed_until = None;
    }

    /// The API server did not take this Event. For a while nothing is posted; the answer is the end of that while.
    pub fn failed(&mut self, now: Instant, notice: &Notice) -> Instant {
        if let Some(known) = self.known.get_mut(&(notice.regarding.clone(), notice.reason)) {
            known.posted = false;
        }
        let pause = PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        let until = now + pause;
        self.closed_until = Some(until);
        until
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
mod tests {
    use super::*;
    use crate::state::event::Kind;
    use crate::state::objects::ObjectName;

    fn notice(service: usize, note: &str) -> Notice {
        let name = ObjectName::new("default", &format!("s{service}"));
        Notice::new(Regarding::Object(Kind::Service, name), Reason::Ignored, note)
    }

    const SECOND: Duration = Duration::from_secs(1);
    const FIRST: Verdict = Verdict::Dropped { first: true };
    const MORE: Verdict = Verdict::Dropped { first: false };

    #[test]
    fn a_repeated_report_is_posted_once_an_hour() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!(limiter.admit(start, &notice(1, "a")), Verdict::Post);
        for seconds in [0, 1, 60, 3599] {
            assert_eq!(limiter.admit(start + seconds * SECOND, &notice(1, "a")), Verdict::Repeated, "{seconds}");
        }
        assert_eq!(limiter.admit(start + 3600 * SECOND, &notice(1, "a")), Verdict::Post);
        assert_eq!(limiter.admit(start + 3601 * SECOND, &notice(1, "a")), Verdict::Repeated);
    }

    #[test]
    fn another_note_of_the_same_waits_a_minute() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!(limiter.admit(start, &notice(1, "a")), Verdict::Post);
        assert_eq!(limiter.admit(start + SECOND, &notice(1, "b")), MORE);
        assert_eq!(limiter.admit(start + 2 * SECOND, &notice(1, "a")), Verdict::Repeated, "back again");
        assert_eq!(limiter.admit(start + 60 * SECOND, &notice(1, "b")), Verdict::Post);
        let other = Notice { reason: Reason::SchedulerFallback, ..notice(1, "a") };
        assert_eq!(limiter.admit(start + 60 * SECOND, &other), Verdict::Post, "another reason");
    }

    #[test]
    fn twenty_at_once_and_ten_a_minute() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let all = |limiter: &mut Limiter, now| {
            (0..100).map(|service| limiter.admit(now, &notice(service, "a"))).collect::<Vec<_>>()
        };
        let first = all(&mut limiter, start);
        assert_eq!(first.iter().filter(|verdict| **verdict == Verdict::Post).count(), 20);
        assert_eq!(first.iter().filter(|verdict| **verdict == FIRST).count(), 80);
        let second = all(&mut limiter, start + 60 * SECOND);
        assert_eq!(
            second.iter().filter(|verdict| **verdict == Verdict::Post).count(),
            10,
            "what was dropped comes later"
        );
        assert_eq!(second.iter().filter(|verdict| **verdict == MORE).count(), 70, "and counts as dropped once");
        assert_eq!(second.iter().filter(|verdict| **verdict == Verdict::Repeated).count(), 20);
    }

    #[test]
    fn what_there_is_no_room_for_counts_never_and_is_posted_once() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let admitted = (0..REMEMBERED).map(|service| limiter.admit(start, &notice(service, "a")));
        assert_eq!(admitted.filter(|verdict| *verdict == FIRST).count(), REMEMBERED - 20);
        let (one, other) = (notice(REMEMBERED, "a"), notice(REMEMBERED + 1, "a"));
        for seconds in 0..5 {
            assert_eq!(limiter.admit(start + seconds * SECOND, &one), MORE, "{seconds}");
        }
        for notice in [&one, &other] {
            assert_eq!(limiter.admit(start + 60 * SECOND, notice), Verdict::Post);
            assert_eq!(limiter.admit(start + 61 * SECOND, notice), Verdict::Repeated);
        }
        assert_eq!(limiter.admit(start + 61 * SECOND, &notice(20, "b")), Verdict::Post, "one that is known");
        assert_eq!(limiter.admit(start + 62 * SECOND, &notice(20, "b")), Verdict::Repeated);
    }

    #[test]
    fn old_reports_are_looked_for_once_a_minute() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        limiter.closed_until = Some(start + 2 * AGAIN);
        (0..REMEMBERED).for_each(|service| assert_eq!(limiter.admit(start, &notice(service, "a")), FIRST));
        let new = notice(REMEMBERED, "a");
        assert_eq!(limiter.admit(start + 3590 * SECOND, &new), MORE, "none is old");
        assert_eq!(limiter.admit(start + 3649 * SECOND, &new), MORE, "looked for a moment ago");
        assert_eq!(limiter.admit(start + 3650 * SECOND, &new), FIRST);
        assert_eq!(limiter.known.len(), 1);
    }

    #[test]
    fn after_a_failure_there_is_a_pause_which_grows_and_nothing_is_forgotten() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        let mut now = start;
        for pause in [10, 20, 40, 80, 160, 320, 600, 600] {
            assert_eq!(limiter.admit(now, &notice(1, "a")), Verdict::Post, "before the pause of {pause} s");
            assert_eq!(limiter.failed(now, &notice(1, "a")), now + pause * SECOND);
            assert!(matches!(limiter.admit(now + SECOND, &notice(1, "a")), Verdict::Dropped { .. }));
            now += pause * SECOND;
        }
        assert_eq!(limiter.admit(now, &notice(1, "a")), Verdict::Post);
        limiter.succeeded();
        assert_eq!(limiter.admit(now, &notice(2, "a")), Verdict::Post);
        assert_eq!(limiter.failed(now, &notice(2, "a")), now + 10 * SECOND, "it starts anew");
    }
}
