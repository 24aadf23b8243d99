//! Clients that ask all the time and record what becomes of each request. None of them stops at a failure: what a fault costs
//! is counted.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::client::{Connection, patience, until_for};
use crate::load::{self, Ends, LOST, Way, datagram};

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(10);
/// Answers in a row after which a client counts as served.
const ROUND: usize = 10;
/// How long all clients may take until they are served: the longest a fault may last, and much for a busy machine.
const SERVED: Duration = Duration::from_secs(60);
/// A request that was answered is slow if it took longer than this, or a datagram was repeated: a packet was lost, the first SYN of a
/// connection for one, or the machine is busy.
const SLOW: Duration = Duration::from_millis(900);
/// What an outage shows by where it costs no request: more slow ones in a row of one client, or one that took longer. A SYN that is
/// lost is sent again after 1, 2, 3 and 4 s, by kernels before 6.5 after 1, 3 and 7 s. A busy machine keeps both.
const SLOW_IN_A_ROW: usize = 3;
const LONGEST: Duration = Duration::from_millis(3500);

/// Traffic that runs: for each way a client that connects anew for each request, one whose connection stays open, and one of UDP
/// with a new socket each time, which asks up to three times as resolvers do.
#[derive(Debug)]
pub struct Traffic {
    end: AtomicBool,
    clients: Vec<Client>,
    failures: Mutex<Vec<Failure>>,
    patience: Duration,
    pause: Duration,
}

#[derive(Default, Debug)]
struct Client {
    requests: AtomicUsize,
    /// Answers since the last failure.
    row: AtomicUsize,
    slow: Mutex<Slow>,
    /// Slow ones since the last that was not.
    slow_row: AtomicUsize,
}

/// Requests that were answered late.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Slow {
    /// Those that took more than 0.9 s (times [`patience`]), or a datagram more than one.
    pub requests: usize,
    /// The most of them in a row of one client.
    pub in_a_row: usize,
    /// The longest that a request took until it was answered, slow or not.
    pub longest: Duration,
}

impl Slow {
    /// Of two clients.
    fn and(self, other: Self) -> Self {
        let (in_a_row, longest) = (self.in_a_row.max(other.in_a_row), self.longest.max(other.longest));
        Self { requests: self.requests + other.requests, in_a_row, longest }
    }
}

impl Client {
    /// Counts a request that was answered.
    fn answered(&self, took: Duration, repeated: bool) {
        let is_slow = repeated || took > patience(SLOW);
        let row = if is_slow { self.slow_row.load(Ordering::Relaxed) + 1 } else { 0 };
        self.slow_row.store(row, Ordering::Relaxed);
        let mut slow = self.slow.lock().unwrap_or_else(PoisonError::into_inner);
        *slow = slow.and(Slow { requests: usize::from(is_slow), in_a_row: row, longest: took });
        self.row.fetch_add(1, Ordering::Relaxed);
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When it was begun.
    pub began: Instant,
    /// When the client gave up, or was refused.
    pub ended: Instant,
    /// Who asked whom, how, and what the client was told.
    pub what: String,
}

/// What the clients saw.
#[derive(Clone, Default, Debug)]
pub struct Recorded {
    /// Requests, those that failed included.
    pub requests: usize,
    /// Those that failed, in the order of their ends.
    pub failures: Vec<Failure>,
    /// Those that were answered late.
    pub slow: Slow,
}

impl Recorded {
    /// Fails if any request did, and names them.
    ///
    /// # Errors
    /// See above.
    pub fn none_failed(&self) -> Result<()> {
        let named: Vec<_> = self.failures.iter().take(20).map(|failure| failure.what.clone()).collect();
        let (failed, all) = (self.failures.len(), self.requests);
        ensure!(failed == 0, "{failed} of {all} {LOST}, the first of them:\n{}", named.join("\n"));
        Ok(())
    }

    /// Fails if any request did, or if so many were slow or one so much as would be in an outage that every client outlasts. What
    /// is slow may be so for want of a CPU, so these words are not [`LOST`].
    ///
    /// # Errors
    /// See above.
    pub fn nothing_seen(&self) -> Result<()> {
        self.none_failed()?;
        let (Slow { requests, in_a_row, longest }, most) = (self.slow, patience(LONGEST));
        let all = format!(
            "{requests} of {} requests were slow, {in_a_row} in a row, the longest {longest:.1?}",
            self.requests
        );
        ensure!(in_a_row <= SLOW_IN_A_ROW, "{all}: {SLOW_IN_A_ROW} in a row at most");
        ensure!(longest <= most, "{all}: {most:?} at most");
        Ok(())
    }

