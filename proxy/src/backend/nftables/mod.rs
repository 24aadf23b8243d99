//! The nftables backend.

pub mod chains;
pub mod diff;
mod expression;
pub mod maps;
pub mod netlink;
pub mod rows;
pub mod rule;
pub mod skeleton;
pub mod text;
