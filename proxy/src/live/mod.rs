//! `kubeferry trace --live`: real packets followed through the datapath, and what became of each beside the model's answer.
//!
//! `filter`, `packet`, `journey` and `judge` are pure and know no datapath; `nftables` and `ebpf` have the packets told of, and make a
//! [`journey::Journey`] of what they hear.

#[cfg(feature = "ebpf")]
pub mod ebpf;
pub mod filter;
pub mod journey;
pub mod judge;
pub mod nftables;
pub mod packet;
pub mod tap;
