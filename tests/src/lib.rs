//! The test harness: network namespaces, packets, the flow table and its executors.

pub mod binary;
pub mod conformance;
pub mod executors;
pub mod flows;
pub mod netns;
pub mod packets;
pub mod world;
