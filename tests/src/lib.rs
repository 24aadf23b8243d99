//! The test harness: network namespaces, packets, the flow table and its executors.

pub mod apiserver;
pub mod binary;
pub mod bpf;
pub mod bpffs;
pub mod client;
pub mod cluster;
pub mod conformance;
pub mod datapath;
pub mod executors;
pub mod faults;
pub mod flows;
pub mod hosts;
pub mod kube_proxy;
pub mod load;
pub mod netns;
pub mod packets;
pub mod random;
pub mod schedulers;
#[cfg(target_arch = "x86_64")]
pub mod seccomp;
pub mod site;
pub mod sockets;
pub mod web;
pub mod world;
pub mod xdp;
