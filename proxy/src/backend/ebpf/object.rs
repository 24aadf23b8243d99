//! The object with the BPF programs, as it was built.

/// The ELF file.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("KUBEFERRY_EBPF_OBJECT"));
