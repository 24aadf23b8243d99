//! The nftables backend.

pub mod netlink;
pub mod nft;
