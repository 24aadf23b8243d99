//! A packet as far as translation has to know it, and how it is read.

use core::mem::size_of;

use kubeferry_ebpf_common::{Address, FlowKey, ICMP, ICMPV6, SCTP, TCP, UDP};

use crate::maps::FRAGMENTS;

/// EtherTypes in network byte order, as `__sk_buff::protocol` has them.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// Headers before the transport header of IPv6 that are looked through, at most.
const MAX_EXTENSIONS: usize = 6;

/// TCP flags.
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The packet cannot be read or written: it is not for us, or damaged.
#[derive(Clone, Copy)]
pub struct Unreadable;

/// A packet's bytes. Offsets count from the first byte that the program sees.
pub trait Buffer {
    /// Reads the first `bytes` of `value`, which is plain numbers.
    fn load_first<T>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable>;

    /// Writes `value`.
    fn store<T>(&self, at: u32, value: &T) -> Result<(), Unreadable>;

    /// Mends the IPv4 header's checksum at `at` for a word that changes.
    fn replace_header_sum(&self, at: u32, from: u32, to: u32) -> Result<(), Unreadable>;

    /// Mends a transport checksum at `at`; `flags` as of `bpf_l4_csum_replace`.
    fn replace_sum(&self, at: u32, from: u64, to: u64, flags: u32) -> Result<(), Unreadable>;

    /// The EtherType, in network byte order; 0 for a packet that is another device's.
    fn ether_type(&self) -> u32;

    /// How many bytes the packet has from its IP header on, and how many packets it will be on the wire.
    fn size(&self, packet: &Packet) -> (u32, u32);

    /// Reads all of `value`, which is plain numbers.
    #[inline(always)]
    fn load<T>(&self, at: u32, value: &mut T) -> Result<(), Unreadable> {
        self.load_first(at, value, size_of::<T>() as u32)
    }
}

/// What is read of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    /// Where the IP header begins.
    pub l3: u32,
    /// Where the transport header begins; of a later fragment: where it would.
    pub l4: u32,
    /// Source, destination, ports (0 without), protocol. The hook is for the caller to set.
    pub key: FlowKey,
    pub v4: bool,
    /// A later fragment: there is no transport header.
    pub later: bool,
    /// The first of several fragments.
    pub first: bool,
    /// Of TCP.
    pub tcp_flags: u8,
    /// Bytes from the transport header on.
    pub length: u16,
    /// What the fragments of a datagram have in common.
    pub id: u32,
    /// Bytes from the IP header on.
    pub bytes: u32,
    /// Packets on the wire: more than one before they are cut (GSO).
    pub segments: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_length: u8,
    pub service: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub sum: u16,
    pub source: u32,
    pub destination: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    pub version_class_label: u32,
    pub payload_length: u16,
    pub next: u8,
    pub hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}

/// The first 8 bytes of an IPv6 extension header, as a fragment header has them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Extension {
    pub next: u8,
    pub length: u8,
    pub fragment: u16,
    pub id: u32,
}

/// Room for headers while they are read.
#[repr(C)]
pub struct Headers {
    pub v4: Ipv4,
    pub v6: Ipv6,
    pub extension: Extension,
    pub tcp: Tcp,
}

/// The first 16 bytes of a TCP header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub acknowledged: u32,
    pub offset: u8,
    pub flags: u8,
    pub window: u16,
}

/// Reads a packet whose IP header begins at `l3`. False if it is neither IPv4 nor IPv6, or not for this device.
#[inline(always)]
pub fn read<B: Buffer>(
    skb: &B,
    l3: u32,
    hook: u8,
    packet: &mut Packet,
    headers: &mut Headers,
) -> Result<bool, Unreadable> {
    packet.key.hook = hook;
    packet.key.reserved = 0;
    match skb.ether_type() {
        IPV4 => read_v4(skb, l3, packet, headers)?,
        IPV6 => read_v6(skb, l3, packet, headers)?,
        _ => return Ok(false),
    }
    read_ports(skb, packet, headers)?;
    (packet.bytes, packet.segments) = skb.size(packet);
    Ok(true)
}

#[inline(always)]
pub fn read_v4<B: Buffer>(skb: &B, l3: u32, packet: &mut Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    let header = &mut headers.v4;
    skb.load(l3, header)?;
    let fragment = u16::from_be(header.fragment);
    packet.key.source = Address::v4(header.source);
    packet.key.destination = Address::v4(header.destination);
    packet.key.protocol = header.protocol;
    packet.l3 = l3;
    packet.l4 = l3 + u32::from(header.version_length & 15) * 4;
    packet.v4 = true;
    packet.later = fragment & 0x1fff != 0;
    packet.first = fragment & 0x3fff == 0x2000;
    packet.id = header.id.into();
    packet.length = u16::from_be(header.total_length).wrapping_sub((packet.l4 - l3) as u16);
    Ok(())
}

