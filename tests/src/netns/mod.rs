//! Network namespaces for tests: nothing of a test ever reaches the machine's own network.
//!
//! [`Netns`] is a namespace that goes away with its value; [`link`] joins two of them. Runs can go side by side: every name
//! has the process id in it, and what a killed run left behind is removed by the next one.

mod command;
mod kernel;
mod link;
mod namespace;
mod tunnel;

pub use command::{output, tool};
pub use link::{End, link, mac_text};
pub use namespace::Netns;
pub use tunnel::Tunnel;
