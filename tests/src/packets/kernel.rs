//! Packet and raw sockets: the system calls that the standard library has not. Each socket belongs to the network namespace
//! of the thread that opened it.
//!
//! Why `unsafe`: every call goes to libc with pointers to values that live on the caller's stack for the length of the
//! call and with their exact sizes. Nothing keeps a pointer.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// The largest packet that a veth of these tests carries, with room.
const BUFFER: usize = 2048;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("a socket address is small")
}

fn socket(family: libc::c_int, kind: libc::c_int, protocol: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: plain integers go in; the descriptor that comes out is new and ours alone.
    unsafe {
        let fd = check(libc::socket(family, kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn set_option(socket: &OwnedFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let pointer = (&raw const value).cast();
    // SAFETY: `value` outlives the call and its size is given.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, pointer, size::<libc::c_int>()) }).map(drop)
}

/// `None` where nothing waits to be read.
fn received(length: isize) -> io::Result<Option<usize>> {
    match usize::try_from(length) {
        Ok(length) => Ok(Some(length)),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// Sends and captures whole Ethernet frames on one interface (AF_PACKET). It sees what comes in, before any rule of the
/// namespace that it is in, and not what goes out.
#[derive(Debug)]
pub struct FrameSocket(OwnedFd);

/// A captured frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Its VLAN tag (TCI), which is beside the frame and not in it.
    pub tag: Option<u16>,
    /// The frame, with its Ethernet header.
    pub frame: Vec<u8>,
}

impl FrameSocket {
    /// Opens the socket on an interface of the thread's namespace.
    ///
    /// # Errors
    /// There is no such interface, or no right to open raw sockets (CAP_NET_RAW).
    pub fn open(interface: &str) -> io::Result<Self> {
        let every_protocol = (libc::ETH_P_ALL as u16).to_be();
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        let name = CString::new(interface)?;
        // SAFETY: `name` ends with a zero byte and outlives the call; `address` is a plain structure of integers, for which
        // all zeroes is a value, and its size is given to bind.
        unsafe {
            let index = libc::if_nametoindex(name.as_ptr());
            if index == 0 {
                return Err(io::Error::last_os_error());
            }
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = every_protocol;
            address.sll_ifindex = index as libc::c_int;
            check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size::<libc::sockaddr_ll>()))?;
        }
        Ok(Self(socket))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The kernel's.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the slice outlives the call and its length is given.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next captured frame with its VLAN tag; `None` where nothing waits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn receive_tagged(&self) -> io::Result<Option<Captured>> {
        set_option(&self.0, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        let mut buffer = [0u8; BUFFER];
        let mut control = [0u64; 16];
        // SAFETY: every structure is plain integers and pointers, for which all zeroes is a value; the pointers are to
        // locals that outlive the calls, with their sizes; `control` is aligned for control messages, and CMSG_* walks it
        // within the length that the kernel wrote.
        unsafe {
            let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let mut message: libc::msghdr = zeroed();
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let Some(length) = received(libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0))? else {
                return Ok(None);
            };
            let mut tag = None;
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_PACKET && (*header).cmsg_type == libc::PACKET_AUXDATA {
                    let auxiliary = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned();
                    let valid = auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
                    tag = valid.then_some(auxiliary.tp_vlan_tci);
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
            Ok(Some(Captured { tag, frame: buffer[..length].to_vec() }))
        }
    }

    /// The next captured frame, without its Ethernet header.
    pub(super) fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0u8; BUFFER];
        // SAFETY: the buffer outlives the call and its length is given.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        Ok(received(length)?.map(|length| buffer[..length].get(14..).unwrap_or_default().to_vec()))
    }
}

/// Sends ready IP packets from the namespace itself, through its output hook, whatever their source address.
#[derive(Debug)]
pub(super) struct PacketSender {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl PacketSender {
    /// Opens the sender in the thread's namespace.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            v4: socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?,
            v6: socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW)?,
        })
    }

    /// Sends an IP packet towards `to`, its destination address.
    pub(super) fn send(&self, packet: &[u8], to: IpAddr) -> io::Result<()> {
        let (bytes, length) = (packet.as_ptr().cast(), packet.len());
        // SAFETY: packet and address outlive the call and their sizes are given; both address structures are plain
        // integers, for which all zeroes is a value.
        let sent = unsafe {
            match to {
                IpAddr::V4(to) => {
                    let mut address: libc::sockaddr_in = zeroed();
                    address.sin_family = libc::AF_INET as u16;
                    address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
                    let pointer = (&raw const address).cast();
                    libc::sendto(self.v4.as_raw_fd(), bytes, length, 0, pointer, size::<libc::sockaddr_in>())
                }
                IpAddr::V6(to) => {
                    let mut address: libc::sockaddr_in6 = zeroed();
                    address.sin6_family = libc::AF_INET6 as u16;
                    address.sin6_addr.s6_addr = to.octets();
                    let pointer = (&raw const address).cast();
                    libc::sendto(self.v6.as_raw_fd(), bytes, length, 0, pointer, size::<libc::sockaddr_in6>())
                }
            }
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Gets a copy of every packet of one IP protocol that is delivered to the namespace itself, after its input hook.
#[derive(Debug)]
pub(super) struct LocalSocket {
    socket: OwnedFd,
    protocol: u8,
    v6: bool,
}

/// A packet that a [`LocalSocket`] got.
pub(super) enum Delivered {
    /// With its IPv4 header.
    V4(Vec<u8>),
    /// Without its IPv6 header: protocol, source, destination and the rest.
    V6(u8, IpAddr, IpAddr, Vec<u8>),
}

impl LocalSocket {
    /// Opens a socket in the thread's namespace for an IP protocol of one family.
    pub(super) fn open(v6: bool, protocol: u8) -> io::Result<Self> {
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let socket = socket(family, libc::SOCK_RAW, protocol.into())?;
        if v6 {
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
        }
        Ok(Self { socket, protocol, v6 })
    }

    /// The next delivered packet.
    pub(super) fn receive(&self) -> io::Result<Option<Delivered>> {
        let mut buffer = [0u8; BUFFER];
        let mut control = [0u64; 16];
        // SAFETY: every structure is plain integers and pointers, for which all zeroes is a value; the pointers are to
        // locals that outlive the calls, with their sizes; `control` is aligned for control messages, and CMSG_* walks it
        // within the length that the kernel wrote.
        unsafe {
            let mut from: libc::sockaddr_in6 = zeroed();
            let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            let mut message: libc::msghdr = zeroed();
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size::<libc::sockaddr_in6>();
            message.msg_iov = &raw mut vector;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control);
            let Some(length) = received(libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0))? else {
                return Ok(None);
            };
            let bytes = buffer[..length].to_vec();
            if !self.v6 {
                return Ok(Some(Delivered::V4(bytes)));
            }
            let mut to = Ipv6Addr::UNSPECIFIED;
            let mut header = libc::CMSG_FIRSTHDR(&raw const message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::IPPROTO_IPV6 && (*header).cmsg_type == libc::IPV6_PKTINFO {
                    let info: libc::in6_pktinfo = libc::CMSG_DATA(header).cast::<libc::in6_pktinfo>().read_unaligned();
                    to = info.ipi6_addr.s6_addr.into();
                }
                header = libc::CMSG_NXTHDR(&raw const message, header);
            }
            let from = Ipv6Addr::from(from.sin6_addr.s6_addr);
            Ok(Some(Delivered::V6(self.protocol, from.into(), to.into(), bytes)))
        }
    }
}

