//! The netlink socket: sending, answers, dumps. It belongs to the network namespace of the thread that opens it.

use std::{cell::Cell, io, os::fd::AsRawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN,
    NetlinkBuffer,
};
use netlink_sys::{Socket, SocketAddr, constants::NETLINK_NETFILTER};

use super::attribute::{HEADER, Writer, find, frames};
use super::error::Error;

/// Room for one datagram: the kernel fills at most 32 KiB of a dump at a time.
const DATAGRAM: usize = 64 << 10;
/// Receive buffer asked for, in bytes: each refused message of a transaction is answered on its own.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How often a dump is begun before giving up because rules change under it.
const ATTEMPTS: usize = 5;
// enum nlmsgerr_attrs of include/uapi/linux/netlink.h
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// Takes a message that is no answer: its type, and its body behind `nfgenmsg`.
pub(crate) type Other<'a> = dyn FnMut(u16, &[u8]) -> Result<(), Error> + 'a;

/// A socket of the netfilter family, connected to the kernel. One question at a time: not for sharing between threads.
pub(crate) struct NetfilterSocket {
    socket: Socket,
    sequence: Cell<u32>,
    send_buffer: Cell<usize>,
}

/// The kernel's acknowledgement (`errno` 0) or refusal of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The number of the message answered.
    pub sequence: u32,
    /// The system's error number, 0 for none.
    pub errno: i32,
    /// The attribute that the refusal is about, in bytes from the message's beginning; not every kernel and error has it.
    pub offset: Option<usize>,
}

/// The messages of a dump.
#[derive(Debug)]
pub(crate) struct Dump {
    bytes: Vec<u8>,
    sequence: u32,
    /// False where the kernel's tables changed during every attempt: then some entries may lack or come twice.
    pub complete: bool,
    /// How often the dump was begun.
    pub attempts: usize,
}

impl Dump {
    /// A dump that was read before; its question was numbered so.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn read_before(bytes: Vec<u8>, sequence: u32) -> Self {
        Self { bytes, sequence, complete: true, attempts: 1 }
    }

    /// Each message: its type and its body behind `nfgenmsg`.
    pub(crate) fn messages(&self) -> impl Iterator<Item = Result<(u16, &[u8]), Error>> {
        frames(&self.bytes).filter_map(|frame| match frame {
            Ok(frame) if frame.sequence_number() != self.sequence || frame.message_type() <= NLMSG_OVERRUN => None,
            Ok(frame) => Some(Ok((frame.message_type(), frame.payload().get(4..).unwrap_or_default()))),
            Err(error) => Some(Err(error)),
        })
    }
}

impl std::fmt::Debug for NetfilterSocket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("NetfilterSocket").field("fd", &self.socket.as_raw_fd()).finish_non_exhaustive()
    }
}

impl NetfilterSocket {
    /// Opens a socket in the caller's network namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(Error::Open)?;
        socket.bind_auto().map_err(Error::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(Error::Open)?;
        // Answers without a copy of the question, with the place of the fault.
        socket.set_cap_ack(true).map_err(Error::Open)?;
        socket.set_ext_ack(true).map_err(Error::Open)?;
        let socket = Self { socket, sequence: Cell::new(1), send_buffer: Cell::new(0) };
        // Without CAP_NET_ADMIN the default has to do; reading needs no more.
        let _ = socket.force_buffer(libc::SO_RCVBUFFORCE, RECEIVE_BUFFER);
        Ok(socket)
    }

    /// Has the kernel send its events of a group (`enum nfnetlink_groups`), with room for so many bytes of them: read them by
    /// [`NetfilterSocket::answers_and`].
    pub(crate) fn listen(&self, group: u32, room: usize) -> Result<(), Error> {
        self.force_buffer(libc::SO_RCVBUFFORCE, room).map_err(Error::Open)?;
        self.socket.add_membership(group).map_err(Error::Open)
    }

