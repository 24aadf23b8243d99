//! When the next sync may start: at once after a quiet moment, `minSyncPeriod` after the end of the last, and after a
//! failure with growing pauses up to `syncPeriod`. Time is an argument.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The first pause after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(200);

/// The CPU time that this thread has had. What it waited for a CPU that others had is none of it: a pause that is to be so many times as
/// long as some work is no longer where the node has much else to do.
pub fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// The pace of syncs.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    min: Duration,
    max: Duration,
    pause: Duration,
    next: Option<Instant>,
}

impl Pacing {
    /// At least `min` between the end of a sync and the start of the next; after failures at most `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, pause: FIRST_RETRY, next: None }
    }

    /// Goes by other bounds from the next sync on.
    pub fn change(&mut self, min: Duration, max: Duration) {
        (self.min, self.max) = (min, max);
        self.pause = self.pause.min(max.max(FIRST_RETRY));
    }

    /// Whether a sync may start now.
    pub fn may_start(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| next <= now)
    }

    /// When a sync may start; `None`: at once.
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// A sync ended well.
    pub fn succeeded(&mut self, now: Instant) {
        self.pause = FIRST_RETRY;
        self.next = Some(now + self.min);
    }

    /// A sync failed.
    pub fn failed(&mut self, now: Instant) {
        self.next = Some(now + self.pause.max(self.min));
        self.pause = (self.pause * 2).min(self.max.max(FIRST_RETRY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_after_a_quiet_moment_is_applied_at_once() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut pacing = Pacing::new(second, 30 * second);
        assert!(pacing.may_start(start));
        pacing.succeeded(start);
        assert!(!pacing.may_start(start + second / 2));
        assert!(pacing.may_start(start + second));
        let mut eager = Pacing::new(Duration::ZERO, 30 * second);
        eager.succeeded(start);
        assert!(eager.may_start(start));
    }

    #[test]
    fn waiting_is_no_cpu_time() {
        let (start, began) = (cpu_time(), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        assert!(cpu_time() - start < began.elapsed() / 2);
        let began = cpu_time();
        while cpu_time() - began < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn other_bounds_count_from_the_next_sync_on() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut pacing = Pacing::new(Duration::ZERO, 30 * second);
        pacing.change(5 * second, 10 * second);
        assert!(pacing.may_start(start));
        pacing.succeeded(start);
        assert_eq!(pacing.next(), Some(start + 5 * second));
    }

    #[test]
    fn failures_are_retried_with_growing_pauses() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut pacing = Pacing::new(Duration::ZERO, 3 * second);
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pacing.failed(start);
            pauses.push(pacing.next().unwrap() - start);
        }
        assert_eq!(pauses[0], FIRST_RETRY);
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[5], 3 * second);
        pacing.succeeded(start);
        assert!(pacing.may_start(start));
    }
}
