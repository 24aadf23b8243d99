//! The server that every variant has behind it, and the client: a process of its own, since a cgroup's programs translate the
//! sockets of whole processes.
//!
//! A client's first byte says what it wants of a connection: an answer, many answers, or to be listened to.
//!
//! Clients have one half of the CPUs, servers the other: where the kernel puts two threads that answer each other makes a
//! request six times as fast or slow, which is nothing that a datapath does.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::net::sockopt::set_socket_linger;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::generate::TARGET_PORT;
use crate::netns::Namespace;
use crate::{places, step};

const SERVERS: usize = 4;
const CLIENTS: usize = 4;
/// Bytes of a small request, and of its answer.
const REQUEST: usize = 64;
/// Bytes of a write to a stream.
const CHUNK: usize = 128 << 10;

const ONCE: u8 = b'o';
const MANY: u8 = b'm';
const STREAM: u8 = b's';

/// Serves at all of the namespace's addresses, until dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddrV4,
    namespace: String,
    stop: &'static AtomicBool,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Starts the threads; the socket listens when this returns.
    pub fn start(namespace: &Namespace) -> anyhow::Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, TARGET_PORT);
        let listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))??;
        // One server a benchmark: its flag may stay.
        let stop: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for _ in 0..SERVERS {
            let listener = listener.try_clone()?;
            threads.push(std::thread::spawn(move || {
                stay_on(Half::Second);
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((stream, _)) = listener.accept() {
                        // The client counts what fails.
                        let _ = serve(stream);
                    }
                }
            }));
        }
        Ok(Self { address, namespace: namespace.name().to_owned(), stop, threads })
    }
}

fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut wish = [0];
    stream.read_exact(&mut wish)?;
    match wish[0] {
        ONCE => stream.write_all(b"k"),
        MANY => {
            stream.set_nodelay(true)?;
            let mut request = [0; REQUEST];
            loop {
                stream.read_exact(&mut request)?;
                stream.write_all(&request)?;
            }
        }
        _ => {
            let mut buffer = vec![0; CHUNK];
            while stream.read(&mut buffer)? > 0 {}
            Ok(())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let address = self.address;
        let name = std::mem::take(&mut self.namespace);
        // Every thread sleeps in accept() and needs a connection to wake up.
        let waker = std::thread::spawn(move || {
            if crate::netns::move_this_thread(&name).is_ok() {
                (0..SERVERS).for_each(|_| drop(TcpStream::connect(address)));
            }
        });
        let _ = waker.join();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// Loads a service and measures, in a cgroup
#[derive(clap::Args)]
pub struct Args {
    /// The cgroup to run in
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// Milliseconds for each measurement
    #[arg(long)]
    time: u64,
    /// Open connections, no more
    #[arg(long)]
    only_connections: bool,
    /// Where to connect, in turn
    targets: Vec<SocketAddr>,
}

/// What a client measured of connections. Times are in seconds.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct Opened {
    /// Connections per second, of four threads, each with a request and its answer.
    pub connections: f64,
    /// From the call of connect() to the answer, of one thread.
    pub connect: Latency,
}

/// What a client measured. Times are in seconds.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct Measured {
    /// Of connections.
    #[serde(flatten)]
    pub opened: Opened,
    /// From a request to its answer, on one connection.
    pub request: Latency,
    /// Bits per second of one stream.
    pub stream: f64,
}

/// Of many times the middle one, and the one that 99 of 100 do not exceed.
#[derive(Clone, Copy, Serialize, Deserialize, Debug)]
pub struct Latency {
    pub median: f64,
    pub p99: f64,
}

impl Latency {
    fn of(mut times: Vec<f64>) -> anyhow::Result<Self> {
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied();
        Ok(Self { median: at(0.5).context("no request was made")?, p99: at(0.99).context("no request was made")? })
    }
}

/// Measures from a process in a namespace and a cgroup.
///
/// # Errors
/// A connection failed: figures of failures mean nothing.
pub fn measure(
    client: &Namespace,
    cgroup: Option<&Path>,
    targets: &[SocketAddrV4],
    time: Duration,
) -> anyhow::Result<Measured> {
    figures(&mut command(client, cgroup, targets, time)?)
}

/// The same of connections alone.
///
/// # Errors
/// A connection failed.
pub fn open(
    client: &Namespace,
    cgroup: Option<&Path>,
    targets: &[SocketAddrV4],
    time: Duration,
) -> anyhow::Result<Opened> {
    figures(command(client, cgroup, targets, time)?.arg("--only-connections"))
}