/// Keeps the calling thread on the processor that it is on, until dropped. Packets of one processor are handled in order.
#[derive(Debug)]
pub(super) struct Pinned(libc::cpu_set_t);

impl Pinned {
    pub(super) fn here() -> io::Result<Self> {
        // SAFETY: `cpu_set_t` is a plain array of integers, for which all zeroes is a value; pointers are to locals, with
        // their sizes; CPU_SET is given a number that the kernel has just reported.
        unsafe {
            let (mut before, mut one): (libc::cpu_set_t, libc::cpu_set_t) = (zeroed(), zeroed());
            check(libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut before))?;
            let here = check(libc::sched_getcpu())?;
            libc::CPU_SET(here as usize, &mut one);
            check(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const one))?;
            Ok(Self(before))
        }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the set is a value of ours, its size is given. It was in force before, so it is accepted again.
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const self.0) };
    }
}

/// Waits until one of the sockets has something, or the time is over.
pub(super) fn wait(sockets: &[RawFd], timeout: Duration) -> io::Result<()> {
    let entry = |fd: &RawFd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 };
    let mut entries: Vec<_> = sockets.iter().map(entry).collect();
    let milliseconds = libc::c_int::try_from(timeout.as_millis()).unwrap_or(libc::c_int::MAX);
    let count = libc::nfds_t::try_from(entries.len()).expect("few sockets");
    // SAFETY: the entries outlive the call and their number is given.
    check(unsafe { libc::poll(entries.as_mut_ptr(), count, milliseconds) }).map(drop)
}

impl AsRawFd for FrameSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
