//! How often Events are posted, and of whom.

use super::*;
use crate::state::event::Kind;
use crate::state::objects::ObjectName;

fn notice(service: usize, note: &str) -> Notice {
    notice_in("default", service, note)
}

fn notice_in(namespace: &str, service: usize, note: &str) -> Notice {
    let name = ObjectName::new(namespace, &format!("s{service}"));
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
    assert_eq!(second.iter().filter(|verdict| **verdict == Verdict::Post).count(), 10, "what was dropped comes later");
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
    // Nobody is taken any Event of.
    limiter.tokens = -1000.0;
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
    limiter.succeeded(&notice(1, "a"));
    assert_eq!(limiter.admit(now, &notice(2, "a")), Verdict::Post);
    assert_eq!(limiter.failed(now, &notice(2, "a")), now + 10 * SECOND, "it starts anew");
}

#[test]
fn a_flood_of_one_namespace_keeps_no_other_from_being_told() {
    let start = Instant::now();
    let mut limiter = Limiter::new(start);
    let (mut posted, mut told) = (0, [None; 3]);
    for round in 0..30 {
        let now = start + round * 10 * SECOND;
        let flood = (0..600).map(|service| notice_in("aaa", service, "a"));
        posted += flood.filter(|notice| limiter.admit(now, notice) == Verdict::Post).count();
        for (namespace, told) in ["xxx", "yyy", "zzz"].into_iter().zip(&mut told) {
            if limiter.admit(now, &notice_in(namespace, 0, "a")) == Verdict::Post {
                told.get_or_insert(round);
            }
        }
    }
    assert_eq!(told, [Some(1), Some(2), Some(2)], "each the next time that one may be posted");
    assert_eq!(posted, 20 + 29 * 10 / 6 - 3, "the flood has all that is left");
}

#[test]
fn of_one_namespace_who_waits_longest_comes_first() {
    let start = Instant::now();
    let mut limiter = Limiter::new(start);
    let posted = (0..21).filter(|service| limiter.admit(start, &notice(*service, "a")) == Verdict::Post);
    assert_eq!(posted.count(), 20);
    // The last one waits; others that are new are reported before it.
    for round in 1..10 {
        let now = start + round * SECOND;
        for service in 0..20 {
            let verdict = limiter.admit(now, &notice(round as usize * 100 + service, "a"));
            assert_ne!(verdict, Verdict::Post, "{round}");
        }
        if limiter.admit(now, &notice(20, "a")) == Verdict::Post {
            assert!((6..=7).contains(&round), "{round}");
            return;
        }
    }
    panic!("it was never posted");
}

#[test]
fn what_is_forbidden_in_one_namespace_closes_no_other_and_in_several_all() {
    let start = Instant::now();
    let mut limiter = Limiter::new(start);
    let one = |namespace| notice_in(namespace, 0, "a");
    // Those that were on their way count once.
    assert_eq!(limiter.refused(start, &one("aaa")), start + 10 * SECOND);
    assert_eq!(limiter.refused(start + SECOND, &notice_in("aaa", 1, "a")), start + 10 * SECOND);
    assert_eq!(limiter.admit(start + SECOND, &one("aaa")), FIRST);
    assert_eq!(limiter.admit(start + SECOND, &one("bbb")), Verdict::Post);
    limiter.succeeded(&one("bbb"));
    assert_eq!(limiter.admit(start + 10 * SECOND, &one("aaa")), Verdict::Post);
    assert_eq!(limiter.refused(start + 10 * SECOND, &one("aaa")), start + 30 * SECOND);
    // An Event of the Node is in the namespace default.
    let node = Notice::new(Regarding::Node, Reason::Ignored, "a");
    assert_eq!(limiter.refused(start + 10 * SECOND, &node), start + 20 * SECOND);
    assert!(matches!(limiter.admit(start + 11 * SECOND, &one("default")), Verdict::Dropped { .. }));
    assert_eq!(limiter.admit(start + 11 * SECOND, &one("ccc")), Verdict::Post);
    assert_eq!(
        limiter.refused(start + 11 * SECOND, &one("ccc")),
        start + 21 * SECOND,
        "three, and none was taken since"
    );
    assert!(matches!(limiter.admit(start + 12 * SECOND, &one("ddd")), Verdict::Dropped { .. }));
    assert_eq!(limiter.admit(start + 21 * SECOND, &one("ddd")), Verdict::Post);
    assert_eq!(limiter.refused(start + 21 * SECOND, &one("ddd")), start + 41 * SECOND, "all wait for longer");
    limiter.succeeded(&one("eee"));
    assert_eq!(limiter.admit(start + 22 * SECOND, &one("eee")), Verdict::Post);
    assert!(matches!(limiter.admit(start + 22 * SECOND, &one("aaa")), Verdict::Dropped { .. }));
}