fn figures<T: serde::de::DeserializeOwned>(command: &mut Command) -> anyhow::Result<T> {
    serde_json::from_str(&step::output(command)?).context("the client's figures")
}

fn command(
    client: &Namespace,
    cgroup: Option<&Path>,
    targets: &[SocketAddrV4],
    time: Duration,
) -> anyhow::Result<Command> {
    crate::interrupt::check()?;
    let mut command = client.command(std::env::current_exe().context("where is xtask?")?);
    command.args(["load", "--time", &time.as_millis().to_string()]);
    if let Some(cgroup) = cgroup {
        command.arg("--cgroup").arg(cgroup);
    }
    command.args(targets.iter().map(ToString::to_string));
    Ok(command)
}

/// Of the CPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// Where clients are.
    First,
    /// Where servers are.
    Second,
}

/// Keeps this thread, and those that it starts, on one half of the CPUs that it has; on the one, where there is one.
pub fn stay_on(half: Half) {
    let Ok(all) = sched_getaffinity(None) else { return };
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    let (first, second) = cpus.split_at(cpus.len() / 2);
    let mut wanted = CpuSet::new();
    if first.is_empty() || half == Half::Second { second } else { first }.iter().for_each(|cpu| wanted.set(*cpu));
    // Without it, figures are only noisier.
    let _ = sched_setaffinity(None, &wanted);
}

/// The client's process.
pub fn run(args: Args) -> anyhow::Result<()> {
    args.cgroup.as_deref().map_or(Ok(()), places::enter)?;
    stay_on(Half::First);
    let time = Duration::from_millis(args.time);
    let first = args.targets.first().context("no targets")?;
    let opened = Opened {
        connections: connections_per_second(&args.targets, time)?,
        connect: connect_latency(&args.targets, time)?,
    };
    if args.only_connections {
        println!("{}", serde_json::to_string(&opened)?);
        return Ok(());
    }
    let measured = Measured { opened, request: request_latency(first, time)?, stream: stream_rate(first, time)? };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

fn connections_per_second(targets: &[SocketAddr], time: Duration) -> anyhow::Result<f64> {
    let done = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let work = |first: usize| {
            let done = &done;
            move || {
                for target in targets.iter().cycle().skip(first) {
                    if began.elapsed() >= time {
                        break;
                    }
                    connect(target)?;
                    done.fetch_add(1, Ordering::Relaxed);
                }
                anyhow::Ok(())
            }
        };
        let threads: Vec<_> = (0..CLIENTS).map(|first| scope.spawn(work(first))).collect();
        for thread in threads {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client thread panicked"),
            }
        }
        anyhow::Ok(())
    })?;
    Ok(done.into_inner() as f64 / began.elapsed().as_secs_f64())
}

fn connect_latency(targets: &[SocketAddr], time: Duration) -> anyhow::Result<Latency> {
    let began = Instant::now();
    let mut times = Vec::new();
    for target in targets.iter().cycle() {
        let start = Instant::now();
        if start - began >= time {
            break;
        }
        let stream = connect(target)?;
        times.push(start.elapsed().as_secs_f64());
        drop(stream);
    }
    Latency::of(times)
}

/// Closed by a reset when it is dropped, so that no port stays taken.
fn connect(target: &SocketAddr) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    stream.write_all(&[ONCE]).with_context(|| format!("writing to {target}"))?;
    let mut byte = [0];
    match stream.read_exact(&mut byte) {
        Err(error) if error.kind() != ErrorKind::Interrupted => {
            Err(error).with_context(|| format!("reading from {target}"))
        }
        _ => Ok(stream),
    }
}

fn request_latency(target: &SocketAddr, time: Duration) -> anyhow::Result<Latency> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&[MANY])?;
    let mut request = [7; REQUEST];
    let began = Instant::now();
    let mut times = Vec::new();
    while began.elapsed() < time {
        let start = Instant::now();
        stream.write_all(&request).and_then(|()| stream.read_exact(&mut request)).context("a request")?;
        times.push(start.elapsed().as_secs_f64());
    }
    Latency::of(times)
}

fn stream_rate(target: &SocketAddr, time: Duration) -> anyhow::Result<f64> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    stream.write_all(&[STREAM])?;
    let chunk = vec![0; CHUNK];
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed() < time {
        stream.write_all(&chunk).context("a stream")?;
        sent += chunk.len();
    }
    Ok(sent as f64 * 8.0 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_is_of_many_times() {
        let latency = Latency::of((0..1000).rev().map(f64::from).collect()).unwrap();
        assert_eq!((latency.median, latency.p99), (500.0, 990.0));
        Latency::of(Vec::new()).unwrap_err();
    }
}
