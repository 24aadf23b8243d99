//! Requests that never stop: new connections from every side one after the other, and connections that stay open. Every one of
//! them has to be answered.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::bpf::sockets::Maker;
use crate::client::{Connection, DEADLINE, datagrams, patience, try_once, until};
use crate::netns::Netns;

/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(5);
/// Requests of each client that have to be answered before something counts as seen by all.
pub const ROUND: usize = 10;

/// What everything says that tells of requests which were not answered as they should be. A test that fails with these words has failed,
/// whatever comes of it a second time (`xtask/src/outcome.rs`, which has them, too).
pub const LOST: &str = "requests failed";

/// Who asks whom.
pub type Way<'a, C = Netns> = (&'a C, SocketAddr);

/// Who asks, by what makes the sockets: in a namespace the test's own process, or one that is in a cgroup, too.
pub trait Client: Sync {
    /// The namespace's name.
    fn name(&self) -> &str;

    /// A new TCP connection.
    ///
    /// # Errors
    /// As the socket is told.
    fn connect(&self, to: SocketAddr) -> Result<Connection> {
        self.connect_within(to, DEADLINE)
    }

    /// The same, which may take so long.
    ///
    /// # Errors
    /// As [`Client::connect`].
    fn connect_within(&self, to: SocketAddr, patience: Duration) -> Result<Connection>;

    /// A new UDP socket, connected.
    ///
    /// # Errors
    /// As the socket is told.
    fn datagrams(&self, to: SocketAddr) -> Result<UdpSocket>;
}

impl Client for Netns {
    fn name(&self) -> &str {
        self.name()
    }

    fn connect_within(&self, to: SocketAddr, patience: Duration) -> Result<Connection> {
        Ok(Connection::open_within(self, to, patience)?)
    }

    fn datagrams(&self, to: SocketAddr) -> Result<UdpSocket> {
        datagrams(self, to)
    }
}

impl Client for Maker {
    fn name(&self) -> &str {
        self.name()
    }

    fn connect_within(&self, to: SocketAddr, patience: Duration) -> Result<Connection> {
        Ok(Connection::over(self.tcp(to.is_ipv6())?.connect(to, patience)?)?)
    }

    fn datagrams(&self, to: SocketAddr) -> Result<UdpSocket> {
        let socket = self.udp(to.is_ipv6())?;
        socket.connect(to)?;
        Ok(socket)
    }
}

/// Load that runs.
#[derive(Debug)]
pub struct Load {
    end: AtomicBool,
    /// For each client, how many requests were answered.
    answered: Vec<AtomicUsize>,
    failures: Mutex<Vec<String>>,
}

/// Ends the load when dropped: also where the work beside it panics, which would wait for ever for threads that go on.
#[derive(Debug)]
pub struct Ends<'a>(pub &'a AtomicBool);

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
    pub fn during<C: Client + ?Sized>(ways: &[Way<'_, C>], work: impl FnOnce(&Self) -> Result<()>) -> Result<usize> {
        Self::with(false, ways, work)
    }

    /// The same where nobody asks again by datagram.
    ///
    /// # Errors
    /// As [`Load::during`].
    pub fn during_asking_once<C: Client + ?Sized>(
        ways: &[Way<'_, C>],
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<usize> {
        Self::with(true, ways, work)
    }

    fn with<C: Client + ?Sized>(
        once: bool,
        ways: &[Way<'_, C>],
        work: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<usize> {
        let load = Self {
            end: AtomicBool::new(false),
            answered: (0..2 * ways.len()).map(|_| AtomicUsize::new(0)).collect(),
            failures: Mutex::new(Vec::new()),
        };
        let result = std::thread::scope(|scope| {
            for (number, way) in ways.iter().enumerate() {
                let (load, [tcp, udp]) = (&load, [0, 1].map(|which| &load.answered[2 * number + which]));
                scope.spawn(move || load.repeat(tcp, "TCP", *way, || way.0.connect(way.1)?.ask().map(drop)));
                scope.spawn(move || {
                    load.repeat(udp, "UDP", *way, || if once { one_datagram(*way) } else { datagram(*way).map(drop) });
                });
            }
            let _ends = Ends(&load.end);
            work(&load)
        });
        let failures = load.failures.into_inner().unwrap_or_else(PoisonError::into_inner);
        ensure!(failures.is_empty(), "{} {LOST}:\n{}", failures.len(), failures.join("\n"));
        result?;
        let answered = load.answered.into_iter().map(AtomicUsize::into_inner).sum();
        println!("{answered} requests were answered");
        Ok(answered)
    }

    fn repeat<C: Client + ?Sized>(
        &self,
        answered: &AtomicUsize,
        protocol: &str,
        way: Way<'_, C>,
        ask: impl Fn() -> Result<()>,
    ) {
        while !self.end.load(Ordering::Relaxed) {
            match ask() {
                Ok(()) => drop(answered.fetch_add(1, Ordering::Relaxed)),
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
        let failed = || !self.failures.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let more = || {
            let all = self.answered.iter().zip(&before);
            let enough = all.into_iter().all(|(now, before)| now.load(Ordering::Relaxed) >= before + ROUND);
            (enough || failed()).then_some(())
        };
        until("every client to be answered some more times", more)
    }
}

/// A question by one datagram of a new socket: nobody asks again.
fn one_datagram<C: Client + ?Sized>((from, to): Way<'_, C>) -> Result<()> {
    let socket = from.datagrams(to)?;
    // However busy the machine is; shorter than anybody waits for the load to go on, so that the loss is what is told.
    socket.set_read_timeout(Some(patience(DEADLINE / 4)))?;
    match try_once(&socket)? {
        Ok(_) => Ok(()),
        Err(error) => bail!("from {}: {error}", socket.local_addr()?),
    }
}

/// A question by datagram, as resolvers ask: each time of a new socket, and again where no answer comes. Whether it was asked again.
pub(crate) fn datagram<C: Client + ?Sized>((from, to): Way<'_, C>) -> Result<bool> {
    let mut failures = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        match try_once(&from.datagrams(to)?)? {
            Ok(_) => return Ok(!failures.is_empty()),
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
    pub fn open<C: Client + ?Sized>(ways: &[Way<'_, C>]) -> Result<Self> {
        let open = |(from, to): &Way<'_, C>| {
            let way = format!("{} to {to}", from.name());
            let asked = from.connect(*to).and_then(|mut connection| Ok((connection.ask()?.0, connection)));
            let (server, connection) = asked.with_context(|| format!("{way}, by a connection that is to stay open"))?;
            Ok((way, connection, server))
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
                let asked = connection.ask();
                let (answered, _) = asked.with_context(|| format!("{way}, by a connection that was open: {LOST}"))?;
                ensure!(
                    answered == *server,
                    "{way}, by a connection that was open: {LOST}: {answered} instead of {server}"
                );
            }
        }
        Ok(())
    }
}
