//! Backends: what turns wanted rows into a kernel's tables.

#[cfg(feature = "ebpf")]
pub mod ebpf;
pub mod nftables;

/// Whether this build has the eBPF datapath: cargo's feature `ebpf`.
pub const HAS_EBPF: bool = cfg!(feature = "ebpf");
