//! Backends: what turns wanted rows into a kernel's tables.

pub mod nftables;
