//! The eBPF backend: Services as rows of BPF maps. `README.md` beside this file explains every map, program and hook.

pub mod admission;
pub mod attach;
pub mod backend;
pub mod bpf;
pub mod carry;
pub mod cleanup;
pub mod counters;
pub mod devices;
pub mod diff;
pub mod drain;
pub mod elsewhere;
pub mod error;
pub mod fence;
mod filters;
pub mod flows;
pub mod following;
pub mod found;
#[cfg(test)]
mod interleavings;
pub mod kernel;
#[cfg(test)]
mod laws;
pub mod links;
pub mod live;
pub mod load;
pub mod log;
pub mod numbering;
pub mod numbers;
pub mod object;
mod own_folder;
pub mod parting;
pub mod pins;
pub mod ports;
pub mod preview;
pub mod reconciler;
pub mod recount;
pub mod retired;
pub mod rows;
pub mod shards;
pub mod slots;
pub mod sock_diag;
pub mod sockets;
pub mod sweep;
pub mod table;
pub mod takeover;
pub mod text;
pub mod uplinks;
