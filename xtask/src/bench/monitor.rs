//! The kernel's own notices of what was committed to nftables: the time of a change is taken from them and not from what
//! the proxy says of itself. They name every row that was added or deleted, and end with the new generation's number.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use crate::interrupt;
use crate::netns::Namespace;

// linux/netfilter/nfnetlink.h, nf_tables.h
const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u8 = 12;
const NFT_MSG_DELSETELEM: u8 = 14;
const NFT_MSG_NEWGEN: u8 = 15;
const HEADER: usize = 16;

/// A listener in one namespace.
#[derive(Debug)]
pub struct Monitor {
    socket: OwnedFd,
}

/// What was committed until the addresses looked for had all appeared.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Rows added and deleted.
    pub rows: usize,
    /// Transactions.
    pub commits: usize,
}

impl Monitor {
    /// Starts listening in a namespace.
    pub fn open(namespace: &Namespace) -> anyhow::Result<Self> {
        let socket = namespace.enter(|| -> anyhow::Result<OwnedFd> {
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(NETFILTER))?;
            // A burst's notices wait here while we write files.
            set_socket_recv_buffer_size_force(&socket, 64 << 20)?;
            set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(200)))?;
            bind(&socket, &SocketAddrNetlink::new(0, 1 << (NFNLGRP_NFTABLES - 1)))?;
            Ok(socket)
        })?;
        Ok(Self { socket: socket.context("listening to nftables")? })
    }

    /// Waits until rows with all of these addresses have been committed.
    ///
    /// # Errors
    /// Not within `patience`, or notices were lost.
    pub fn wait_for(&self, addresses: &[Ipv4Addr], patience: Duration) -> anyhow::Result<Seen> {
        let mut missing: BTreeSet<[u8; 4]> = addresses.iter().map(Ipv4Addr::octets).collect();
        let mut seen = Seen::default();
        let mut buffer = vec![0; 1 << 20];
        let deadline = Instant::now() + patience;
        loop {
            interrupt::check()?;
            match recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => {
                    if note(&buffer[..length], &mut missing, &mut seen) {
                        return Ok(seen);
                    }
                }
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => {}
                Err(Errno::AGAIN | Errno::INTR) => {
                    bail!(
                        "waited {patience:?}, and {} of {} changes were not in the kernel",
                        missing.len(),
                        addresses.len()
                    )
                }
                Err(error) => return Err(error).context("reading nftables notices"),
            }
        }
    }
}

/// Takes in one datagram of messages; true when nothing is missing and the transaction is over.
fn note(mut datagram: &[u8], missing: &mut BTreeSet<[u8; 4]>, seen: &mut Seen) -> bool {
    while let Some((header, _)) = datagram.split_at_checked(HEADER) {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(message) = datagram.get(HEADER..length) else { return false };
        let [subsystem, kind] = u16::from_ne_bytes([header[4], header[5]]).to_be_bytes();
        if u16::from(subsystem) == NFNL_SUBSYS_NFTABLES {
            match kind {
                NFT_MSG_NEWSETELEM => {
                    seen.rows += 1;
                    // An element is a handful of words: whatever four bytes stand in it.
                    message.windows(4).for_each(|window| {
                        missing.remove(window);
                    });
                }
                NFT_MSG_DELSETELEM => seen.rows += 1,
                NFT_MSG_NEWGEN => {
                    seen.commits += 1;
                    if missing.is_empty() {
                        return true;
                    }
                }
                _ => {}
            }
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = HEADER + payload.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(u16::from_be_bytes([NFNL_SUBSYS_NFTABLES as u8, kind]).to_ne_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(payload);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn a_transaction_counts_once_its_generation_is_told() {
        let mut missing = BTreeSet::from([[10, 192, 0, 1]]);
        let mut seen = Seen::default();
        let rows = [message(NFT_MSG_DELSETELEM, &[1; 5]), message(NFT_MSG_NEWSETELEM, &[9, 10, 192, 0, 1, 9])].concat();
        assert!(!note(&rows, &mut missing, &mut seen) && missing.is_empty());
        assert!(note(&message(NFT_MSG_NEWGEN, &[0; 8]), &mut missing, &mut seen));
        assert_eq!(seen, Seen { rows: 2, commits: 1 });
        assert!(!note(&[1, 2, 3], &mut missing, &mut seen));
    }
}
