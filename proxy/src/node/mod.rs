//! The node: the addresses that its interfaces hold, which rules on local traffic depend on; what is set on it at the start, and
//! the rights that we keep there.

pub mod families;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod kernel;
mod links;
pub mod privileges;
pub mod setup;

pub use kernel::{AddressError, NodeAddress, addresses, kernel_release, list_addresses, watch_addresses};
pub use links::{Held, Interface, interfaces, watch_interfaces};
