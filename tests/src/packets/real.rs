//! First packets of real sockets, as the kernel makes them when a program connects or sends. They carry a cookie as crafted
//! ones do: in a datagram by what is sent, in a SYN by the sequence number that the socket is told to begin with.
//!
//! Pods share one namespace, which has none of their addresses: a socket is bound to its pod's all the same (IP_TRANSPARENT),
//! and what it sends is taken from the wire, to be put on the pod's cable.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{SendFlags, SocketType};

use super::kernel::{FrameSocket, wait};
use super::{Protocol, Seen, first_packet, packet};
use crate::bpf::sockets::{Maker, program};
use crate::netns::{End, Netns, link, mac_text};
use crate::sockets::{set_option, without_offloads};

/// The wire's name at both ends.
const WIRE: &str = "sockets";
/// The next hop as the pods' routes know it; never on the wire.
const GATEWAY: (&str, &str) = ("169.254.1.1", "fe80::1");
const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 3, 1], [2, 0, 0, 0, 3, 2]);
/// How long a packet may take to the end of the wire.
const DEADLINE: Duration = Duration::from_secs(20);

/// What a program does first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// It connects; a UDP socket then sends.
    Connect,
    /// It sends a datagram without connecting.
    Send,
}

/// Sockets of the node and of its pods, in a cgroup.
#[derive(Debug)]
pub struct Sockets {
    node: Maker,
    pods: Maker,
    wire: FrameSocket,
    _namespace: Netns,
}

impl Sockets {
    /// Makes the pods' namespace, with a wire to `far`.
    ///
    /// # Errors
    /// A right or a tool is missing.
    pub fn new(node: &Netns, far: &Netns, cgroup: &Path) -> Result<Self> {
        let namespace = Netns::new("pods")?;
        let end = End { namespace: far, interface: WIRE, mac: MACS.1 };
        link(End { namespace: &namespace, interface: WIRE, mac: MACS.0 }, end)?;
        let mut lines = Vec::new();
        for (gateway, all) in [(GATEWAY.0, "default"), (GATEWAY.1, "::/0")] {
            lines.push(format!("neigh add {gateway} lladdr {} dev {WIRE} nud permanent", mac_text(MACS.1)));
            lines.push(format!("route add {all} via {gateway} dev {WIRE} onlink"));
        }
        namespace.ip(&lines)?;
        // What is taken from the wire has its checksums.
        without_offloads(&namespace, WIRE)?;
        let wire = far.run(|| FrameSocket::open(WIRE))??;
        let program = program()?;
        let maker = |namespace| Maker::start(&program, namespace, cgroup);
        Ok(Self { node: maker(node)?, pods: maker(&namespace)?, wire, _namespace: namespace })
    }

    /// Has a socket of the node send its first packet.
    ///
    /// # Errors
    /// The address is not the node's, or what the call says, unless that may be an answer to the packet.
    pub fn of_node(&self, protocol: Protocol, call: Call, from: SocketAddr, to: SocketAddr, cookie: u32) -> Result<()> {
        let socket = make(&self.node, protocol, from)?;
        begin(&socket, protocol, call, from, to, cookie)
    }

    /// A socket of a pod that listens.
    fn listener(&self, protocol: Protocol, at: SocketAddr) -> Result<OwnedFd> {
        let socket = transparent(make(&self.pods, protocol, at)?, at)?;
        if protocol == Protocol::Tcp {
            // What came to the one before may not be over.
            set_socket_reuseaddr(&socket, true)?;
        }
        let context = || format!("a pod cannot listen at {at}");
        once_free(|| rustix::net::bind(&socket, &at)).with_context(context)?;
        if protocol == Protocol::Tcp {
            once_free(|| rustix::net::listen(&socket, 1)).with_context(context)?;
        }
        Ok(socket)
    }

