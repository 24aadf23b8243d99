//! Clients with real sockets, and a running `kubeferry` for them.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::executors::Source;
use crate::netns::Netns;

/// How long anything may take before it counts as not happening.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// How long a datagram's answer may take before the next is sent.
const DATAGRAM: Duration = Duration::from_millis(500);

/// How long something that may take `time` elsewhere may take here: so many times as long as `KUBEFERRY_TEST_PATIENCE` says, which
/// is set in emulated machines.
pub fn patience(time: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = || std::env::var("KUBEFERRY_TEST_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    time.saturating_mul(*TIMES.get_or_init(times))
}

/// A TCP connection to a server of [`Host::serve`](crate::hosts::Host::serve).
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from inside a namespace.
    ///
    /// # Errors
    /// As the client's socket is told: refused, or no answer.
    pub fn open(from: &Netns, to: SocketAddr) -> std::io::Result<Self> {
        Self::open_within(from, to, DEADLINE)
    }

    /// One of several attempts while rules may not be there yet. Short: a packet that found none has made connection tracking
    /// leave its connection as it is, and the same packet sent again finds that.
    pub fn attempt(from: &Netns, to: SocketAddr) -> Option<Self> {
        Self::open_within(from, to, DEADLINE / 10).ok()
    }

    /// As [`Connection::open`], with other patience: for what is not expected to answer.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_within(from: &Netns, to: SocketAddr, patience: Duration) -> std::io::Result<Self> {
        from.run(|| Self::open_here(to, patience)).map_err(std::io::Error::other)?
    }

    /// Connects from the namespace that the calling thread is in.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub fn open_here(to: SocketAddr, within: Duration) -> std::io::Result<Self> {
        Self::over(TcpStream::connect_timeout(&to, patience(within))?)
    }

    /// Over a stream that somebody else has connected.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn over(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_read_timeout(Some(patience(DEADLINE)))?;
        Ok(Self { reader: BufReader::new(stream.try_clone()?), stream })
    }

    /// The same from one of several addresses that the client has.
    ///
    /// # Errors
    /// As [`Connection::open`], or the client does not have the address.
    pub fn open_from(from: &Netns, source: IpAddr, to: SocketAddr) -> std::io::Result<Self> {
        let connect = || {
            let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
            let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // Linux counts connecting as sending.
            set_socket_timeout(&socket, Timeout::Send, Some(patience(DEADLINE)))?;
            rustix::net::bind(&socket, &SocketAddr::new(source, 0))?;
            rustix::net::connect(&socket, &to)?;
            Ok::<_, std::io::Error>(TcpStream::from(socket))
        };
        Self::over(from.run(connect).map_err(std::io::Error::other)??)
    }

    /// Sends a line and returns the server's answer: its name and the client's address as it sees it.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn ask(&mut self) -> Result<(String, SocketAddr)> {
        self.stream.write_all(b"?\n").context("sending")?;
        let mut line = String::new();
        self.reader.read_line(&mut line).context("receiving")?;
        answer(&line)
    }

    /// Waits for so long for each answer from now on, and no longer.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn wait_for(&self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    /// The client's own address.
    ///
    /// # Errors
    /// The socket is broken.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }
}

/// Some, once the proxy of a node has written its rows.
pub fn synced(node: &Netns) -> Option<()> {
    let get = || kubeferry::status::get("http://127.0.0.1:10249/status", DEADLINE);
    let status: serde_json::Value = serde_json::from_str(&node.run(get).ok()?.ok()?.body).ok()?;
    (status["syncs"].as_u64()? > 0).then_some(())
}

/// A UDP socket inside a namespace, connected to a server of [`Host::serve`](crate::hosts::Host::serve).
///
/// # Errors
/// No route.
pub fn datagrams(from: &Netns, to: SocketAddr) -> Result<UdpSocket> {
    let socket = from.run(|| unconnected_here(to))??;
    // A socket is of the namespace that it was made in, wherever it is connected.
    socket.connect(to)?;
    Ok(socket)
}

