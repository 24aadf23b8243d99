//! The eBPF datapath: rows of BPF maps, which the programs of `proxy-ebpf` read.

pub mod object;
