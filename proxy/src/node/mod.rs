//! What this node is: the addresses that its interfaces hold, which rules on local traffic depend on.

mod kernel;
mod links;

pub use kernel::{AddressError, NodeAddress, addresses, list_addresses, watch_addresses};
pub use links::{Held, Interface, interfaces, watch_interfaces};
