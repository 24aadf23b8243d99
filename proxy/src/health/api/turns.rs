//! Whose turn it is: answers are made one after the other, and for a part of the time, however many ask for however different ones.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep_until, timeout};

use super::answers::Wrong;

/// How many wait for their turn, the one whose turn it is included; more are told to come back.
const SEATS: usize = 64;
/// How long they wait.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer counts at most: a node that stands still for a while must not be punished for it.
const LONGEST: Duration = Duration::from_secs(1);

/// Those who wait for the same worker. Clones are the same queue.
#[derive(Clone, Debug)]
pub(super) struct Turns {
    seats: Arc<Semaphore>,
    worker: Arc<Semaphore>,
    pace: Arc<Mutex<Pace>>,
}

/// A place in the queue, and then at its head.
#[derive(Debug)]
pub(super) struct Turn {
    _seat: OwnedSemaphorePermit,
    _worker: OwnedSemaphorePermit,
    pace: Arc<Mutex<Pace>>,
    until: Instant,
}

/// How much work may be done.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Of the time, work takes no more than one part in so many, …
    part: u32,
    /// … but for so much of it at once.
    burst: Duration,
    /// Until when the work done so far would have taken, had it been done at that pace.
    paid: Instant,
}

impl Turns {
    /// Of a worker that works for one part of the time in `part`, after `burst` of work at once.
    pub(super) fn new(part: u32, burst: Duration) -> Self {
        let pace = Pace { part, burst, paid: Instant::now() };
        Self {
            seats: Arc::new(Semaphore::new(SEATS)),
            worker: Arc::new(Semaphore::new(1)),
            pace: Arc::new(Mutex::new(pace)),
        }
    }

    /// Waits until nobody else is at work. Work begins after [`Turn::may_begin`].
    ///
    /// # Errors
    /// [`Wrong::Busy`]: too many wait already, or it took too long.
    pub(super) async fn next(&self) -> Result<Turn, Wrong> {
        let until = Instant::now() + PATIENCE;
        let seat = self.seats.clone().try_acquire_owned().map_err(|_| Wrong::Busy)?;
        match timeout(PATIENCE, self.worker.clone().acquire_owned()).await {
            Ok(Ok(worker)) => Ok(Turn { _seat: seat, _worker: worker, pace: self.pace.clone(), until }),
            _ => Err(Wrong::Busy),
        }
    }
}

impl Turn {
    /// Waits until the pace allows more work.
    ///
    /// # Errors
    /// [`Wrong::Busy`]: that would take too long.
    pub(super) async fn may_begin(&self) -> Result<(), Wrong> {
        let begin = self.pace.lock().unwrap_or_else(PoisonError::into_inner).next();
        if begin > self.until {
            return Err(Wrong::Busy);
        }
        sleep_until(begin).await;
        Ok(())
    }

    /// The work is done, and took so long.
    pub(super) fn took(self, time: Duration) {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).took(Instant::now(), time);
    }
}

impl Pace {
    /// When more work may begin.
    fn next(&self) -> Instant {
        self.paid.checked_sub(self.burst * self.part).unwrap_or(self.paid)
    }

    fn took(&mut self, now: Instant, time: Duration) {
        self.paid = self.paid.max(now) + time.min(LONGEST) * self.part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_takes_a_part_of_the_time() {
        let turns = Turns::new(4, Duration::from_millis(500));
        let start = Instant::now();
        let mut began = Vec::new();
        for _ in 0..10 {
            let turn = turns.next().await.unwrap();
            turn.may_begin().await.unwrap();
            began.push(start.elapsed().as_millis());
            turn.took(Duration::from_millis(250));
        }
        // Half a second at once, then a quarter of each second. The clock of this test stands still while work is done.
        assert!(
            began.iter().zip([0, 0, 0, 1000, 2000, 3000, 4000, 5000, 6000, 7000]).all(|(a, b)| a.abs_diff(b) <= 1),
            "{began:?}"
        );
        // Who rests gets no more than that again.
        tokio::time::advance(Duration::from_secs(3600)).await;
        let rested = Instant::now();
        for _ in 0..4 {
            let turn = turns.next().await.unwrap();
            turn.may_begin().await.unwrap();
            turn.took(Duration::from_millis(250));
        }
        assert!(rested.elapsed().as_millis().abs_diff(1000) <= 1, "{:?}", rested.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn one_works_few_wait_and_others_are_told_to_come_back() {
        let turns = Turns::new(1, Duration::ZERO);
        let first = turns.next().await.unwrap();
        let waiting: Vec<_> = (1..SEATS)
            .map(|_| {
                tokio::spawn({
                    let turns = turns.clone();
                    async move { turns.next().await }
                })
            })
            .collect();
        while turns.seats.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let start = Instant::now();
        assert!(matches!(turns.next().await, Err(Wrong::Busy)), "no seat is left");
        assert_eq!(start.elapsed(), Duration::ZERO, "at once");
        // Nobody else begins while one is at work: all of them wait in vain.
        for one in waiting {
            assert!(matches!(one.await.unwrap(), Err(Wrong::Busy)));
        }
        assert!(start.elapsed() >= PATIENCE);
        drop(first);
        assert!(turns.next().await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_is_too_long_is_not_begun() {
        let turns = Turns::new(60, Duration::ZERO);
        let turn = turns.next().await.unwrap();
        turn.may_begin().await.unwrap();
        turn.took(Duration::from_secs(3600));
        let start = Instant::now();
        let turn = turns.next().await.unwrap();
        assert!(matches!(turn.may_begin().await, Err(Wrong::Busy)));
        assert_eq!(start.elapsed(), Duration::ZERO);
        drop(turn);
        // An hour counts as a second.
        tokio::time::advance(Duration::from_secs(60)).await;
        turns.next().await.unwrap().may_begin().await.unwrap();
    }
}
