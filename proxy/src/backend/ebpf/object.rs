//! The BPF object: the programs and maps of `proxy-ebpf`, compiled.

/// The object that `cargo xtask build-ebpf` built (an ELF file, aligned as aya reads it): build.rs put it here.
pub const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kubeferry.bpf.o"));
