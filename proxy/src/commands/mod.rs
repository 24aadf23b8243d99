//! The commands of `kubeferry` but `run`: each reads, says something and ends.

pub mod cleanup;
pub mod config;
pub mod live;
pub mod manual;
pub mod offline;
pub mod output;
pub mod plan;
pub mod trace;
