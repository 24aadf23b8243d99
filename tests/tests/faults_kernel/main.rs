//! What others do to the kernel's tables, programs and devices under the proxy, and what becomes of its tools, while requests
//! come from everywhere and every one is checked. Each test prints what the clients saw and how long it took to be right again.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod devices;
mod ebpf_attachments;
mod ebpf_maps;
mod ebpf_rows;
mod forgotten;
mod guarded;
mod memory;
mod nft_rows;
mod nft_table;
mod nft_tool;
mod resources;
mod trial;
