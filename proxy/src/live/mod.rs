//! `kubeferry trace --live`: real packets followed through the datapath, and what became of each beside the model's answer.
//!
//! `filter`, `packet`, `journey` and `judge` are pure and know no datapath; `nftables` has the packets told of, and makes a
//! [`journey::Journey`] of what it hears.

pub mod filter;
pub mod journey;
pub mod judge;
pub mod nftables;
pub mod packet;
pub mod tap;
