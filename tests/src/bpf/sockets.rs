//! Sockets of processes in a cgroup. A socket belongs to the cgroup of the process that makes it; so a process that is put
//! there makes them, and hands them over.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

use crate::client::{DEADLINE, patience};
use crate::netns::Netns;

// What a maker is asked for.
const DATAGRAMS: u8 = 0;
const STREAM: u8 = 1;
const SUBFLOWS: u8 = 2;

/// The program of [`Maker::start`], beside the running test: cargo builds it with the tests.
///
/// # Errors
/// It is not there.
pub fn program() -> Result<PathBuf> {
    // A test lies in TARGET/PROFILE/deps, a program in TARGET/PROFILE.
    let own = std::env::current_exe()?;
    let paths = own.ancestors().skip(1).take(2).map(|folder| folder.join("socket-maker"));
    paths
        .into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("cargo built no socket-maker beside {}", own.display()))
}

/// A process in a namespace and a cgroup that makes sockets.
#[derive(Debug)]
pub struct Maker {
    /// The namespace's.
    name: String,
    channel: Mutex<UnixStream>,
    process: Child,
}

impl Maker {
    /// Starts the process: `program` is the binary that calls [`serve`].
    ///
    /// # Errors
    /// It cannot be started, or not put into the cgroup.
    pub fn start(program: &Path, namespace: &Netns, cgroup: &Path) -> Result<Self> {
        let (channel, theirs) = UnixStream::pair()?;
        // The shell moves itself, so that nothing of the program runs elsewhere.
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$1/cgroup.procs\" && exec \"$2\"", "sh"]).arg(cgroup).arg(program);
        let process = namespace.spawn(command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null()))?;
        // Once it answers it is where it should be.
        let maker = Self { name: namespace.name().to_string(), channel: Mutex::new(channel), process };
        maker.make(false, SocketType::STREAM).context("the process that makes sockets")?;
        Ok(maker)
    }

    /// The name of the namespace that its sockets are in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A socket of this kind, for IPv6 or for IPv4. Of several threads one is served after the other.
    ///
    /// # Errors
    /// The process is gone.
    pub fn make(&self, v6: bool, kind: SocketType) -> Result<OwnedFd> {
        self.ask(v6, if kind == SocketType::STREAM { STREAM } else { DATAGRAMS })
    }

    fn ask(&self, v6: bool, kind: u8) -> Result<OwnedFd> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.write_all(&[u8::from(v6), kind])?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        rustix::net::recvmsg(&*channel, &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::CMSG_CLOEXEC)?;
        let socket = rights.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut sockets) => sockets.next(),
            _ => None,
        });
        socket.context("no socket came")
    }

    /// A TCP socket, for IPv6 (and IPv4-mapped) addresses or for IPv4.
    ///
    /// # Errors
    /// The process is gone.
    pub fn tcp(&self, v6: bool) -> Result<Tcp> {
        self.make(v6, SocketType::STREAM).map(Tcp)
    }

    /// A socket of MPTCP, as [`Maker::tcp`]: the kernel makes one of TCP for it, which is what connects.
    ///
    /// # Errors
    /// The process is gone, or the kernel has no MPTCP.
    pub fn mptcp(&self, v6: bool) -> Result<Tcp> {
        self.ask(v6, SUBFLOWS).map(Tcp)
    }

    /// A UDP socket, as [`Maker::tcp`].
    ///
    /// # Errors
    /// The process is gone.
    pub fn udp(&self, v6: bool) -> Result<UdpSocket> {
        let socket = UdpSocket::from(self.make(v6, SocketType::DGRAM)?);
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        Ok(socket)
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing of it is left.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// A TCP socket that is not connected yet.
#[derive(Debug)]
pub struct Tcp(OwnedFd);

impl Tcp {
    /// Binds it first.
    ///
    /// # Errors
    /// The address is not the namespace's.
    pub fn bind(self, at: SocketAddr) -> io::Result<Self> {
        rustix::net::bind(&self.0, &at)?;
        Ok(self)
    }

    /// Binds it first, to a port that other sockets may be connected from.
    ///
    /// # Errors
    /// The address is not the namespace's.
    pub fn bind_beside_others(self, at: SocketAddr) -> io::Result<Self> {
        set_socket_reuseaddr(&self.0, true)?;
        self.bind(at)
    }

    /// Connects and stays a socket that may connect again, if that fails; by [`DEADLINE`].
    ///
    /// # Errors
    /// As the socket is told.
    pub fn try_connect(&self, to: SocketAddr) -> io::Result<()> {
        set_socket_timeout(&self.0, Timeout::Send, Some(patience(DEADLINE)))?;
        Ok(rustix::net::connect(&self.0, &to)?)
    }

    /// Connects, with this patience.
    ///
    /// # Errors
    /// As the socket is told.
    pub fn connect(self, to: SocketAddr, within: Duration) -> io::Result<TcpStream> {
        // Linux counts connecting as sending.
        set_socket_timeout(&self.0, Timeout::Send, Some(patience(within)))?;
        rustix::net::connect(&self.0, &to)?;
        let stream = TcpStream::from(self.0);
        stream.set_read_timeout(Some(patience(DEADLINE)))?;
        Ok(stream)
    }
}

/// The process: makes sockets and hands them over by standard input until that ends.
///
/// # Errors
/// A socket cannot be made, or the other side is gone.
pub fn serve() -> io::Result<()> {
    let mut channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut wanted = [0; 2];
    while channel.read_exact(&mut wanted).is_ok() {
        let family = if wanted[0] == 1 { AddressFamily::INET6 } else { AddressFamily::INET };
        let kind = if wanted[1] == DATAGRAMS { SocketType::DGRAM } else { SocketType::STREAM };
        let protocol = (wanted[1] == SUBFLOWS).then_some(rustix::net::ipproto::MPTCP);
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
        let sockets = [socket.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        rights.push(SendAncillaryMessage::ScmRights(&sockets));
        rustix::net::sendmsg(&channel, &[IoSlice::new(&[0])], &mut rights, SendFlags::empty())?;
    }
    Ok(())
}