    /// The first packet of a pod's socket, as it leaves the pod; it has no Ethernet header. At `listens` the pod listens
    /// itself.
    ///
    /// # Errors
    /// None comes.
    pub fn of_pod(
        &self,
        protocol: Protocol,
        call: Call,
        from: SocketAddr,
        to: SocketAddr,
        cookie: u32,
        listens: &[SocketAddr],
    ) -> Result<Vec<u8>> {
        let listeners = listens.iter().map(|at| self.listener(protocol, *at));
        let _listeners = listeners.collect::<Result<Vec<_>>>()?;
        let socket = transparent(make(&self.pods, protocol, from)?, from)?;
        begin(&socket, protocol, call, from, to, cookie)?;
        let end = Instant::now() + DEADLINE;
        loop {
            while let Some(bytes) = self.wire.receive()? {
                if matches!(packet(&bytes), Some(Seen::First { cookie: found, .. }) if found == cookie) {
                    return Ok(bytes);
                }
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "waited {DEADLINE:?} for a pod's socket to send from {from} to {to}");
            wait(&[self.wire.as_raw_fd()], left)?;
        }
    }
}

/// Does what a socket that listens at the same place is in the way of, once that is gone: one that is closed here lives on in a
/// process that another thread has just forked, until that runs its own program.
fn once_free(what: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    let end = Instant::now() + DEADLINE;
    loop {
        match what() {
            Err(Errno::ADDRINUSE) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
            done => return done,
        }
    }
}

fn make(maker: &Maker, protocol: Protocol, from: SocketAddr) -> Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
        Protocol::Sctp => bail!("no program here makes sockets of SCTP"),
    };
    maker.make(from.is_ipv6(), kind)
}

/// May have an address that its namespace has not.
fn transparent(socket: OwnedFd, from: SocketAddr) -> Result<OwnedFd> {
    let (level, name) = match from {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TRANSPARENT),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT),
    };
    set_option(&socket, level, name, &1_i32.to_ne_bytes()).context("IP_TRANSPARENT")?;
    Ok(socket)
}

fn begin(
    socket: &OwnedFd,
    protocol: Protocol,
    call: Call,
    from: SocketAddr,
    to: SocketAddr,
    cookie: u32,
) -> Result<()> {
    rustix::io::ioctl_fionbio(socket, true)?;
    if protocol == Protocol::Tcp {
        first_number(socket, cookie).context("TCP_REPAIR")?;
    }
    set_socket_reuseaddr(socket, true)?;
    rustix::net::bind(socket, &from).with_context(|| format!("cannot bind to {from}"))?;
    // A datagram's content is at the end.
    let whole = first_packet(protocol, from, to, cookie);
    let content = whole.get(whole.len() - 12..).unwrap_or_default();
    let connects = protocol == Protocol::Tcp || call == Call::Connect;
    let result = match (connects, protocol) {
        (true, Protocol::Udp) => {
            rustix::net::connect(socket, &to)?;
            let peer = SocketAddr::try_from(rustix::net::getpeername(socket)?.context("no peer")?)?;
            ensure!(peer == to, "a socket that was connected to {to} shows {peer}");
            rustix::net::send(socket, content, SendFlags::empty()).map(drop)
        }
        (true, _) => rustix::net::connect(socket, &to),
        (false, _) => rustix::net::sendto(socket, content, SendFlags::empty(), &to).map(drop),
    };
    match result.map_err(io::Error::from) {
        // Under way; refused or dropped already, on the node itself: what becomes of it is to be seen elsewhere.
        Err(error)
            if ![Some(libc::EINPROGRESS), Some(libc::ECONNREFUSED), Some(libc::EPERM)]
                .contains(&error.raw_os_error()) =>
        {
            Err(error).with_context(|| format!("from {from} to {to}"))
        }
        _ => Ok(()),
    }
}

/// Has a TCP socket begin with a sequence number.
fn first_number(socket: impl AsFd, number: u32) -> io::Result<()> {
    // include/uapi/linux/tcp.h
    const TCP_REPAIR: i32 = 19;
    const TCP_REPAIR_QUEUE: i32 = 20;
    const TCP_QUEUE_SEQ: i32 = 21;
    const SEND_QUEUE: u32 = 2;
    const ON: u32 = 1;
    /// TCP_REPAIR_OFF_NO_WP.
    const OFF: u32 = u32::MAX;
    for (name, value) in [(TCP_REPAIR, ON), (TCP_REPAIR_QUEUE, SEND_QUEUE), (TCP_QUEUE_SEQ, number), (TCP_REPAIR, OFF)]
    {
        set_option(socket.as_fd(), libc::IPPROTO_TCP, name, &value.to_ne_bytes())?;
    }
    Ok(())
}
