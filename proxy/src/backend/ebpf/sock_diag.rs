//! Ends UDP sockets whose connected peer is an endpoint that has gone, over sock_diag: they would go on sending there. Their
//! programs are told (ECONNABORTED), and connect anew. In our own network namespace, and if asked for in every one that this
//! process can see and enter.
#![allow(unsafe_code)] // setns(2), which the standard library has not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use kubeferry_ebpf_common::{Address, SocketKey, UDP};
use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

use crate::backend::nftables::netlink::attribute::frames;
use crate::backend::nftables::netlink::kernel::read_errno;

// include/uapi/linux/netlink.h, sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// Bytes of a message's header.
const HEADER: usize = 16;
/// Where `struct inet_diag_sockid` begins in `struct inet_diag_msg`, and how long it is: ports, two addresses of 16 bytes,
/// the interface, the cookie.
const ID: (usize, usize) = (4, 48);

/// A socket as the kernel lists it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Listed {
    family: u8,
    id: [u8; ID.1],
}

/// What became of the sockets that were to be ended.
#[derive(Debug, Default)]
pub struct Outcome {
    /// How many were ended.
    pub ended: usize,
    /// Why others were not, the first reason that may pass before those that will not: see `may_pass`.
    pub left: Option<io::Error>,
}

impl Outcome {
    /// Whether it is worth trying again.
    pub fn is_partial(&self) -> bool {
        self.left.as_ref().is_some_and(may_pass)
    }

    fn leave(&mut self, error: io::Error) {
        if self.left.is_none() || may_pass(&error) && !self.is_partial() {
            self.left = Some(error);
        }
    }

    fn merge(&mut self, more: Self) {
        self.ended += more.ended;
        more.left.into_iter().for_each(|error| self.leave(error));
    }
}

/// Whether the answer may be another one a moment later. It will not where a right is missing, the kernel does not know how
/// (CONFIG_INET_UDP_DIAG, CONFIG_INET_DIAG_DESTROY), or whom it was about is gone.
fn may_pass(error: &io::Error) -> bool {
    const RIGHTS: [i32; 2] = [libc::EPERM, libc::EACCES];
    const UNKNOWN: [i32; 4] = [libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EINVAL, libc::ENOENT];
    let lasts = |errno| RIGHTS.contains(&errno) || UNKNOWN.contains(&errno) || errno == libc::ESRCH;
    !error.raw_os_error().is_some_and(lasts)
}

/// Ends the UDP sockets that are connected to what their keys say, those of `pods`, too, or only those of this network
/// namespace. One that is not ended keeps no other from being so.
pub fn destroy(keys: &[SocketKey], pods: bool) -> Outcome {
    let wanted: BTreeSet<(u64, Address, u16)> = keys.iter().map(|key| (key.cookie, key.address, key.port)).collect();
    let mut outcome = end_here(&wanted);
    let places = if pods { others() } else { Ok(Vec::new()) };
    let places = places.unwrap_or_else(|error| {
        outcome.leave(error);
        Vec::new()
    });
    for place in places {
        let there = || match enter(&place) {
            Ok(()) => end_here(&wanted),
            Err(error) => Outcome { ended: 0, left: Some(error) },
        };
        let there = std::thread::scope(|scope| {
            std::thread::Builder::new().spawn_scoped(scope, there).map(std::thread::ScopedJoinHandle::join)
        });
        let there = match there {
            Ok(Ok(there)) => there,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => Outcome { ended: 0, left: Some(error) },
        };
        if let Some(error) = &there.left {
            tracing::debug!(place = %place.display(), %error, "sockets of this namespace are left");
        }
        // A namespace that is gone meanwhile, or not ours to enter, is left for good.
        let left = there.left.filter(may_pass);
        outcome.merge(Outcome { left, ..there });
    }
    outcome
}

/// Why sockets of pods are out of our reach; `None`: they are not.
pub fn limit() -> Option<&'static str> {
    /// PROC_PID_INIT_INO: the number of the node's own PID namespace.
    const NODE_PIDS: u64 = 0xefff_fffc;
    /// CAP_SYS_ADMIN.
    const SYS_ADMIN: u32 = 21;
    let own = fs::metadata("/proc/self/ns/pid").map(|namespace| namespace.ino()).ok();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rights = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    match (rights.is_some_and(|rights| rights >> SYS_ADMIN & 1 == 1), own == Some(NODE_PIDS)) {
        (true, true) => None,
        (true, false) => Some("this process does not see those of pods (hostPID)"),
        (false, true) => Some("CAP_SYS_ADMIN is missing"),
        (false, false) => Some("hostPID and CAP_SYS_ADMIN are missing"),
    }
}

