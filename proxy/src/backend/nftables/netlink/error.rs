//! What can go wrong between this process and nf_tables.

use std::{io, ops::Range};

/// Reading from the kernel failed, or no answer can be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netfilter netlink socket: {0}; is nf_tables in this kernel, and may this process use it?")]
    Open(#[source] io::Error),
    /// The socket failed.
    #[error("cannot {what} the netfilter netlink socket: {source}")]
    Socket {
        /// "write to" or "read from".
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel refused a question or a request.
    #[error("the kernel refused to {action} {what}: {}", sentence(*errno))]
    Refused {
        /// "list" or "delete".
        action: &'static str,
        /// What was asked for.
        what: String,
        /// The system's error number.
        errno: i32,
    },
    /// The rules changed under every attempt to list them.
    #[error("{what} changed during each of {attempts} attempts to list it")]
    Interrupted {
        /// What was listed.
        what: String,
        /// How often it was tried.
        attempts: usize,
    },
    /// Bytes that are no netlink message.
    #[error("an answer of the kernel cannot be read: {0}")]
    Malformed(String),
    /// Answers were lost, so nobody knows whether what was asked is done: read it again.
    #[error("the kernel's answer to a request of {bytes} bytes was lost")]
    Unanswered {
        /// The size of what was sent.
        bytes: usize,
    },
}

impl Error {
    /// Whether the table or the map that was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { errno: libc::ENOENT, .. })
    }
}

/// A transaction is not known to be in force.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused the transaction: nothing has changed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The socket failed. Whether the transaction is in force is not known: read the rows again.
    #[error(transparent)]
    Netlink(#[from] Error),
}

/// Why and where the kernel refused a transaction.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kernel refused {part}: {}", sentence(*errno))]
pub struct Refused {
    /// The system's error number, for example `libc::ENOENT`.
    pub errno: i32,
    /// The operations among which the refused one is, as indexes into the list given; all of them where it is the
    /// transaction as a whole. Recent kernels point at one.
    pub ops: Range<usize>,
    /// What was refused.
    pub part: RefusedPart,
}

/// What a refusal is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RefusedPart {
    /// The transaction as a whole.
    Transaction,
    /// The table.
    Table(String),
    /// A map, or an element of it that is not known.
    Map(String),
    /// A chain, or a rule of it.
    Chain(String),
    /// One element (a key in hexadecimal), or a chain that it goes to.
    Element {
        /// The map.
        map: String,
        /// The key, in hexadecimal.
        key: String,
        /// Whether it was to be added; else it was to be deleted.
        add: bool,
    },
}

impl std::fmt::Display for RefusedPart {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Transaction => write!(formatter, "the transaction"),
            Self::Table(table) => write!(formatter, "table inet {table}"),
            Self::Map(map) => write!(formatter, "rows of map {map}"),
            Self::Chain(chain) => write!(formatter, "a change of chain {chain}"),
            Self::Element { map, key, add: true } => write!(formatter, "to add row {key} to map {map}"),
            Self::Element { map, key, add: false } => write!(formatter, "to delete row {key} of map {map}"),
        }
    }
}

/// What either may be that the kernel calls by the same number.
pub(in crate::backend::nftables) const NOT_PERMITTED: &str = "CAP_NET_ADMIN is needed in this network namespace: run as root or grant \
    it; with it, another program has the table for itself (`flags owner` in `nft list table inet kubeferry`, which names the program): \
    end that one";

/// An error number of nf_tables as a sentence that says what to do.
fn sentence(errno: i32) -> String {
    let system = io::Error::from_raw_os_error(errno);
    let advice = match errno {
        libc::EPERM | libc::EACCES => NOT_PERMITTED,
        libc::ENOENT => "the table, the map, the chain or the row is not there (any more)",
        libc::EEXIST => "the chain is there already, or the key with other data, or an interval overlaps another",
        libc::ENFILE | libc::ENOSPC => "the map is full: its size must grow",
        libc::ENOMEM => "the kernel has no memory left for it",
        libc::ENOBUFS | libc::EMSGSIZE => "the socket's buffers are too small; CAP_NET_ADMIN lets them grow",
        libc::EINVAL => "the key or the data does not fit the map's type, or the map is in use otherwise",
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT => "this kernel lacks a part of nf_tables",
        _ => return system.to_string(),
    };
    format!("{advice} ({system})")
}
