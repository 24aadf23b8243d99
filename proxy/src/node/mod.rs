//! What this node is: the addresses that its interfaces hold, which rules on local traffic depend on.

mod kernel;

pub use kernel::{AddressError, NodeAddress, addresses, list_addresses, watch_addresses};
