//! Those who ask: a process of its own, so that it may be in a cgroup whose sockets are translated, with a thread for each
//! client. It asks until its standard input ends, and says all along how it goes.

use std::io::{self, BufRead, Read, Write};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::client::{Connection, DEADLINE, answer, unconnected_here};
use crate::netns::Netns;
use crate::server::LEAVING;

/// Between two requests of a client whose connections are new ones.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two requests of a client that stays.
const LONG_PAUSE: Duration = Duration::from_millis(200);
/// Between two reports.
const REPORT: Duration = Duration::from_millis(500);
/// The first packet of a connection that takes longer may have been lost: the kernel sends it again after a second.
const SLOW: Duration = Duration::from_millis(900);
/// Failures of one client that are told in full.
const TOLD: usize = 5;

/// How a client asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Manner {
    /// A new TCP connection for each request.
    Tcp,
    /// A new UDP socket for each.
    Udp,
    /// A TCP connection that stays until its server asks to leave.
    KeptTcp,
    /// A connected UDP socket that stays.
    KeptUdp,
    /// A UDP socket that stays and is not connected, as resolvers have.
    Resolver,
    /// A new TCP connection for each, to a Service that has a client come back to its endpoint.
    Loyal,
}

impl Manner {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 6] = [Self::Tcp, Self::Udp, Self::KeptTcp, Self::KeptUdp, Self::Resolver, Self::Loyal];

    /// As people read it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "new TCP connections",
            Self::Udp => "new UDP sockets",
            Self::KeptTcp => "TCP connections that stay",
            Self::KeptUdp => "connected UDP sockets that stay",
            Self::Resolver => "UDP sockets that stay, not connected",
            Self::Loyal => "clients with ClientIP affinity",
        }
    }
}

/// A client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Client {
    /// Who it is: a pod, the node, or outside.
    pub who: String,
    /// The namespace that it is in, by its name.
    pub namespace: String,
    /// How it asks.
    pub manner: Manner,
    /// What it asks.
    pub to: SocketAddr,
}

/// What became of a client's requests so far.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Tally {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Datagrams that had to be sent again, and sockets that were told to connect anew.
    pub again: u64,
    /// Connections that took so long to open that their first packet may have been lost.
    pub slow: u64,
    /// The longest that one took to open, in seconds.
    pub longest: f64,
    /// The first failures.
    pub failures: Vec<String>,
}

impl Tally {
    /// Adds another client's.
    pub fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        self.again += other.again;
        self.slow += other.slow;
        self.longest = self.longest.max(other.longest);
        self.failures.extend(other.failures.iter().cloned());
    }
}

/// The process: reads the clients, a line of JSON, from standard input, and has them ask until it ends. Every line of standard
/// output is the tallies of all of them.
///
/// # Errors
/// The line is none, or a namespace is missing.
pub fn serve() -> Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let clients: Vec<Client> = serde_json::from_str(&line).context("the clients")?;
    let (end, tallies) = (AtomicBool::new(false), clients.iter().map(|_| Mutex::default()).collect::<Vec<_>>());
    std::thread::scope(|scope| {
        let asking: Vec<_> = clients
            .iter()
            .zip(&tallies)
            .map(|(client, tally)| {
                let end = &end;
                scope.spawn(move || {
                    Netns::enter(&client.namespace)?;
                    Asking { client, tally, end, current: None, socket: None }.go_on();
                    anyhow::Ok(())
                })
            })
            .collect();
        let done = &end;
        scope.spawn(move || {
            // Until whoever started us ends, in whatever way.
            drop(io::stdin().lock().read_to_end(&mut Vec::new()));
            done.store(true, Ordering::Relaxed);
        });
        while !asking.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(REPORT);
            report(&tallies)?;
        }
        for thread in asking {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        report(&tallies)
    })
}

fn report(tallies: &[Mutex<Tally>]) -> Result<()> {
    let all: Vec<_> = tallies.iter().map(|tally| lock(tally).clone()).collect();
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&all)?)?;
    Ok(out.flush()?)
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A client at work.
struct Asking<'a> {
    client: &'a Client,
    tally: &'a Mutex<Tally>,
    end: &'a AtomicBool,
    /// The connection that stays, and who answers there.
    current: Option<(Option<Connection>, String)>,
    /// The socket that stays.
    socket: Option<std::net::UdpSocket>,
}

