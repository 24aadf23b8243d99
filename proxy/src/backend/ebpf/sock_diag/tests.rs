//! UDP sockets that are looked for and ended, on the real kernel.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;

use super::*;
use crate::netns::{drop_capabilities, in_new_netns};

fn cookie(socket: &UdpSocket) -> u64 {
    let (mut cookie, mut length) = (0u64, 8 as libc::socklen_t);
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: both pointers are to live variables, and the length is the first one's.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_COOKIE, (&raw mut cookie).cast(), &raw mut length) };
    assert_eq!(result, 0);
    cookie
}

fn key(socket: &UdpSocket, to: &str) -> SocketKey {
    let to: SocketAddr = to.parse().unwrap();
    let (address, port) = (to.ip().into(), to.port().to_be());
    SocketKey { cookie: cookie(socket), address, port, protocol: UDP.into(), reserved: 0 }
}

fn ended(keys: &[SocketKey]) -> usize {
    let outcome = destroy(keys, false);
    assert!(outcome.left.is_none(), "{outcome:?}");
    outcome.ended
}

/// Ends five sockets, each with this answer of the kernel.
fn end_five(answers: [i32; 5]) -> (usize, Option<i32>, bool) {
    let listed: Vec<_> = (0..5).map(|number| Listed { family: number, id: [0; ID.1] }).collect();
    let mut asked = 0;
    let outcome = end(listed.iter(), |socket| {
        assert_eq!(socket.family, asked);
        asked += 1;
        match answers[usize::from(socket.family)] {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    });
    assert_eq!(asked, 5, "each is tried");
    let errno = outcome.left.as_ref().and_then(io::Error::raw_os_error);
    (outcome.ended, errno, outcome.is_partial())
}

#[test]
fn a_socket_that_is_not_ended_keeps_no_other_and_is_tried_again_if_that_may_help() {
    assert_eq!(end_five([0; 5]), (5, None, false));
    assert_eq!(end_five([0, libc::ENOENT, 0, 0, 0]), (4, None, false), "one that has gone by itself");
    assert_eq!(end_five([libc::ENOBUFS, 0, 0, 0, 0]), (4, Some(libc::ENOBUFS), true));
    assert_eq!(end_five([libc::EPERM, 0, libc::ENOMEM, 0, 0]), (3, Some(libc::ENOMEM), true));
    for errno in [libc::EPERM, libc::EOPNOTSUPP] {
        assert_eq!(end_five([errno; 5]), (0, Some(errno), false), "no use");
    }
}

#[test]
fn without_the_right_it_is_not_tried_again() {
    in_new_netns(|| {
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let keys = sockets.each_ref().map(|socket| {
            socket.connect("127.0.0.1:9").unwrap();
            key(socket, "127.0.0.1:9")
        });
        drop_capabilities();
        let outcome = destroy(&keys, false);
        assert_eq!(outcome.left.as_ref().and_then(io::Error::raw_os_error), Some(libc::EPERM), "{outcome:?}");
        assert!(outcome.ended == 0 && !outcome.is_partial());
    });
}

#[test]
fn sockets_are_ended_by_number_and_peer() {
    in_new_netns(|| {
        for (at, to) in [("127.0.0.1:0", "127.0.0.1:9"), ("[::1]:0", "[::1]:9"), ("[::]:0", "127.0.0.1:9")] {
            let connected = |to: &str| {
                let socket = UdpSocket::bind(at).unwrap();
                let to: SocketAddr = to.parse().unwrap();
                let mapped = |ip: std::net::Ipv4Addr| SocketAddr::from((ip.to_ipv6_mapped(), to.port()));
                socket.connect(if at == "[::]:0" { mapped("127.0.0.1".parse().unwrap()) } else { to }).unwrap();
                socket
            };
            let (one, other) = (connected(to), connected(to));
            let elsewhere = key(&one, &to.replace('9', "8"));
            assert_eq!(ended(&[elsewhere]), 0, "{at}: connected to another port");
            assert_eq!(ended(&[key(&one, to)]), 1, "{at}");
            assert_eq!(one.recv(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
            assert!(one.peer_addr().is_err() && other.peer_addr().is_ok(), "{at}");
            assert_eq!(ended(&[key(&one, to)]), 0, "{at}: it is not connected any more");
        }
    });
}
