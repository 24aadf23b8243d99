//! Requests that never stop: new connections from every side one after the other, and connections that stay open. Every one of
//! them has to be answered.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::client::{Connection, DEADLINE, datagrams, patience, try_once, until};
use crate::netns::Netns;

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(5);
/// Requests of each client that have to be answered before something counts as seen by all.
const ROUND: usize = 10;

/// Who asks whom.
pub type Way<'a> = (&'a Netns, SocketAddr);

/// Load that runs.
#[derive(Debug)]
pub struct Load {
    end: AtomicBool,
    /// For each client, how many requests were answered.
    answered: Vec<AtomicUsize>,
    failures: Mutex<Vec<String>>,
    /// Datagrams that got no answer, and how many may be so; `None`: each is asked again.
    lost: Mutex<Vec<String>>,
    most_lost: Option<usize>,
}

/// Ends the load when dropped: also where the work beside it panics, which would wait for ever for threads that go on.
pub(crate) struct Ends<'a>(pub &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Runs `work` while every way has a client with new connections of TCP and one with new sockets of UDP. `work` is told of
    /// the load, to wait for it.
    ///
    /// # Errors
    /// A request failed: all that did are named. Or `work` did.
    pub fn during(ways: &[Way<'_>], work: impl FnOnce(&Self) -> Result<()>) -> Result<usize> {
        Self::with(None, ways, work)
    }

    /// The same where nobody asks again by datagram, and so many may be lost.
    ///
    /// # Errors
    /// As [`Load::during`].
    pub fn during_with_losses(
        most_lost: usize,
        ways: &[Way<'_>],
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<usize> {
        Self::with(Some(most_lost), ways, work)
    }

    fn with(most_lost: Option<usize>, ways: &[Way<'_>], work: impl FnOnce(&Self) -> Result<()>) -> Result<usize> {
        let load = Self {
            end: AtomicBool::new(false),
            answered: (0..2 * ways.len()).map(|_| AtomicUsize::new(0)).collect(),
            failures: Mutex::new(Vec::new()),
            lost: Mutex::new(Vec::new()),
            most_lost,
        };
        let result = std::thread::scope(|scope| {
            for (number, way) in ways.iter().enumerate() {
                let (load, [tcp, udp]) = (&load, [0, 1].map(|which| &load.answered[2 * number + which]));
                scope.spawn(move || {
                    load.repeat(tcp, "TCP", *way, || Connection::open(way.0, way.1)?.ask().map(|_| true))
                });
                scope.spawn(move || {
                    load.repeat(udp, "UDP", *way, || match most_lost {
                        None => datagram(*way).map(|()| true),
                        Some(_) => load.one_datagram(*way),
                    })
                });
            }
            let _ends = Ends(&load.end);
            work(&load)
        });
        let failures = load.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(failures.is_empty(), "{} requests failed:\n{}", failures.len(), failures.join("\n"));
        let lost = load.lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(lost.len() <= most_lost.unwrap_or(0), "{} datagrams were lost:\n{}", lost.len(), lost.join("\n"));
        result?;
        let answered = load.answered.into_iter().map(AtomicUsize::into_inner).sum();
        println!("{answered} requests were answered, {} datagrams were lost {lost:?}", lost.len());
        Ok(answered)
    }

    fn repeat(&self, answered: &AtomicUsize, protocol: &str, way: Way<'_>, ask: impl Fn() -> Result<bool>) {
        while !self.end.load(Ordering::Relaxed) {
            match ask() {
                Ok(true) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                Ok(false) => {}
                Err(error) => {
                    let after = answered.load(Ordering::Relaxed);
                    let text = format!("{protocol}, {} to {}, after {after}: {error:#}", way.0.name(), way.1);
                    self.failures.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                    return;
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until every client has had some more answers.
    ///
    /// # Errors
    /// One has not.
    pub fn go_on(&self) -> Result<()> {
        let before: Vec<_> = self.answered.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let failed = || {
            !self.failures.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
                || self.lost.lock().unwrap_or_else(PoisonError::into_inner).len() > self.most_lost.unwrap_or(0)
        };
        let more = || {
            let all = self.answered.iter().zip(&before);
            let enough = all.into_iter().all(|(now, before)| now.load(Ordering::Relaxed) >= before + ROUND);
            (enough || failed()).then_some(())
        };
        until("every client to be answered some more times", more)
    }

    /// A question by one datagram of a new socket, and whether it was answered: nobody asks again.
    fn one_datagram(&self, way: Way<'_>) -> Result<bool> {
        let socket = datagrams(way.0, way.1)?;
        // However busy the machine is; shorter than anybody waits for the load to go on, so that the loss is what is told.
        socket.set_read_timeout(Some(patience(DEADLINE / 4)))?;
        let Err(error) = try_once(&socket)? else { return Ok(true) };
        let text = format!("{} to {}, from {}: {error}", way.0.name(), way.1, socket.local_addr()?);
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        Ok(false)
    }
}

/// A question by datagram, as resolvers ask: each time of a new socket, and again where no answer comes.
pub(crate) fn datagram(way: Way<'_>) -> Result<()> {
    let mut failures = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        match try_once(&datagrams(way.0, way.1)?)? {
            Ok(_) => return Ok(()),
            Err(error) => failures.push(format!("{error} after {:.1?}", began.elapsed())),
        }
    }
    bail!("no answer to three datagrams: {}", failures.join("; "))
}

/// Connections that stay open: one of each way.
#[derive(Debug)]
pub struct Kept(Vec<(String, Connection, String)>);

impl Kept {
    /// Opens them.
    ///
    /// # Errors
    /// One cannot be.
    pub fn open(ways: &[Way<'_>]) -> Result<Self> {
        let open = |(from, to): &Way<'_>| {
            let mut connection = Connection::open(from, *to)?;
            let (server, _) = connection.ask()?;
            Ok((format!("{} to {to}", from.name()), connection, server))
        };
        ways.iter().map(open).collect::<Result<_>>().map(Self)
    }

    /// Asks over each, some times.
    ///
    /// # Errors
    /// One is broken, or with another server.
    pub fn ask(&mut self) -> Result<()> {
        for (way, connection, server) in &mut self.0 {
            for _ in 0..3 {
                let (answered, _) = connection.ask().map_err(|error| error.context(way.clone()))?;
                ensure!(answered == *server, "{way}: {answered} instead of {server}");
            }
        }
        Ok(())
    }
}