impl Asking<'_> {
    fn go_on(&mut self) {
        let pause = match self.client.manner {
            Manner::Tcp | Manner::Udp => PAUSE,
            _ => LONG_PAUSE,
        };
        while !self.end.load(Ordering::Relaxed) {
            let asked = match self.client.manner {
                Manner::Tcp => self.open().and_then(|mut connection| connection.ask()).map(drop),
                Manner::Udp => self.datagram(false),
                Manner::KeptUdp | Manner::Resolver => self.datagram(true),
                Manner::KeptTcp => self.kept(),
                Manner::Loyal => self.loyal(),
            };
            match asked {
                Ok(()) => lock(self.tally).answered += 1,
                Err(error) => self.failed(&error),
            }
            std::thread::sleep(pause);
        }
    }

    fn failed(&mut self, error: &anyhow::Error) {
        (self.current, self.socket) = (None, None);
        let mut tally = lock(self.tally);
        tally.failed += 1;
        if tally.failures.len() < TOLD {
            let Client { who, manner, to, .. } = self.client;
            let after = tally.answered;
            tally.failures.push(format!("{who} to {to}, {}, after {after} answers: {error:#}", manner.name()));
        }
    }

    fn open(&self) -> Result<Connection> {
        let begin = Instant::now();
        let opened = Connection::open_here(self.client.to, DEADLINE).context("connecting");
        let took = begin.elapsed();
        let mut tally = lock(self.tally);
        tally.slow += u64::from(took >= SLOW);
        tally.longest = tally.longest.max(took.as_secs_f64());
        opened
    }

    /// Over one connection, until its server asks to leave.
    fn kept(&mut self) -> Result<()> {
        let (mut connection, before) = match self.current.take() {
            Some((Some(connection), name)) => (connection, Some(name)),
            _ => (self.open()?, None),
        };
        let (name, _) = connection.ask()?;
        if let Some(before) = before {
            ensure!(name.trim_end_matches(LEAVING) == before, "{name} answers where {before} did");
        }
        if !name.ends_with(LEAVING) {
            self.current = Some((Some(connection), name));
        }
        Ok(())
    }

    /// A new connection, which comes to the endpoint of the last one unless that has left.
    fn loyal(&mut self) -> Result<()> {
        let (name, _) = self.open()?.ask()?;
        let name = name.trim_end_matches(LEAVING).to_owned();
        if let Some((_, before)) = self.current.take()
            && !super::world::may_leave(&before)
        {
            ensure!(name == before, "{name} answers a client that had {before}");
        }
        self.current = Some((None, name));
        Ok(())
    }

    /// A question by datagram, again where no answer comes, as resolvers do.
    fn datagram(&mut self, keep: bool) -> Result<()> {
        for attempt in 0..3 {
            if attempt > 0 {
                // A refusal comes at once.
                std::thread::sleep(PAUSE);
                lock(self.tally).again += 1;
            }
            let socket = match self.socket.take() {
                Some(socket) => socket,
                None => self.socket()?,
            };
            match self.exchange(&socket)? {
                Ok(()) => {
                    self.socket = keep.then_some(socket);
                    return Ok(());
                }
                // The proxy ends connected sockets whose endpoint has gone: they are to connect anew.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                // A socket that stays is asked with again, as who has it would.
                Err(_) => self.socket = keep.then_some(socket),
            }
        }
        bail!("no answer to three datagrams")
    }

    fn socket(&self) -> io::Result<std::net::UdpSocket> {
        let socket = unconnected_here(self.client.to)?;
        if self.client.manner != Manner::Resolver {
            socket.connect(self.client.to)?;
        }
        Ok(socket)
    }

    fn exchange(&self, socket: &std::net::UdpSocket) -> Result<io::Result<()>> {
        let (mut buffer, to) = ([0; 128], self.client.to);
        let sent = match self.client.manner {
            Manner::Resolver => socket.send_to(b"?\n", to),
            _ => socket.send(b"?\n"),
        };
        let received = sent.and_then(|_| socket.recv_from(&mut buffer));
        let (length, from) = match received {
            Ok(received) => received,
            Err(error) => return Ok(Err(error)),
        };
        ensure!(from == to, "{from} answers what was asked of {to}");
        answer(&String::from_utf8_lossy(&buffer[..length])).map(|_| Ok(()))
    }
}