/// A UDP socket that is not connected, of the kind that sends there, in the namespace that the calling thread is in.
///
/// # Errors
/// As bind(2).
pub fn unconnected_here(to: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(patience(DATAGRAM)))?;
    Ok(socket)
}

/// Sends a datagram and returns the server's answer; `None` where none comes, or a refusal does.
///
/// # Errors
/// The answer is garbage.
pub fn ask_once(socket: &UdpSocket) -> Result<Option<(String, SocketAddr)>> {
    Ok(try_once(socket)?.ok())
}

/// The same, with what the socket says where there is no answer: that none came in time, or that it was refused.
///
/// # Errors
/// The answer is garbage.
pub fn try_once(socket: &UdpSocket) -> Result<std::io::Result<(String, SocketAddr)>> {
    let mut buffer = [0; 128];
    match socket.send(b"?\n").and_then(|_| socket.recv(&mut buffer)) {
        Ok(length) => answer(&String::from_utf8_lossy(&buffer[..length])).map(Ok),
        Err(error) => Ok(Err(error)),
    }
}

/// Sends datagrams until the socket is told that the port is unreachable.
///
/// # Errors
/// An answer came, or nothing did within [`DEADLINE`].
pub fn refused(socket: &UdpSocket) -> Result<()> {
    let mut buffer = [0; 128];
    let end = Instant::now() + patience(DEADLINE);
    while Instant::now() < end {
        match socket.send(b"?\n").and_then(|_| socket.recv(&mut buffer)) {
            Ok(_) => bail!("a server answered"),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Ok(()),
            Err(_) => {}
        }
    }
    bail!("waited {DEADLINE:?} for a datagram to be refused")
}

/// Tries until `attempt` gives something.
///
/// # Errors
/// [`DEADLINE`] is over; the message says what was waited for.
pub fn until<T>(what: &str, attempt: impl FnMut() -> Option<T>) -> Result<T> {
    until_for(DEADLINE, what, attempt)
}

/// The same for what takes its time.
///
/// # Errors
/// `within` is over; the message says what was waited for.
pub fn until_for<T>(within: Duration, what: &str, mut attempt: impl FnMut() -> Option<T>) -> Result<T> {
    let within = patience(within);
    let end = Instant::now() + within;
    loop {
        if let Some(found) = attempt() {
            return Ok(found);
        }
        ensure!(Instant::now() < end, "waited {within:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Reads what a server answers: its name, and the client's address as it sees it.
///
/// # Errors
/// It is something else.
pub fn answer(line: &str) -> Result<(String, SocketAddr)> {
    let (name, client) = line.trim_end().split_once(' ').with_context(|| format!("a strange answer {line:?}"))?;
    Ok((name.to_string(), client.parse()?))
}

/// A `kubeferry run` that goes on until the value is dropped.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// Starts `kubeferry run` in a node's namespace.
    ///
    /// # Errors
    /// There is no binary, or it cannot be started.
    pub fn start(source: &Source, node: &Netns) -> Result<Self> {
        Self::start_command(&mut source.command("run")?, node)
    }

    /// The same for a command that the caller has written.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_command(command: &mut Command, node: &Netns) -> Result<Self> {
        node.spawn(command.stdin(Stdio::null()).stdout(Stdio::null())).map(Self)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It does not within [`DEADLINE`].
    pub fn ended(&mut self) -> Result<std::process::ExitStatus> {
        until("kubeferry to end by itself", || self.0.try_wait().ok().flatten())
    }

    /// Ends it by SIGTERM, as a node does, and waits.
    ///
    /// # Errors
    /// It does not end within [`DEADLINE`].
    #[allow(unsafe_code)]
    pub fn stop(mut self) -> Result<std::process::ExitStatus> {
        let pid = i32::try_from(self.0.id())?;
        // SAFETY: no memory is touched; the process is our child and not yet waited for, so the id is its own.
        ensure!(unsafe { libc::kill(pid, libc::SIGTERM) } == 0, "SIGTERM: {}", std::io::Error::last_os_error());
        until("kubeferry to end", || self.0.try_wait().ok().flatten())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it is left.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
