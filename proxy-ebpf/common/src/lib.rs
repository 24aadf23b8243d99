//! What the BPF programs and the userspace of Kubeferry agree on: the keys and values of every map, and the arithmetic
//! that needs no kernel helper. Both sides compile this crate; plain `cargo test` tests it.
//!
//! Every type of a row here is [`plain::Plain`]: without padding between or after its fields, and every bit pattern of it is
//! valid, so that a map's bytes are the value. Addresses and ports are in network byte order, as packets have them; everything else
//! is in the machine's.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

pub mod address;
pub mod btf;
pub mod config;
pub mod crc32c;
pub mod flow;
pub mod frontend;
pub mod jhash;
pub mod live;
pub mod packet;
pub mod plain;
pub mod policy;
pub mod socket;
pub mod stats;

pub use address::{Address, Prefix};
pub use config::{Config, Device};
pub use flow::{Flow, FlowKey};
pub use frontend::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, Member, MemberKey, RangeKey, Slot, Traffic};
pub use socket::{SocketConnection, SocketKey, SocketPeer};

/// IPPROTO_ICMP.
pub const ICMP: u8 = 1;
/// IPPROTO_TCP.
pub const TCP: u8 = 6;
/// IPPROTO_UDP.
pub const UDP: u8 = 17;
/// IPPROTO_ICMPV6.
pub const ICMPV6: u8 = 58;
/// IPPROTO_SCTP.
pub const SCTP: u8 = 132;

/// Changes whenever a map's layout or the meaning of a value does: pinned state of another version is not adopted.
pub const LAYOUT: u32 = 5;
