//! Listing and deleting entries over ctnetlink, in the network namespace of the thread that opens the connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::accounting::Tracked;
use super::entry::{read, read_tracked, write_filter, write_unanswered};
use super::stale::{Entry, Tuple, UdpService, stale};
use crate::backend::nftables::netlink::{Error, attribute::Writer, kernel::NetfilterSocket};
use crate::state::objects::Protocol;

// include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_conntrack.h
const CTNETLINK: u16 = 1 << 8;
const IPCTNL_MSG_CT_GET: u16 = CTNETLINK | 1;
const IPCTNL_MSG_CT_DELETE: u16 = CTNETLINK | 2;
/// Every family.
const UNSPEC: u8 = 0;
/// Protocol numbers.
pub const TCP: u8 = 6;
/// Protocol numbers.
pub const UDP: u8 = 17;

/// An IP family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// What [`clean`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// UDP entries looked at.
    pub listed: usize,
    /// Entries deleted.
    pub deleted: usize,
    /// Those of them that are of IPv6, where that is counted apart.
    pub deleted_v6: usize,
    /// Whether another look is needed: a list stayed incomplete because entries changed during each of 5 attempts, and what was
    /// listed was cleaned; or sockets could not be ended just then (eBPF).
    pub partial: bool,
}

/// Deletes the stale UDP entries of `services`, of the families that they have endpoints in. Blocks.
///
/// # Errors
/// The list or a deletion is refused (CAP_NET_ADMIN is needed) or the socket fails. Entries gone meanwhile are no error.
pub fn clean(services: &[UdpService]) -> Result<Cleaned, Error> {
    let mut cleaned = Cleaned::default();
    for family in [Family::V4, Family::V6] {
        let has = |endpoint: &SocketAddr| endpoint.is_ipv6() == (family == Family::V6);
        if !services.iter().any(|service| service.serving.iter().any(has)) {
            continue;
        }
        let conntrack = Conntrack::open()?;
        let (entries, complete) = conntrack.entries(family, UDP)?;
        cleaned.listed += entries.len();
        cleaned.partial |= !complete;
        for entry in stale(services, &entries) {
            let deleted = usize::from(conntrack.delete(entry)?);
            cleaned.deleted += deleted;
            cleaned.deleted_v6 += if family == Family::V6 { deleted } else { 0 };
        }
    }
    Ok(cleaned)
}

/// Deletes the entries of TCP and SCTP to these destinations that are not translated and that nobody has answered: their first packet
/// went by while rules were missing, the kernel leaves as it is what is sent again (for two minutes, TCP), and what another socket sends
/// that gets the same port. How many. Blocks.
///
/// # Errors
/// As [`clean`].
pub fn forget_unanswered(is_ours: impl Fn(Protocol, SocketAddr) -> bool) -> Result<usize, Error> {
    let conntrack = Conntrack::open()?;
    let mut deleted = 0;
    for protocol in [Protocol::Tcp, Protocol::Sctp] {
        let is_lost = |entry: &Entry| {
            let to = entry.original.destination;
            !entry.answered && to == entry.reply.source && is_ours(protocol, to)
        };
        for family in [Family::V4, Family::V6] {
            let (entries, _) = conntrack.listed(family, protocol.number(), write_unanswered)?;
            for entry in entries.iter().filter(|entry| is_lost(entry)) {
                deleted += usize::from(conntrack.delete(entry)?);
            }
        }
    }
    Ok(deleted)
}

/// Deletes the UDP entries to these destinations that are not translated: what their sockets, and later ones of the same port, send
/// would stay so, also where another proxy's rules translate what is new. How many. Blocks.
///
/// # Errors
/// As [`clean`].
pub fn forget_untranslated(is_ours: impl Fn(SocketAddr) -> bool) -> Result<usize, Error> {
    let conntrack = Conntrack::open()?;
    let mut deleted = 0;
    for family in [Family::V4, Family::V6] {
        let (entries, _) = conntrack.entries(family, UDP)?;
        let untranslated = entries.iter().filter(|entry| entry.original.destination == entry.reply.source);
        for entry in untranslated.filter(|entry| is_ours(entry.original.destination)) {
            deleted += usize::from(conntrack.delete(entry)?);
        }
    }
    Ok(deleted)
}

