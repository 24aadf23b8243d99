//! The BPF object: the programs and maps of `proxy-ebpf`, compiled.

/// The object that `cargo xtask build-ebpf` built (an ELF file, aligned as aya reads it): build.rs put it here. One place in the binary: a constant
/// is a copy for each part of the crate that is compiled by itself.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kubeferry.bpf.o"));
