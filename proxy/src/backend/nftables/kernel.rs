//! The kernel as the reconciler sees it: a table with a comment, chains and rows. `netfilter` is the real one.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::conntrack::accounting::{Carried, Way};
use crate::desired::node_view::NodeView;
use crate::desired::target::Frontend;

use super::diff::Change;
use super::netlink::{Error, Refused};
use super::nft::NftError;
use super::rows::{Chains, Key, Rows};
use super::seal::Structure;

pub use super::netlink::Chain as ChainDigest;

/// What the kernel has of our table.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// The table's comment: which version of the program it is.
    pub comment: Option<String>,
    /// Chains and sets.
    pub structure: Structure,
    /// The rows.
    pub rows: Rows,
    /// How many rows no version of us would write.
    pub strange: usize,
}

/// What a row of an endpoint has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RowCount {
    /// The row.
    pub key: Key,
    /// The endpoint that it gives.
    pub endpoint: SocketAddr,
    /// First packets of connections.
    pub connections: u64,
}

/// Why a transaction is not in force.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The kernel refused one change, or the transaction as a whole; nothing has changed.
    #[error("{message}")]
    Refused {
        /// The change that it is about, where the kernel says so.
        change: Option<usize>,
        /// The sentence for people.
        message: String,
    },
    /// The kernel lacks memory, or room in a socket's buffers, whatever the change; nothing has changed, and the same may pass a moment later.
    #[error("{message}; what is in force stays, and it is tried again")]
    Short {
        /// The sentence for people.
        message: String,
    },
    /// `nft` failed.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The socket failed.
    #[error(transparent)]
    Netlink(#[from] Error),
}

impl KernelError {
    /// A refused transaction; `change` is the one that the kernel points at.
    pub(super) fn refused(refused: &Refused, change: Option<usize>) -> Self {
        let message = refused.to_string();
        match refused.errno {
            // The change that met it is as good as any other.
            libc::ENOMEM | libc::ENOBUFS => Self::Short { message },
            _ => Self::Refused { change, message },
        }
    }

    /// Of changes that stand after so many others.
    pub(super) fn at(self, before: usize) -> Self {
        match self {
            Self::Refused { change, message } => Self::Refused { change: change.map(|index| before + index), message },
            other => other,
        }
    }

    /// Whether it is known that nothing has changed.
    pub(super) fn changed_nothing(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Short { .. })
    }
}

/// The operations of a kernel; a fake one exists to inject failures in unit tests.
pub trait Kernel {
    /// The generation of the rules: changes with every transaction of anybody.
    ///
    /// # Errors
    /// The socket fails.
    fn generation(&mut self) -> Result<u32, KernelError>;

    /// The number of our table, which no other that is made in its place has; `None` when there is none, or it is switched
    /// off (dormant).
    ///
    /// # Errors
    /// The socket fails.
    fn table(&mut self) -> Result<Option<u64>, KernelError>;

    /// Everything of our table; `None` when there is none.
    ///
    /// # Errors
    /// The socket fails, or the right is missing.
    fn read(&mut self) -> Result<Option<Found>, KernelError>;

    /// The chains and sets of our table as they are now.
    ///
    /// # Errors
    /// The socket fails.
    fn structure(&mut self) -> Result<Structure, KernelError>;

    /// These chains as they are now; without those that are not there.
    ///
    /// # Errors
    /// The socket fails.
    fn digests(&mut self, chains: &[Arc<str>]) -> Result<Vec<(Arc<str>, ChainDigest)>, KernelError>;

    /// Those of `chains` whose rules in the kernel are not the ones that we would write, or that are not there.
    ///
    /// # Errors
    /// The socket fails.
    fn altered(&mut self, chains: &Chains, node: &NodeView) -> Result<BTreeSet<Arc<str>>, KernelError>;

    /// Runs a script in nft's language: one transaction.
    ///
    /// # Errors
    /// `nft` is missing, refuses or hangs.
    fn load(&mut self, script: &str) -> Result<(), KernelError>;

    /// Applies changes in one transaction. `chains` has the content of every chain to be added. Gives what deleted rows of
    /// endpoints had counted, where they count.
    ///
    /// # Errors
    /// [`KernelError::Refused`] with the change that is to blame where it is known.
    fn commit(&mut self, changes: &[Change], chains: &Chains, node: &NodeView) -> Result<Vec<RowCount>, KernelError>;

    /// Waits until every packet that is on its way through the table has passed. Some milliseconds.
    fn let_packets_pass(&mut self);

    /// What every row of an endpoint has counted; none where they do not count, or there is no table.
    ///
    /// # Errors
    /// The socket fails.
    fn counters(&mut self) -> Result<Vec<RowCount>, KernelError>;

    /// What connections carried, where that is followed.
    ///
    /// # Errors
    /// The socket fails.
    fn carried(&mut self) -> Result<HashMap<Way, Carried>, KernelError> {
        Ok(HashMap::new())
    }

    /// Connections to these frontends are followed, or no more, where connections are.
    fn follow(&mut self, _frontends: &mut dyn Iterator<Item = (Frontend, bool)>) {}

    /// What those carried that have ended since this or [`Kernel::carried`] was last asked: packets and bytes.
    ///
    /// # Errors
    /// The socket fails.
    fn ended(&mut self) -> Result<HashMap<Way, (u64, u64)>, KernelError> {
        Ok(HashMap::new())
    }

    /// What connections carried on these ways until now. Those that are there are not told of any more.
    ///
    /// # Errors
    /// The socket fails.
    fn disown(&mut self, _ways: &dyn Fn(&Way) -> bool) -> Result<HashMap<Way, Carried>, KernelError> {
        Ok(HashMap::new())
    }

    /// How many connections ended without being counted.
    fn uncounted(&self) -> u64 {
        0
    }

    /// Deletes chains in this order; nothing may go to them but chains deleted before.
    ///
    /// # Errors
    /// [`KernelError::Refused`] if something still does.
    fn delete_chains(&mut self, names: &[Arc<str>]) -> Result<(), KernelError>;

    /// Forgets the clients of endpoints with these numbers, in `affinity4` and `affinity6`. Gives the number of
    /// transactions. Best effort: packets change the maps meanwhile.
    ///
    /// # Errors
    /// The socket fails, or the kernel keeps refusing.
    fn forget_clients(&mut self, numbers: &BTreeSet<u32>) -> Result<u32, KernelError>;
}
