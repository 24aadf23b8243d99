//! A list of endpoints as slots that a datapath draws from: which endpoint each slot is.

use std::net::SocketAddr;

use super::Schedule;

/// Slots of a table of `mh` by default.
pub const TABLE_SIZE: u32 = 1009;

/// The endpoint of each slot, as an index of `endpoints`. `weights` are those of the endpoints (1 and more), as the
/// scheduler is to use them; empty: all are 1.
///
/// How a slot is drawn: `random`: any with the same probability; `rr`, `wrr`: the next in turn; `sh`, `dh`, `mh`: by the
/// hash; the others look at all of them.
pub fn slots(_schedule: &Schedule, endpoints: &[SocketAddr], _weights: &[u16]) -> Vec<u32> {
    (0..endpoints.len() as u32).collect()
}
