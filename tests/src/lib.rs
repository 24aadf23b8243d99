//! The test harness: network namespaces, packets, the flow table and its executors.

pub mod netns;
