//! New connections, as many as will go: the server in one namespace, the clients in another.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::net::sockopt::set_socket_linger;

use super::generate::TARGET_PORT;
use crate::interrupt;
use crate::netns::Namespace;

const SERVERS: usize = 4;
const CLIENTS: usize = 4;

/// Answers every connection at any of the namespace's addresses with one byte and closes it, until dropped.
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
            threads.push(std::thread::spawn(move || serve(&listener, stop)));
        }
        Ok(Self { address, namespace: namespace.name().to_owned(), stop, threads })
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((mut stream, _)) = listener.accept() {
            // The client counts what fails.
            let _ = stream.write_all(b"k");
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

/// Connects to the targets in turn for so long and gives the connections per second. Each carries one byte and is closed by
/// a reset, so that no port stays taken.
///
/// # Errors
/// A connection failed: a rate of failures means nothing.
pub fn connections_per_second(client: &Namespace, targets: &[SocketAddrV4], time: Duration) -> anyhow::Result<f64> {
    interrupt::check()?;
    let done = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let work = |first: usize| {
            let done = &done;
            move || {
                crate::netns::move_this_thread(client.name())?;
                for target in targets.iter().cycle().skip(first) {
                    if began.elapsed() >= time {
                        break;
                    }
                    connect(*target)?;
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

fn connect(target: SocketAddrV4) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
    set_socket_linger(&stream, Some(Duration::ZERO))?;
    let mut byte = [0];
    match stream.read_exact(&mut byte) {
        Err(error) if error.kind() != ErrorKind::Interrupted => {
            Err(error).with_context(|| format!("reading from {target}"))
        }
        _ => Ok(()),
    }
}
