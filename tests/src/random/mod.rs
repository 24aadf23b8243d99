//! Random clusters and random histories of changes, on which the model, both datapaths and real packets have to agree after
//! every step. What disagrees is made small, and written as a case of the flow table.

mod agree;
mod broken;
mod campaign;
mod cluster;
mod flows;
mod folder;
mod node;
mod pools;
mod rng;
mod scenario;
mod service;
mod shrink;
mod slice;

pub use agree::{Agreement, Counts, Run, everything, sampled};
pub use campaign::{Campaign, Report};
pub use cluster::Cluster;
pub use folder::write;
pub use rng::Rng;
pub use scenario::{Scenario, State};
pub use shrink::shrink;
