//! Rows of nftables maps, written and read over netlink instead of by starting `nft` (about 4 ms for each start).
//!
//! `element`, `op` and `batch` are pure: rows to bytes and back. `kernel` holds the socket; `ruleset` (generation, the
//! table's comment, chains), `rules`, `sets` and `others` read what is not rows, for noticing drift.
//!
//! The messages are written and read here rather than through `netlink-packet-netfilter`: its readers render the whole
//! buffer as text once for each element (error contexts are built eagerly), its writers measure nested attributes again
//! at every level, and one expression that it does not know loses the whole message. `conntrack` uses the
//! same socket and attributes.

pub(crate) mod attribute;
mod batch;
mod connection;
mod element;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod kernel;
mod op;
mod others;
mod rules;
mod ruleset;
mod sets;
#[cfg(test)]
mod tests;

pub use connection::{Connection, Taken};
pub use element::{Data, Element};
pub(super) use error::NOT_PERMITTED;
pub use error::{CommitError, Error, Refused, RefusedPart};
pub use op::{Op, Ops};
pub use rules::FoundRule;
pub use ruleset::{Chain, Table};
