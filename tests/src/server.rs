//! A server that says who it is, and that can end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::hosts::Host;
use crate::netns::Netns;

/// What a server's name ends with once it asks its clients to leave.
pub const LEAVING: &str = "/leaving";

/// Servers on a port at each address of a host, TCP and UDP: every line is answered with `NAME CLIENT`, a line with the host's
/// name and the address that the client has for it. They end, and their connections with them, when the value is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listeners: Vec<Arc<TcpListener>>,
    sockets: Vec<Arc<UdpSocket>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    leaving: AtomicBool,
    ended: AtomicBool,
    /// The connections that are open, by number.
    open: Mutex<BTreeMap<u64, Arc<TcpStream>>>,
    /// Connections taken so far.
    taken: AtomicU64,
}

impl Server {
    /// Starts them.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start(host: &Host, port: u16) -> Result<Self> {
        Self::start_at(&host.name, &host.namespace, &host.addresses, port)
    }

    /// The same at these addresses of a namespace, under a name of its own.
    ///
    /// # Errors
    /// As [`Server::start`], or the namespace has not such an address.
    pub fn start_at(name: &str, namespace: &Netns, addresses: &[IpAddr], port: u16) -> Result<Self> {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            leaving: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
            taken: AtomicU64::new(0),
        });
        let mut server = Self { shared, listeners: Vec::new(), sockets: Vec::new() };
        for ip in addresses {
            let at = SocketAddr::new(*ip, port);
            let bound = namespace.run(|| Ok::<_, std::io::Error>((TcpListener::bind(at)?, UdpSocket::bind(at)?)))?;
            let (listener, socket) = bound.with_context(|| format!("cannot serve at {at}"))?;
            let (listener, socket) = (Arc::new(listener), Arc::new(socket));
            let (shared, its) = (server.shared.clone(), listener.clone());
            thread::spawn(move || shared.serve_tcp(&its));
            let (shared, its) = (server.shared.clone(), socket.clone());
            thread::spawn(move || shared.serve_udp(&its));
            server.listeners.push(listener);
            server.sockets.push(socket);
        }
        Ok(server)
    }

    /// Goes on until the process ends.
    pub fn for_good(self) {
        std::mem::forget(self);
    }

    /// From now on every answer asks the client to leave: the name in it ends with [`LEAVING`].
    pub fn leave(&self) {
        self.shared.leaving.store(true, Ordering::Relaxed);
    }

    /// How many connections it has taken so far.
    pub fn taken(&self) -> u64 {
        self.shared.taken.load(Ordering::Relaxed)
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Linux wakes the threads in accept(2) and recvfrom(2), the latter though it says that nobody is connected.
        for listener in &self.listeners {
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
        }
        for socket in &self.sockets {
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        }
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).values() {
            // One that the client has closed is as good.
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

impl Shared {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn answer(&self, client: SocketAddr) -> String {
        let leaving = if self.leaving.load(Ordering::Relaxed) { LEAVING } else { "" };
        format!("{}{leaving} {client}\n", self.name)
    }

    fn serve_tcp(self: &Arc<Self>, listener: &TcpListener) {
        while !self.has_ended() {
            match listener.accept() {
                Ok((stream, client)) => {
                    let shared = self.clone();
                    let number = self.taken.fetch_add(1, Ordering::Relaxed);
                    thread::spawn(move || shared.converse(number, stream, client));
                }
                // Too many open files, for one.
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Answers until the client has gone; that is its own affair.
    fn converse(&self, number: u64, stream: TcpStream, client: SocketAddr) {
        let stream = Arc::new(stream);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(number, stream.clone());
        if self.has_ended() {
            drop(stream.shutdown(Shutdown::Both));
        }
        for _ in BufReader::new(&*stream).lines().map_while(Result::ok) {
            if (&*stream).write_all(self.answer(client).as_bytes()).is_err() {
                break;
            }
        }
        // Its own end is on its way before it counts as over: whoever takes the network away then takes none with it.
        drop(stream.shutdown(Shutdown::Both));
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    fn serve_udp(&self, socket: &UdpSocket) {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            if self.has_ended() {
                return;
            }
            // A client that is gone is its own affair.
            drop(socket.send_to(self.answer(client).as_bytes(), client));
        }
    }
}
