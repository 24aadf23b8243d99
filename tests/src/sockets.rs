//! What sockets and devices can be told that the standard library does not know of: options by number, and offloads.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::sockopt::{Timeout, set_socket_reuseaddr, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::client::{DEADLINE, patience};
use crate::netns::Netns;

/// Sets an option of a socket, by its level, name and bytes.
///
/// # Errors
/// As setsockopt(2).
#[allow(unsafe_code)]
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let length = u32::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`; the descriptor is open for the length of the call.
    match unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The path MTU that the kernel knows for a connected socket.
///
/// # Errors
/// The socket is not connected.
#[allow(unsafe_code)]
pub fn path_mtu(socket: impl AsFd, to: IpAddr) -> io::Result<i32> {
    let (level, name) = match to {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MTU),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
    };
    let (mut mtu, mut length) = (0_i32, size_of::<i32>() as u32);
    // SAFETY: the kernel writes no more than `length` bytes to `mtu`.
    let answer =
        unsafe { libc::getsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
    if answer == 0 { Ok(mtu) } else { Err(io::Error::last_os_error()) }
}

/// Datagrams are never sent in fragments: what is too big for the path is refused.
///
/// # Errors
/// As setsockopt(2).
pub fn never_fragment(socket: &UdpSocket, to: IpAddr) -> io::Result<()> {
    match to {
        IpAddr::V4(_) => {
            set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &libc::IP_PMTUDISC_DO.to_ne_bytes())
        }
        IpAddr::V6(_) => {
            set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &libc::IPV6_PMTUDISC_DO.to_ne_bytes())
        }
    }
}

/// Every packet of the socket has an option that changes its headers' length and nothing else: of IPv4, no-operations; of
/// IPv6, padding in a header of destination options.
///
/// # Errors
/// As setsockopt(2).
pub fn pad_headers(socket: impl AsFd, to: IpAddr) -> io::Result<()> {
    const NO_OPERATION: u8 = 1;
    const PAD_N: u8 = 1;
    match to {
        IpAddr::V4(_) => set_option(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &[NO_OPERATION; 8]),
        IpAddr::V6(_) => set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_DSTOPTS, &[0, 0, PAD_N, 4, 0, 0, 0, 0]),
    }
}

/// A TCP connection from a chosen port, also one that was used a moment ago; `prepare` sees the socket before it connects.
///
/// # Errors
/// As socket, bind and connect.
pub fn connect_from(
    from: &Netns,
    source: SocketAddr,
    to: SocketAddr,
    prepare: impl FnOnce(&OwnedFd) -> io::Result<()> + Send,
) -> io::Result<TcpStream> {
    let connect = || {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // Linux counts connecting as sending.
        set_socket_timeout(&socket, Timeout::Send, Some(patience(DEADLINE)))?;
        set_socket_timeout(&socket, Timeout::Recv, Some(patience(DEADLINE)))?;
        set_socket_reuseaddr(&socket, true)?;
        prepare(&socket)?;
        rustix::net::bind(&socket, &source)?;
        rustix::net::connect(&socket, &to)?;
        Ok::<_, io::Error>(TcpStream::from(socket))
    };
    from.run(connect).map_err(io::Error::other)?
}

/// Takes a socket of UDP from whom it is connected to.
///
/// # Errors
/// As connect(2).
pub fn disconnect(socket: &UdpSocket) -> io::Result<()> {
    Ok(rustix::net::connect_unspec(socket)?)
}

/// A close of this socket is a reset.
///
/// # Errors
/// As setsockopt(2).
pub fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    let linger = [1_i32.to_ne_bytes(), 0_i32.to_ne_bytes()].concat();
    set_option(socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger)
}

/// Turns off what a device leaves to the hardware: checksums of transport, cutting large packets into segments, and joining
/// them.
///
/// # Errors
/// There is no such device, or no right.
pub fn without_offloads(namespace: &Netns, device: &str) -> io::Result<()> {
    // include/uapi/linux/ethtool.h
    const ETHTOOL_STXCSUM: u32 = 0x17;
    const ETHTOOL_STSO: u32 = 0x1f;
    const ETHTOOL_SGSO: u32 = 0x24;
    const ETHTOOL_SGRO: u32 = 0x2c;
    let turn_off = || {
        // A socket is a handle to its namespace's devices.
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        [ETHTOOL_STSO, ETHTOOL_SGSO, ETHTOOL_SGRO, ETHTOOL_STXCSUM]
            .iter()
            .try_for_each(|what| tell(&socket, device, *what))
    };
    namespace.run(turn_off).map_err(io::Error::other)?
}

/// Sets a value of ethtool to 0.
#[allow(unsafe_code)]
fn tell(socket: &UdpSocket, device: &str, command: u32) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    /// struct ifreq with a pointer for data.
    #[repr(C)]
    struct Request {
        name: [u8; 16],
        value: *mut [u32; 2],
        rest: [u8; 16],
    }
    let mut value = [command, 0];
    let mut request = Request { name: [0; 16], value: &raw mut value, rest: [0; 16] };
    let bytes = device.as_bytes().iter().take(15);
    request.name.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    // SAFETY: the kernel reads the request and the value that it points to, both alive during the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
