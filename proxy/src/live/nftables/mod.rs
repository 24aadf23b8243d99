//! Packets followed on the nftables datapath: the kernel's own tracing, switched on for what the filter says.

pub mod assemble;
pub mod event;
pub mod kernel;
pub mod tap;
