//! Backends: what turns wanted rows into a kernel's tables.

#[cfg(feature = "ebpf")]
pub mod ebpf;
pub mod nftables;

use std::collections::BTreeMap;

pub use nftables::reconciler::Report;

use crate::conntrack::{Cleaned, UdpService};
use crate::desired::{Desired, Touched};
use crate::state::objects::Ignored;

/// Whether this build has the eBPF datapath: cargo's feature `ebpf`.
pub const HAS_EBPF: bool = cfg!(feature = "ebpf");

/// A datapath that follows the wanted state.
pub trait Backend {
    /// Why something could not be done.
    type Error: std::error::Error + Send + Sync + 'static;

    /// `nftables` or `ebpf`.
    fn name(&self) -> &'static str;

    /// Brings the kernel to the wanted rows; `touched` is what changed since the last call. After a failure the next call
    /// compares everything.
    ///
    /// # Errors
    /// The kernel failed as a whole; what it refuses of single rows only costs their frontends.
    fn sync(&mut self, desired: &Desired, touched: Touched) -> Result<Report, Self::Error>;

    /// Looks for what others changed and repairs it; `None`: nothing.
    ///
    /// # Errors
    /// As for [`Backend::sync`].
    fn check(&mut self, desired: &Desired) -> Result<Option<Report>, Self::Error>;

    /// Rows in force, by map.
    fn rows(&self) -> &BTreeMap<&'static str, usize>;

    /// What is wanted and not in force, and why.
    fn refused(&self) -> Vec<Ignored>;

    /// Deletes the UDP flows that these services' endpoints left behind. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    fn clean_udp(&mut self, services: &[UdpService]) -> Result<Cleaned, Self::Error>;

    /// What a backend tells of itself: sections of `kubeferry status`, each a title and lines.
    fn facts(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// What of the wanted state is costly in this backend: lines of `kubeferry status`, each a title and a text.
    fn costs(&self, _desired: &Desired) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Counters of packets by reason; empty where the datapath has none.
    fn packets(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
