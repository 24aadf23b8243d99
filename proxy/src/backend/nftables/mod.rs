//! The nftables backend: Services as rows of maps. `README.md` beside this file explains every map, chain and hook.

mod backend;
pub mod chains;
mod child;
pub mod costs;
pub mod diff;
pub mod draw;
pub mod expression;
#[cfg(test)]
mod fake;
pub mod json;
pub mod kernel;
#[cfg(test)]
pub(crate) mod laws;
pub mod maps;
pub mod netfilter;
pub mod netlink;
pub mod nft;
mod pick;
pub mod reconciler;
pub mod rows;
pub mod rule;
pub mod seal;
pub mod skeleton;
mod taking;
#[cfg(test)]
mod tests;
pub mod text;