/// Takes out of `flows`, by the ends of their packets, those that are answers to what others began. Entries of which they are the questions are
/// deleted. Blocks.
///
/// # Errors
/// As [`clean`].
pub fn keep_answers<T>(flows: &mut BTreeMap<Tuple, T>) -> Result<(), Error> {
    let conntrack = Conntrack::open()?;
    for family in [Family::V4, Family::V6] {
        if !flows.keys().any(|ends| ends.source.is_ipv6() == (family == Family::V6)) {
            continue;
        }
        let (entries, _) = conntrack.entries(family, UDP)?;
        for entry in &entries {
            flows.remove(&entry.reply);
        }
        for entry in entries.iter().filter(|entry| flows.contains_key(&entry.original)) {
            conntrack.delete(entry)?;
        }
    }
    Ok(())
}

/// A connection to the kernel's connection tracking.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetfilterSocket,
}

impl Conntrack {
    /// Opens a connection in the caller's network namespace.
    ///
    /// # Errors
    /// No netfilter socket.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetfilterSocket::open()? })
    }

    /// The entries of a family and a protocol (TCP, UDP or SCTP), in every zone, and whether the list is complete: it is begun again 5 times at most
    /// where entries change meanwhile.
    ///
    /// # Errors
    /// The kernel refuses, or the socket fails.
    pub fn entries(&self, family: Family, protocol: u8) -> Result<(Vec<Entry>, bool), Error> {
        self.listed(family, protocol, write_filter)
    }

    /// Those of them that the kernel gives by this filter.
    fn listed(&self, family: Family, protocol: u8, filter: fn(&mut Writer, u8)) -> Result<(Vec<Entry>, bool), Error> {
        let dump = |filter: &dyn Fn(&mut Writer)| {
            self.socket.dump("connection tracking", IPCTNL_MSG_CT_GET, family.number(), filter)
        };
        // The kernel filters since 5.8. One that does not know how is asked for everything.
        let dump = match dump(&|writer| filter(writer, protocol)) {
            Err(Error::Refused { errno: libc::EINVAL | libc::EOPNOTSUPP, .. }) => dump(&|_| {}),
            result => result,
        }?;
        let mut entries = Vec::new();
        for message in dump.messages() {
            let (_, body) = message?;
            entries.extend(read(body, protocol)?);
        }
        Ok((entries, dump.complete))
    }

    /// The translated connections of both families, and whether the list is complete: see [`Conntrack::entries`].
    ///
    /// # Errors
    /// The kernel refuses, or the socket fails.
    pub fn tracked(&self) -> Result<(Vec<Tracked>, bool), Error> {
        let dump = self.socket.dump("connection tracking", IPCTNL_MSG_CT_GET, UNSPEC, |_| {})?;
        let mut all = Vec::new();
        for message in dump.messages() {
            let (_, body) = message?;
            all.extend(read_tracked(body)?);
        }
        Ok((all, dump.complete))
    }

    /// Deletes this entry, and no other that has taken its place; false where it is gone.
    ///
    /// # Errors
    /// The kernel refuses (CAP_NET_ADMIN is needed), or the socket fails.
    pub fn delete(&self, entry: &Entry) -> Result<bool, Error> {
        let family = if entry.original.destination.is_ipv6() { Family::V6 } else { Family::V4 };
        let errno = self.socket.request(IPCTNL_MSG_CT_DELETE, family.number(), |writer| writer.raw(&entry.identity))?;
        match errno {
            0 => Ok(true),
            libc::ENOENT => Ok(false),
            errno => Err(Error::Refused { action: "delete", what: "a connection tracking entry".to_owned(), errno }),
        }
    }
}

#[cfg(test)]
mod tests;
