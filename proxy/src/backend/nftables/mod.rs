//! The nftables backend.

pub mod netlink;
