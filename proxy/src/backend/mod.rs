//! Backends: what turns wanted rows into a kernel's tables.

mod digest;
#[cfg(feature = "ebpf")]
pub mod ebpf;
pub mod nftables;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

pub use nftables::reconciler::Report;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conntrack::{Cleaned, UdpService};
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::state::objects::{Ignored, Protocol, Service};
use crate::traffic::{Counting, Port, Total};

/// Whether this build has the eBPF datapath: cargo's feature `ebpf`.
pub const HAS_EBPF: bool = cfg!(feature = "ebpf");

/// What was counted of an endpoint of a service port in one family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EndpointCount {
    /// The endpoint.
    pub endpoint: SocketAddr,
    /// Connections that it got since it became an endpoint.
    pub opened: u64,
    /// Those of them that have not ended.
    pub active: u64,
    /// Their packets, both ways, where they are counted.
    pub packets: u64,
    /// The bytes of these packets, from the IP header on.
    pub bytes: u64,
}

/// What became of a map's rows in a sync. A row that gets another value counts as added, and where it is deleted for that, as
/// deleted too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct RowChanges {
    /// Rows written.
    pub added: usize,
    /// Rows deleted.
    pub deleted: usize,
}

/// The same by map; `chains` are those of nftables.
pub type ChangesByMap = BTreeMap<&'static str, RowChanges>;

impl EndpointCount {
    /// Nothing yet.
    pub fn none(endpoint: SocketAddr) -> Self {
        Self { endpoint, opened: 0, active: 0, packets: 0, bytes: 0 }
    }
}

/// What was counted of a service port in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts {
    /// The service port.
    pub port: Port,
    /// Its endpoints.
    pub here: Vec<EndpointCount>,
    /// Those that have left.
    pub left: Left,
}

/// What endpoints of a service port had got that have left.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Left {
    /// Since the last look, each with all that it got: they are not told again.
    Since(Vec<EndpointCount>),
    /// Ever since counting began, all together: with those that are here it is what the service port got.
    Ever(Total),
}

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

    /// What bringing a Service costs, in units of the datapath's own: 0 for one that nobody else notices. `work` is what
    /// [`limits::work`](crate::desired::limits::work) says of it: half of what one sync brings, at most.
    fn cost(&self, _desired: &Desired, _service: &Service, _work: usize) -> usize {
        0
    }

    /// What Services of one namespace may cost together without anybody else's noticing: as much is never put off.
    fn unnoticed(&self) -> usize {
        0
    }

    /// How much one sync may bring of Services that cost more; others of them wait for the next.
    fn at_once(&self) -> usize {
        usize::MAX
    }

    /// Looks for what others changed and repairs it; `None`: nothing.
    ///
    /// # Errors
    /// As for [`Backend::sync`].
    fn check(&mut self, desired: &Desired) -> Result<Option<Report>, Self::Error>;

    /// The same of what does not depend on what is wanted, for as long as that cannot be brought into force: a sync that fails
    /// looks at the rows itself.
    ///
    /// # Errors
    /// As for [`Backend::sync`].
    fn check_hooks(&mut self) -> Result<Option<Report>, Self::Error> {
        Ok(None)
    }

    /// Rows in force, by map.
    fn rows(&self) -> &BTreeMap<&'static str, usize>;

    /// What is wanted and not in force, and why.
    fn refused(&self) -> Vec<Ignored>;

    /// The frontends among what is wanted and not in force, each with the reason.
    fn left_out(&self) -> BTreeMap<Frontend, String>;

    /// Deletes the UDP flows that these services' endpoints left behind. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    fn clean_udp(&mut self, services: &[UdpService]) -> Result<Cleaned, Self::Error>;

    /// Has connections begin anew that tried to while rows were missing, and that the kernel would go on to leave untranslated: those to
    /// these addresses of Services. How many. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    fn forget_unanswered(&mut self, _services: &HashSet<(Protocol, SocketAddr)>) -> Result<usize, Self::Error> {
        Ok(0)
    }

    /// What a backend tells of itself: sections of `kubeferry status`, each a title and lines.
    fn facts(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Reads the counters of every service port's endpoints, all at once; empty where the datapath counts nothing. Blocks.
    ///
    /// # Errors
    /// The kernel refuses.
    fn look(&mut self, _desired: &Desired) -> Result<Vec<Counts>, Self::Error> {
        Ok(Vec::new())
    }

    /// Which of the numbers of [`Backend::look`] are counted.
    fn counting(&self, _desired: &Desired) -> Counting {
        Counting::default()
    }

    /// By how many connections the counts of active ones were found to be wrong and put right, all in all.
    fn recounted(&self) -> u64 {
        0
    }

    /// How many connections ended without what they carried being counted, all in all: they were too many at once.
    fn uncounted(&self) -> u64 {
        0
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