    /// From `since` to the end of the last failed request: how long clients saw something wrong. Zero where none did.
    pub fn wrong_for(&self, since: Instant) -> Duration {
        let ends = self.failures.iter().map(|failure| failure.ended.saturating_duration_since(since));
        ends.max().unwrap_or_default()
    }
}

impl Traffic {
    /// Runs `work` while every way has its clients, which wait for an answer for as long as `patience`. Returns what `work` does
    /// and what the clients saw, whatever that is.
    ///
    /// # Errors
    /// `work` failed: what clients saw until then is part of the message.
    pub fn during<T, C: load::Client + ?Sized>(
        ways: &[Way<'_, C>],
        patience: Duration,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(T, Recorded)> {
        Self::during_every(PAUSE, ways, patience, work)
    }

    /// The same with another pause between the requests of a client, for what lasts minutes.
    ///
    /// # Errors
    /// As [`Traffic::during`].
    pub fn during_every<T, C: load::Client + ?Sized>(
        pause: Duration,
        ways: &[Way<'_, C>],
        patience: Duration,
        work: impl FnOnce(&Self) -> Result<T>,
    ) -> Result<(T, Recorded)> {
        let clients = (0..3 * ways.len()).map(|_| Client::default()).collect();
        let traffic = Self { end: AtomicBool::new(false), clients, failures: Mutex::default(), patience, pause };
        let result = std::thread::scope(|scope| {
            for (way, clients) in ways.iter().zip(traffic.clients.chunks(3)) {
                let (traffic, [new, kept, udp]) = (&traffic, [&clients[0], &clients[1], &clients[2]]);
                scope.spawn(move || {
                    traffic.repeat(new, "a new connection", *way, || traffic.connect(*way)?.ask().map(|_| false))
                });
                scope.spawn(move || {
                    let mut open = None;
                    traffic
                        .repeat(kept, "an open connection", *way, || traffic.ask_kept(&mut open, *way).map(|()| false));
                });
                scope.spawn(move || traffic.repeat(udp, "UDP", *way, || datagram(*way)));
            }
            let _ends = Ends(&traffic.end);
            work(&traffic)
        });
        let seen = traffic.seen();
        match result {
            Ok(value) => Ok((value, seen)),
            Err(error) => match seen.none_failed() {
                Ok(()) => Err(error),
                Err(failed) => Err(error.context(failed.to_string())),
            },
        }
    }

    /// What clients have seen so far.
    pub fn seen(&self) -> Recorded {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let requests = self.clients.iter().map(|client| client.requests.load(Ordering::Relaxed)).sum();
        let slow = |client: &Client| *client.slow.lock().unwrap_or_else(PoisonError::into_inner);
        let slow = self.clients.iter().map(slow).fold(Slow::default(), Slow::and);
        Recorded { requests, failures, slow }
    }

    /// Waits until every client has had some answers from now on, and no failure among the last of them.
    ///
    /// # Errors
    /// One has not within a minute.
    pub fn go_on(&self) -> Result<()> {
        let before: Vec<_> = self.clients.iter().map(|client| client.requests.load(Ordering::Relaxed)).collect();
        let served = || {
            let mut all = self.clients.iter().zip(&before);
            let is_served = |(client, before): (&Client, &usize)| {
                client.requests.load(Ordering::Relaxed) >= before + ROUND && client.row.load(Ordering::Relaxed) >= ROUND
            };
            all.all(is_served).then_some(())
        };
        until_for(SERVED, "every client to be served", served)
    }

    /// Asks until the end; `ask` tells whether it had to repeat the question.
    fn repeat<C: load::Client + ?Sized>(
        &self,
        client: &Client,
        how: &str,
        way: Way<'_, C>,
        mut ask: impl FnMut() -> Result<bool>,
    ) {
        while !self.end.load(Ordering::Relaxed) {
            let began = Instant::now();
            let result = ask();
            client.requests.fetch_add(1, Ordering::Relaxed);
            match result {
                Ok(repeated) => client.answered(began.elapsed(), repeated),
                Err(error) => {
                    client.row.store(0, Ordering::Relaxed);
                    let (ended, from, to) = (Instant::now(), way.0.name(), way.1);
                    let what = format!("{how}, {from} to {to}, after {:?}: {error:#}", ended - began);
                    self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(Failure { began, ended, what });
                }
            }
            std::thread::sleep(self.pause);
        }
    }

    fn connect<C: load::Client + ?Sized>(&self, (from, to): Way<'_, C>) -> Result<Connection> {
        let connection = from.connect_within(to, self.patience)?;
        connection.wait_for(self.patience)?;
        Ok(connection)
    }

    /// Asks over the connection that is open. One that is broken is a failure, and the next request opens another.
    fn ask_kept<C: load::Client + ?Sized>(
        &self,
        open: &mut Option<(String, Connection)>,
        way: Way<'_, C>,
    ) -> Result<()> {
        let (server, mut connection) = match open.take() {
            Some((server, connection)) => (Some(server), connection),
            None => (None, self.connect(way)?),
        };
        let (answered, _) = connection.ask()?;
        if let Some(server) = server.filter(|server| *server != answered) {
            bail!("{answered} instead of {server}");
        }
        *open = Some((answered, connection));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_are_counted_and_too_many_in_a_row_are_an_outage() {
        let (busy, quick) = (Client::default(), Client::default());
        let soon = Duration::from_millis(20);
        for _ in 0..2 {
            (0..SLOW_IN_A_ROW).for_each(|_| busy.answered(soon, true));
            busy.answered(soon, false);
        }
        busy.answered(patience(SLOW), false);
        busy.answered(patience(LONGEST), false);
        quick.answered(soon, false);
        let slow = |client: &Client| *client.slow.lock().unwrap();
        let seen = |slow| Recorded { slow, ..Recorded::default() }.nothing_seen();
        let both = slow(&quick).and(slow(&busy));
        assert_eq!(both, Slow { requests: 7, in_a_row: SLOW_IN_A_ROW, longest: patience(LONGEST) });
        seen(both).unwrap();
        let longest = both.longest + Duration::from_millis(1);
        assert!(seen(Slow { longest, ..both }).unwrap_err().to_string().contains("7 of 0 requests were slow"));
        (0..SLOW_IN_A_ROW).for_each(|_| busy.answered(soon, true));
        assert!(seen(slow(&busy)).unwrap_err().to_string().contains("4 in a row"));
    }
}