    /// Takes `count` sequence numbers and gives the first.
    pub(crate) fn number(&self, count: usize) -> u32 {
        let first = self.sequence.get();
        self.sequence.set(first.wrapping_add(u32::try_from(count).unwrap_or(u32::MAX)));
        first
    }

    /// Sends messages to the kernel as one datagram. The kernel handles it before this returns.
    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        if bytes.len() > self.send_buffer.get() {
            // Refused without CAP_NET_ADMIN; a small message still fits the default, a large one is then too long.
            match self.force_buffer(libc::SO_SNDBUFFORCE, bytes.len()) {
                Ok(()) => self.send_buffer.set(bytes.len()),
                Err(error) if bytes.len() > DATAGRAM => return Err(socket_error("write to", error)),
                Err(_) => {}
            }
        }
        loop {
            match self.socket.send(bytes, 0) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(socket_error("write to", error)),
            }
        }
    }

    /// The answers that wait in the socket. None is waited for: the kernel has answered by the time `send` returns.
    /// Where they were more than the buffer takes, the first ones are there.
    pub(crate) fn answers(&self) -> Result<Vec<Answer>, Error> {
        self.answers_and(&mut |_, _| Ok(()))
    }

    /// The same; what else the kernel has sent is given to `other`.
    pub(crate) fn answers_and(&self, other: &mut Other<'_>) -> Result<Vec<Answer>, Error> {
        let mut bytes = Vec::new();
        loop {
            match self.receive(&mut bytes, libc::MSG_DONTWAIT) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(socket_error("read from", error)),
            }
        }
        let mut answers = Vec::new();
        for frame in frames(&bytes) {
            let frame = frame?;
            if frame.message_type() == NLMSG_ERROR {
                answers.push(read_answer(&frame)?);
            } else {
                let body = frame.payload().get(4..).unwrap_or_default();
                other(frame.message_type(), body)?;
            }
        }
        Ok(answers)
    }

    /// Asks for one object and gives the body of the answer, behind `nfgenmsg`. `what` is for the error.
    pub(crate) fn get(&self, what: &str, kind: u16, family: u8, body: impl Fn(&mut Writer)) -> Result<Vec<u8>, Error> {
        let sequence = self.number(1);
        self.send(&question(kind, NLM_F_REQUEST, sequence, family, body))?;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            self.receive(&mut bytes, 0).map_err(|error| socket_error("read from", error))?;
            for frame in frames(&bytes) {
                let frame = frame?;
                if frame.sequence_number() != sequence {
                    continue;
                }
                if frame.message_type() == NLMSG_ERROR {
                    return Err(Error::Refused {
                        action: "list",
                        what: what.to_owned(),
                        errno: read_answer(&frame)?.errno,
                    });
                }
                return Ok(frame.payload().get(4..).unwrap_or_default().to_vec());
            }
        }
    }

    /// Asks for something to be done, outside of any transaction; gives the error number of the answer, 0 for none.
    pub(crate) fn request(&self, kind: u16, family: u8, body: impl Fn(&mut Writer)) -> Result<i32, Error> {
        let sequence = self.number(1);
        let bytes = question(kind, NLM_F_REQUEST | NLM_F_ACK, sequence, family, body);
        self.send(&bytes)?;
        let answer = self.answers()?.into_iter().find(|answer| answer.sequence == sequence);
        answer.map(|answer| answer.errno).ok_or(Error::Unanswered { bytes: bytes.len() })
    }

    /// Asks for all objects of a kind. Begins again (5 times at most) where they change meanwhile, or
    /// something had no room.
    pub(crate) fn dump(&self, what: &str, kind: u16, family: u8, body: impl Fn(&mut Writer)) -> Result<Dump, Error> {
        let mut dump = Dump { bytes: Vec::new(), sequence: 0, complete: false, attempts: 0 };
        for attempt in 1..=ATTEMPTS {
            dump.attempts = attempt;
            dump.bytes.clear();
            dump.sequence = self.number(1);
            self.send(&question(kind, NLM_F_REQUEST | NLM_F_DUMP, dump.sequence, family, &body))?;
            if self.read_dump(what, &mut dump)? {
                dump.complete = true;
                break;
            }
        }
        Ok(dump)
    }

    /// Reads a dump to its end; false where the objects changed meanwhile, or the socket had no room for something.
    fn read_dump(&self, what: &str, dump: &mut Dump) -> Result<bool, Error> {
        let mut steady = true;
        loop {
            let from = dump.bytes.len();
            match self.receive(&mut dump.bytes, 0) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    steady = false;
                    continue;
                }
                Err(error) => return Err(socket_error("read from", error)),
            }
            for frame in frames(&dump.bytes[from..]) {
                let frame = frame?;
                if frame.sequence_number() != dump.sequence || frame.message_type() == NLMSG_NOOP {
                    continue;
                }
                steady &= frame.flags() & NLM_F_DUMP_INTR == 0;
                // The end of a dump carries an error number as a refusal does.
                if [NLMSG_ERROR, NLMSG_DONE].contains(&frame.message_type()) {
                    return match read_errno(&frame)? {
                        0 => Ok(steady),
                        libc::EINTR | libc::EAGAIN => Ok(false),
                        errno => Err(Error::Refused { action: "list", what: what.to_owned(), errno }),
                    };
                }
            }
        }
    }

    /// Appends the next datagram to `bytes`.
    fn receive(&self, bytes: &mut Vec<u8>, flags: i32) -> io::Result<()> {
        loop {
            bytes.reserve(DATAGRAM);
            match self.socket.recv(bytes, flags) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets the size of a buffer beyond the limits of `net.core.*mem_max`; needs CAP_NET_ADMIN.
    #[allow(unsafe_code)]
    fn force_buffer(&self, option: libc::c_int, bytes: usize) -> io::Result<()> {
        let size = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
        let length = libc::socklen_t::try_from(size_of_val(&size)).unwrap_or_default();
        // SAFETY: the descriptor is ours and open, and the value is a live c_int of the length given. netlink-sys has
        // the plain SO_RCVBUF only.
        let result = unsafe {
            libc::setsockopt(self.socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const size).cast(), length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn question(kind: u16, flags: u16, sequence: u32, family: u8, body: impl Fn(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::default();
    let message = writer.message(kind, flags, sequence, family, 0);
    body(&mut writer);
    writer.end_message(message);
    writer.into_bytes()
}

/// The system's error number of a refusal or an end, 0 for none.
pub(crate) fn read_errno(frame: &NetlinkBuffer<&[u8]>) -> Result<i32, Error> {
    let code = frame.payload().first_chunk().copied();
    let code = code.ok_or_else(|| Error::Malformed("an answer without an error number".to_owned()))?;
    Ok(i32::from_ne_bytes(code).saturating_neg())
}

pub(super) fn read_answer(frame: &NetlinkBuffer<&[u8]>) -> Result<Answer, Error> {
    let errno = read_errno(frame)?;
    let mut offset = None;
    // Error number, header of the question (its body is left out: NETLINK_CAP_ACK), then attributes.
    if frame.flags() & libc::NLM_F_ACK_TLVS as u16 != 0
        && let Some(attributes) = frame.payload().get(4 + HEADER..)
        && let Some(value) = find(attributes, NLMSGERR_ATTR_OFFS)?
        && let Ok(bytes) = value.try_into()
    {
        offset = usize::try_from(u32::from_ne_bytes(bytes)).ok();
    }
    Ok(Answer { sequence: frame.sequence_number(), errno, offset })
}

fn socket_error(what: &'static str, source: io::Error) -> Error {
    Error::Socket { what, source }
}

#[cfg(test)]
mod tests;