/// A way into each other network namespace with a process that can be seen.
fn others() -> io::Result<Vec<PathBuf>> {
    let here = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc")?.flatten() {
        if process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            let place = process.path().join("ns/net");
            // A process that is gone meanwhile, or hidden.
            if let Ok(metadata) = fs::metadata(&place) {
                found.insert(metadata.ino(), place);
            }
        }
    }
    found.remove(&here);
    Ok(found.into_values().collect())
}

/// Moves this thread into a network namespace.
fn enter(place: &PathBuf) -> io::Result<()> {
    let namespace = File::open(place)?;
    // SAFETY: takes a descriptor, open for the length of the call, and a flag; no memory.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Those of the network namespace that the thread is in.
fn end_here(wanted: &BTreeSet<(u64, Address, u16)>) -> Outcome {
    let mut outcome = Outcome::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let any = Listed { family: family as u8, id: [0; ID.1] };
        // What is left of a list that was broken off is read by nobody else.
        let listed = open().and_then(|socket| {
            let listed = exchange(&socket, &request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, &any))?;
            Ok((socket, listed))
        });
        match listed {
            Ok((socket, listed)) => {
                let found = listed.iter().filter(|found| wanted.contains(&found.peer()));
                outcome
                    .merge(end(found, |found| exchange(&socket, &request(SOCK_DESTROY, NLM_F_ACK, found)).map(drop)));
            }
            Err(error) => outcome.leave(error),
        }
    }
    outcome
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Each of them in its turn, whatever becomes of the others.
fn end<'a>(found: impl Iterator<Item = &'a Listed>, mut destroy: impl FnMut(&Listed) -> io::Result<()>) -> Outcome {
    let mut outcome = Outcome::default();
    for found in found {
        match destroy(found) {
            Ok(()) => outcome.ended += 1,
            // It is gone, or not connected there any more.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => outcome.leave(error),
        }
    }
    outcome
}

impl Listed {
    /// Its cookie, and address and port that it is connected to.
    fn peer(&self) -> (u64, Address, u16) {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| self.id[at + byte]));
        let address = match i32::from(self.family) {
            libc::AF_INET => Address::v4(word(20)),
            _ => Address::v6([word(20), word(24), word(28), word(32)]),
        };
        let cookie = u64::from(word(40)) | u64::from(word(44)) << 32;
        (cookie, address, u16::from_ne_bytes([self.id[2], self.id[3]]))
    }

    /// From a message without its header.
    fn read(message: &[u8]) -> Option<Self> {
        Some(Self { family: *message.first()?, id: message.get(ID.0..ID.0 + ID.1)?.try_into().ok()? })
    }
}

/// A `struct inet_diag_req_v2` with its header.
fn request(kind: u16, flags: u16, socket: &Listed) -> Vec<u8> {
    let length = HEADER + 8 + ID.1;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend((length as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend([socket.family, UDP, 0, 0]);
    bytes.extend(u32::MAX.to_ne_bytes()); // sockets in any state
    bytes.extend(socket.id);
    bytes
}

/// Sends a request and reads its answers to their end.
fn exchange(socket: &Socket, request: &[u8]) -> io::Result<Vec<Listed>> {
    socket.send(request, 0)?;
    let mut listed = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        if answers(&bytes, &mut listed)? {
            return Ok(listed);
        }
    }
}

/// Takes in the sockets of a datagram; whether they are the last. A datagram that is cut is an error: who waited for the rest
/// would wait for good.
fn answers(bytes: &[u8], listed: &mut Vec<Listed>) -> io::Result<bool> {
    for frame in frames(bytes) {
        let frame = frame.map_err(io::Error::other)?;
        match frame.message_type() {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                return match read_errno(&frame).map_err(io::Error::other)? {
                    0 => Ok(true),
                    errno => Err(io::Error::from_raw_os_error(errno)),
                };
            }
            _ => listed.extend(Listed::read(frame.payload())),
        }
    }
    Ok(false)
}

/// For the fuzzer: a datagram of sockets, each asked to be ended as it was listed.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn read(bytes: &[u8]) {
    let mut listed = Vec::new();
    // Bytes that are no answer are refused.
    let answered = answers(bytes, &mut listed);
    assert!(
        !matches!(answered, Ok(false)) || frames(bytes).all(|frame| frame.is_ok()),
        "who waits for more of what is cut waits for good"
    );
    for socket in listed {
        let request = request(SOCK_DESTROY, NLM_F_ACK, &socket);
        assert_eq!((request[HEADER], &request[HEADER + 8..]), (socket.family, &socket.id[..]));
        socket.peer();
    }
}

#[cfg(test)]
mod tests;
