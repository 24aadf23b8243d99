//! Headers as they stand in a packet: numbers of more than a byte are in network byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// An IPv4 header without options.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Ipv4 {
    /// 4, and the header's length in words.
    pub version_length: u8,
    /// Type of service.
    pub service: u8,
    /// Bytes of the packet.
    pub total_length: u16,
    /// What the fragments of a datagram have in common.
    pub id: u16,
    /// Flags, and the place in units of 8 bytes.
    pub fragment: u16,
    /// Hops left.
    pub ttl: u8,
    /// Protocol number.
    pub protocol: u8,
    /// Of the header.
    pub sum: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// An IPv6 header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Ipv6 {
    /// 6, class, label.
    pub version_class_label: u32,
    /// Bytes after this header.
    pub payload_length: u16,
    /// What comes next.
    pub next: u8,
    /// Hops left.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u32; 4],
    /// Destination address.
    pub destination: [u32; 4],
}

/// The first 8 bytes of an IPv6 extension header, as a fragment header has them.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Extension {
    /// What comes next.
    pub next: u8,
    /// Length, in a unit of the header's own.
    pub length: u8,
    /// Place in units of 8 bytes, and whether more come.
    pub fragment: u16,
    /// What the fragments of a datagram have in common.
    pub id: u32,
}

/// The first 16 bytes of a TCP header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledged number.
    pub acknowledged: u32,
    /// Where the data begins.
    pub offset: u8,
    /// FIN, SYN and so on.
    pub flags: u8,
    /// Window.
    pub window: u16,
}

/// Room for headers while they are read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers {
    /// IPv4's.
    pub v4: Ipv4,
    /// IPv6's.
    pub v6: Ipv6,
    /// The last one looked at.
    pub extension: Extension,
    /// TCP's; of UDP and SCTP the ports alone.
    pub tcp: Tcp,
}
