//! A packet as far as translation has to know it: how it is read, and how it becomes another's. Nothing here calls the
//! kernel: where the bytes are is for a [`Buffer`] to know, so that all of it runs on a host, too, where it is tried with
//! generated packets (`fuzz/`).

pub mod headers;
pub mod icmp;
pub mod read;
pub mod reset;
pub mod rewrite;
pub mod sum;

use core::mem::size_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::plain::Plain;
use crate::{Address, FlowKey, ICMP, ICMPV6, SCTP, TCP, UDP};

/// TCP's flag FIN.
pub const FIN: u8 = 1;
/// TCP's flag SYN.
pub const SYN: u8 = 2;
/// TCP's flag RST.
pub const RST: u8 = 4;
/// TCP's flag ACK.
pub const ACK: u8 = 16;

/// The packet cannot be read or written: it is not for us, or damaged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreadable;

/// A packet's bytes. Offsets count from the first byte that the program sees.
pub trait Buffer {
    /// Reads the first `bytes` of `value`, no more than it has.
    ///
    /// # Errors
    /// The packet ends before.
    fn load_first<T: Plain>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable>;

    /// Writes `value`.
    ///
    /// # Errors
    /// The packet ends before.
    fn store<T: Plain>(&self, at: u32, value: &T) -> Result<(), Unreadable>;

    /// Mends the IPv4 header's checksum at `at` for a word that changes.
    ///
    /// # Errors
    /// The packet ends before.
    fn replace_header_sum(&self, at: u32, from: u32, to: u32) -> Result<(), Unreadable>;

    /// The same for half a word.
    ///
    /// # Errors
    /// The packet ends before.
    fn replace_header_sum16(&self, at: u32, from: u16, to: u16) -> Result<(), Unreadable>;

    /// Mends a transport checksum at `at`; `flags` as of `bpf_l4_csum_replace`: see [`sum`].
    ///
    /// # Errors
    /// The packet ends before.
    fn replace_sum(&self, at: u32, from: u64, to: u64, flags: u32) -> Result<(), Unreadable>;

    /// The EtherType, in network byte order; 0 for a packet that is another device's.
    fn ether_type(&self) -> u32;

    /// How many bytes the packet has from its IP header on, and how many packets it will be on the wire.
    fn size(&self, packet: &Packet) -> (u32, u32);

    /// Reads all of `value`.
    ///
    /// # Errors
    /// The packet ends before.
    #[inline(always)]
    fn load<T: Plain>(&self, at: u32, value: &mut T) -> Result<(), Unreadable> {
        self.load_first(at, value, size_of::<T>() as u32)
    }
}

/// What is read of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Where the IP header begins.
    pub l3: u32,
    /// Where the transport header begins; of a later fragment: where it would.
    pub l4: u32,
    /// Source, destination, ports (0 without), protocol (of a later fragment as of [`Packet::fragment`], until the first has told). The
    /// hook is for the caller to set.
    pub key: FlowKey,
    /// Of IPv4.
    pub v4: bool,
    /// A later fragment: there is no transport header.
    pub later: bool,
    /// The first of several fragments.
    pub first: bool,
    /// Of TCP. Of SCTP what the first chunk says in these words: [`SYN`] for an INIT, [`RST`] where it ends the association.
    pub flags: u8,
    /// Bytes from the transport header on.
    pub length: u16,
    /// What the fragments of a datagram have in common.
    pub id: u32,
    /// The protocol that they have in common: with IPv6 that of the first header after the fragment header, which only the first has.
    pub fragment: u8,
    /// Bytes from the IP header on.
    pub bytes: u32,
    /// Packets on the wire: more than one before they are cut (GSO).
    pub segments: u32,
}

/// Key of `fragments`: an entry of this kind of a datagram's first fragment.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// [`Packet::id`].
    pub id: u32,
    /// [`Packet::fragment`].
    pub protocol: u8,
    /// [`FlowKey::hook`].
    pub hook: u8,
    /// 0.
    pub reserved: u16,
}

impl Packet {
    /// Whether this protocol has ports that services know.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        matches!(self.key.protocol, TCP | UDP | SCTP)
    }

    /// Whether it is of the family's ICMP.
    #[inline(always)]
    pub fn is_icmp(&self) -> bool {
        self.key.protocol == if self.v4 { ICMP } else { ICMPV6 }
    }

    /// An ICMP or ICMPv6 error: those tell of other packets, and are never answered.
    #[inline(always)]
    pub fn is_icmp_error<B: Buffer>(&self, skb: &B) -> bool {
        let mut kind = [0_u8];
        if !self.is_icmp() || self.later || skb.load(self.l4, &mut kind).is_err() {
            return false;
        }
        match self.v4 {
            true => matches!(kind[0], 3 | 4 | 5 | 11 | 12),
            false => kind[0] < 128,
        }
    }

    /// A connection's first packet.
    #[inline(always)]
    pub fn opens_tcp(&self) -> bool {
        self.key.protocol == TCP && self.flags & (SYN | ACK | RST) == SYN
    }

    /// With what an association begins.
    #[inline(always)]
    pub fn opens_sctp(&self) -> bool {
        self.key.protocol == SCTP && self.flags & SYN != 0
    }

    /// A packet within a connection, not its first one.
    #[inline(always)]
    pub fn is_within_tcp(&self) -> bool {
        self.key.protocol == TCP && !self.opens_tcp()
    }

    /// An answer to the packet that opens a connection, or a reset: neither is ever the first packet.
    #[inline(always)]
    pub fn opens_nothing(&self) -> bool {
        self.is_within_tcp() && self.flags & (SYN | RST) != 0
    }

    /// A packet with which a side of a connection ends, or all of it.
    #[inline(always)]
    pub fn ends(&self) -> bool {
        matches!(self.key.protocol, TCP | SCTP) && self.flags & (FIN | RST) != 0
    }

    /// A packet with which a side of a connection begins.
    #[inline(always)]
    pub fn begins_tcp(&self) -> bool {
        self.key.protocol == TCP && self.flags & (SYN | RST) == SYN
    }

    /// Writes the key of what the fragments of this datagram have in common.
    #[inline(always)]
    pub fn write_fragment_key(&self, key: &mut FragmentKey) {
        key.source = self.key.source;
        key.destination = self.key.destination;
        key.id = self.id;
        key.protocol = self.fragment;
        key.hook = self.key.hook;
        key.reserved = 0;
    }
}
