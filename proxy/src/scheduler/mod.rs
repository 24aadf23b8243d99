//! How one of a service port's endpoints is chosen for a new connection: the schedulers of IPVS (ipvsadm(8)) and `random`.
//! Session affinity goes before, traffic policies and topology say among which endpoints.

pub mod hash;
mod maglev;
pub mod slots;
pub mod slow_start;
pub mod weights;
mod wrr;

use std::fmt;
use std::str::FromStr;

/// A scheduler, by the names of ipvsadm(8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Scheduler {
    /// Any endpoint, with a probability by its weight.
    #[default]
    Random,
    /// Round robin: each in turn, whatever its weight.
    Rr,
    /// Weighted round robin: in turn, as often as the weight says, spread over the turn.
    Wrr,
    /// The endpoint with the fewest connections.
    Lc,
    /// The endpoint with the fewest connections for its weight.
    Wlc,
    /// By the hash of the source.
    Sh,
    /// By the hash of the destination address.
    Dh,
    /// Shortest expected delay: the fewest (connections + 1) for the weight.
    Sed,
    /// Never queue: an idle endpoint if there is one, otherwise as `sed`.
    Nq,
    /// Maglev hashing of the source.
    Mh,
}

impl Scheduler {
    /// All of them.
    pub const ALL: [Self; 10] =
        [Self::Random, Self::Rr, Self::Wrr, Self::Lc, Self::Wlc, Self::Sh, Self::Dh, Self::Sed, Self::Nq, Self::Mh];

    /// The name, as `--scheduler` has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Rr => "rr",
            Self::Wrr => "wrr",
            Self::Lc => "lc",
            Self::Wlc => "wlc",
            Self::Sh => "sh",
            Self::Dh => "dh",
            Self::Sed => "sed",
            Self::Nq => "nq",
            Self::Mh => "mh",
        }
    }

    /// Whether it asks how many connections each endpoint has: only the eBPF datapath counts them.
    pub const fn counts_connections(self) -> bool {
        matches!(self, Self::Lc | Self::Wlc | Self::Sed | Self::Nq)
    }

    /// Whether weights mean more to it than whether they are 0.
    pub const fn uses_weights(self) -> bool {
        !matches!(self, Self::Rr | Self::Lc | Self::Dh)
    }

    /// Whether new endpoints come to their weight bit by bit, if their Service asks for it.
    pub const fn starts_slowly(self) -> bool {
        self.counts_connections() || matches!(self, Self::Wrr)
    }

    /// Whether the endpoints of a service port take turns.
    pub const fn takes_turns(self) -> bool {
        matches!(self, Self::Rr | Self::Wrr)
    }

    /// Whether it draws the slot from a hash of the packet's addresses.
    pub const fn hashes(self) -> bool {
        matches!(self, Self::Sh | Self::Dh | Self::Mh)
    }
}

impl fmt::Display for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scheduler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scheduler| scheduler.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{:?} is not a scheduler: use one of {names}", short(text))
        })
    }
}

/// What `sh` and `mh` hash: annotation `kubeferry.dev/hash-key`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum HashKey {
    /// The source address.
    #[default]
    Source,
    /// The source address and port.
    SourceAndPort,
}

impl HashKey {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Source, Self::SourceAndPort];

    /// The name, as the annotation has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source-address",
            Self::SourceAndPort => "source-address-and-port",
        }
    }
}

impl fmt::Display for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HashKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|key| key.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(" or ");
            format!("{:?} is not a hash key: use {names}", short(text))
        })
    }
}

/// The beginning of a text that somebody else wrote, for a message.
fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

/// The scheduler of a service port as this node has it: what the Service asks for where the datapath can do it, otherwise
/// the node's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Schedule {
    /// The scheduler.
    pub scheduler: Scheduler,
    /// What `sh` and `mh` hash.
    pub hash_key: HashKey,
    /// Slots of a table of `mh`, a prime.
    pub table_size: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { scheduler: Scheduler::Random, hash_key: HashKey::Source, table_size: slots::TABLE_SIZE }
    }
}

/// The initial value of every hash (`jhash` of `linux/jhash.h`), the same on all nodes: "kube" in ASCII. The slot is the
/// hash scaled to the number of slots: `(hash * slots) >> 32`.
pub const HASH_SEED: u32 = kubeferry_ebpf_common::jhash::SEED;
