//! The socket that owns the tracing table, and the one that the kernel tells of packets.

use std::io;
use std::os::fd::AsRawFd;

use netlink_sys::{Socket, SocketAddr, constants::NETLINK_NETFILTER};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::event::{self, Event};
use super::tap;
use crate::backend::nftables::netlink::{CommitError, Connection, Error};
use crate::live::filter::Filter;

/// `NFNLGRP_NFTRACE` of include/uapi/linux/netfilter/nfnetlink.h.
const TRACES: u32 = 9;
/// Room for one datagram.
const DATAGRAM: usize = 64 << 10;
/// Events that wait to be read, in bytes.
const WAITING: usize = 1 << 20;

/// Why packets cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The table was refused.
    #[error(
        "cannot have the kernel tell of packets: {0} (CAP_NET_ADMIN in the node's network namespace and Linux 5.12 are needed)"
    )]
    Table(#[from] CommitError),
    /// The socket failed.
    #[error("cannot hear what the kernel tells of packets: {0}")]
    Socket(#[from] io::Error),
    /// What it told was not understood.
    #[error("cannot read what the kernel tells of packets: {0}")]
    Read(#[from] Error),
}

/// Packets of this network namespace are told of as long as this lives, and no longer, however the process ends.
pub struct Tap {
    /// The owner of the table.
    _owner: Connection,
    socket: AsyncFd<Socket>,
    /// The table's name.
    pub table: String,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap").field("table", &self.table).finish_non_exhaustive()
    }
}

/// What was heard.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Events in the order in which they came to pass.
    Events(Vec<Event>),
    /// Events were lost: more came than were read.
    Lost,
}

impl Tap {
    /// Begins to follow the first packets of new connections that `filter` takes, `per_second` of them at most. Needs a runtime.
    ///
    /// # Errors
    /// The right or a kernel that has owned tables is missing.
    pub fn open(filter: &Filter, per_second: u32) -> Result<Self, TapError> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.add_membership(TRACES)?;
        socket.set_non_blocking(true)?;
        grow(&socket);
        // SAFETY: the descriptor is the socket's own, which is closed with it and not before.
        #[allow(unsafe_code)]
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }.map_err(io::Error::from)?;
        let owner = Connection::open()?;
        let table = tap::table(std::process::id());
        owner.commit(&table, &tap::ops(&tap::matches(filter), &tap::follow(per_second)))?;
        Ok(Self { _owner: owner, socket, table })
    }

    /// Waits for what comes next.
    ///
    /// # Errors
    /// The socket fails, or what it gives is no trace.
    pub async fn hear(&mut self) -> Result<Heard, TapError> {
        loop {
            let mut ready = self.socket.readable_mut().await?;
            let mut bytes = Vec::with_capacity(DATAGRAM);
            match ready.try_io(|socket| socket.get_ref().recv(&mut bytes, 0)) {
                Err(_) => {}
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(Heard::Lost),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error.into()),
                Ok(Ok(_)) => return Ok(Heard::Events(event::read(&bytes)?)),
            }
        }
    }
}

/// More room for events than the default; without the right the default has to do.
#[allow(unsafe_code)]
fn grow(socket: &Socket) {
    let size = libc::c_int::try_from(WAITING).unwrap_or(libc::c_int::MAX);
    let length = libc::socklen_t::try_from(size_of_val(&size)).unwrap_or_default();
    // SAFETY: the descriptor is ours and open, and the value is a live c_int of the length given.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, (&raw const size).cast(), length)
    };
}
