//! Crafted first packets, and the capture of what becomes of them.

mod craft;
mod kernel;
mod parse;
mod probe;
mod real;

pub use craft::{first_packet, forwarded, fragments, tcp_packet};
pub use kernel::{Captured, FrameSocket};
pub use parse::{Seen, packet, segment_of};
pub use probe::{Arrival, Cable, Fate, Origin, Prober};
pub use real::{Call, Sockets};

pub use kubeferry::state::objects::Protocol;