#[inline(always)]
pub fn read_v6<B: Buffer>(skb: &B, l3: u32, packet: &mut Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    let header = &mut headers.v6;
    skb.load(l3, header)?;
    packet.key.source = Address::v6(header.source);
    packet.key.destination = Address::v6(header.destination);
    packet.l3 = l3;
    packet.v4 = false;
    packet.later = false;
    packet.first = false;
    packet.id = 0;
    let mut protocol = header.next;
    let length = u16::from_be(header.payload_length).wrapping_add(40);
    let mut l4 = l3 + 40;
    for _ in 0..MAX_EXTENSIONS {
        let extension = &mut headers.extension;
        match protocol {
            // Hop-by-hop options, routing, destination options: next header, length in 8 bytes without the first.
            0 | 43 | 60 => {
                skb.load(l4, extension)?;
                l4 += (u32::from(extension.length) + 1) * 8;
            }
            // Authentication: length in 4 bytes without the first two.
            51 => {
                skb.load(l4, extension)?;
                l4 += (u32::from(extension.length) + 2) * 4;
            }
            // Fragment: next header, reserved, offset in units of 8 bytes with "more" as the last bit, identification.
            44 => {
                skb.load(l4, extension)?;
                let fragment = u16::from_be(extension.fragment);
                packet.later = fragment & 0xfff8 != 0;
                packet.first = fragment == 1;
                packet.id = extension.id;
                l4 += 8;
            }
            _ => break,
        }
        protocol = extension.next;
    }
    packet.key.protocol = protocol;
    packet.l4 = l4;
    packet.length = length.wrapping_sub((l4 - l3) as u16);
    Ok(())
}

#[inline(always)]
fn read_ports<B: Buffer>(skb: &B, packet: &mut Packet, headers: &mut Headers) -> Result<(), Unreadable> {
    packet.key.source_port = 0;
    packet.key.destination_port = 0;
    packet.tcp_flags = 0;
    if packet.later {
        return Ok(());
    }
    let header = &mut headers.tcp;
    match packet.key.protocol {
        TCP => {
            skb.load(packet.l4, header)?;
            packet.tcp_flags = header.flags;
        }
        UDP | SCTP => skb.load_first(packet.l4, header, 4)?,
        _ => return Ok(()),
    }
    packet.key.source_port = header.source;
    packet.key.destination_port = header.destination;
    Ok(())
}

/// Key of `fragments`: an entry of this kind of a datagram's first fragment.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    pub id: u32,
    pub protocol: u8,
    pub hook: u8,
    pub reserved: u16,
}

impl Packet {
    /// Whether this protocol has ports that services know.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        matches!(self.key.protocol, TCP | UDP | SCTP)
    }

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
        self.key.protocol == TCP && self.tcp_flags & (SYN | ACK | RST) == SYN
    }

    /// A packet within a connection, not its first one.
    #[inline(always)]
    pub fn is_within_tcp(&self) -> bool {
        self.key.protocol == TCP && !self.opens_tcp()
    }

    /// A packet with which a side of a connection begins.
    #[inline(always)]
    pub fn begins_tcp(&self) -> bool {
        self.key.protocol == TCP && self.tcp_flags & (SYN | RST) == SYN
    }

    #[inline(always)]
    fn fragment_key(&self, key: &mut FragmentKey) {
        key.source = self.key.source;
        key.destination = self.key.destination;
        key.id = self.id;
        key.protocol = self.key.protocol;
        key.hook = self.key.hook;
        key.reserved = 0;
    }

    /// Takes the ports of a later fragment from what the first left. False: not known.
    #[inline(always)]
    pub fn recall_ports(&mut self, key: &mut FragmentKey) -> bool {
        self.fragment_key(key);
        // SAFETY: the value is read at once; the first fragment of another datagram may replace it, as with any reused id.
        match unsafe { FRAGMENTS.get(&*key) } {
            Some(ports) => {
                self.key.source_port = ports[0];
                self.key.destination_port = ports[1];
                true
            }
            None => false,
        }
    }

    /// Leaves the ports for later fragments.
    #[inline(always)]
    pub fn leave_ports(&self, key: &mut FragmentKey) {
        if self.first {
            self.fragment_key(key);
            let ports = [self.key.source_port, self.key.destination_port];
            // An LRU map takes every row; without it the later fragments would pass untranslated.
            let _ = FRAGMENTS.insert(&*key, ports, 0);
        }
    }
}
