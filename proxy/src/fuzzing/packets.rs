//! What the BPF programs do with a packet's bytes, on this machine: the same functions, over a buffer here.

use std::cell::RefCell;

use kubeferry_ebpf_common::packet::headers::Headers;
use kubeferry_ebpf_common::packet::rewrite::{End, hop, rewrite as write, rewrite_alias};
use kubeferry_ebpf_common::packet::sum::{MANGLED_0, SIZE, difference_of, mended};
use kubeferry_ebpf_common::packet::{
    Buffer, FragmentKey, Packet, Unreadable, icmp as errors, read as reader, reset as resets,
};
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{Address, Flow, FlowKey, ICMP, ICMPV6, SCTP, TCP, UDP, crc32c};

/// Where the IP header begins.
const ETHERNET: usize = 14;

/// A frame in memory. `at_xdp`: checksums as the program at XDP mends them; else as the kernel's helpers do at TC.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Frame {
    bytes: RefCell<Vec<u8>>,
    at_xdp: bool,
}

impl Frame {
    fn get(&self, at: usize, length: usize) -> Option<Vec<u8>> {
        Some(self.bytes.borrow().get(at..at.checked_add(length)?)?.to_vec())
    }

    fn put(&self, at: usize, value: &[u8]) {
        self.bytes.borrow_mut()[at..at + value.len()].copy_from_slice(value);
    }

    /// `csum_replace4` and the like of the kernel's `include/net/checksum.h`.
    fn helper(sum: u16, difference: u64, flags: u32) -> u16 {
        if flags & MANGLED_0 != 0 && sum == 0 {
            return 0;
        }
        let mut total = u64::from(!sum) + difference;
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        match !(total as u16) {
            0 if flags & MANGLED_0 != 0 => 0xffff,
            sum => sum,
        }
    }

    fn mend(&self, at: u32, difference: u64, flags: u32) -> Result<(), Unreadable> {
        // The kernel's helpers take no odd place.
        if at % 2 == 1 {
            return Err(Unreadable);
        }
        let mut sum = 0_u16;
        self.load(at, &mut sum)?;
        self.store(at, &if self.at_xdp { mended(sum, difference, flags) } else { Self::helper(sum, difference, flags) })
    }
}

impl Buffer for Frame {
    fn load_first<T: Plain>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable> {
        let found = self.get(at as usize, bytes as usize).ok_or(Unreadable)?;
        value.as_mut_bytes()[..bytes as usize].copy_from_slice(&found);
        Ok(())
    }

    fn store<T: Plain>(&self, at: u32, value: &T) -> Result<(), Unreadable> {
        let (at, value) = (at as usize, value.as_bytes());
        self.get(at, value.len()).ok_or(Unreadable)?;
        self.put(at, value);
        Ok(())
    }

    fn replace_header_sum(&self, at: u32, from: u32, to: u32) -> Result<(), Unreadable> {
        self.mend(at, difference_of(from.into(), to.into(), 4), 0)
    }

    fn replace_header_sum16(&self, at: u32, from: u16, to: u16) -> Result<(), Unreadable> {
        self.mend(at, difference_of(from.into(), to.into(), 2), 0)
    }

    fn replace_sum(&self, at: u32, from: u64, to: u64, flags: u32) -> Result<(), Unreadable> {
        assert!(matches!(flags & SIZE, 0 | 2 | 4), "{flags}");
        assert!(flags & SIZE != 0 || from == 0, "the kernel's helper refuses it");
        self.mend(at, difference_of(from, to, flags), flags)
    }

    fn ether_type(&self) -> u32 {
        let mut kind = 0_u16;
        self.load(12, &mut kind).map_or(0, |()| kind.into())
    }

    fn size(&self, packet: &Packet) -> (u32, u32) {
        (u32::from(packet.length).wrapping_add(packet.l4 - packet.l3), 1)
    }
}

fn empty(l3: u32) -> Packet {
    let key = FlowKey {
        source: Address::ZERO,
        destination: Address::ZERO,
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        hook: 0,
        reserved: 0,
    };
    let (v4, later, first) = (false, false, false);
    Packet { l3, l4: l3, key, v4, later, first, tcp_flags: 0, length: 0, id: 0, bytes: 0, segments: 0 }
}

fn parse(frame: &Frame, hook: u8) -> Option<Packet> {
    let mut packet = empty(ETHERNET as u32);
    let before = frame.clone();
    let found = reader::read(frame, ETHERNET as u32, hook, &mut packet, &mut Headers::default());
    assert_eq!(*frame, before, "reading changes nothing");
    if found != Ok(true) {
        return None;
    }
    let header = if packet.v4 { 20 } else { 40 };
    assert!(packet.l4 >= packet.l3 + header, "{packet:?}");
    assert!(!(packet.first && packet.later), "{packet:?}");
    let mut ports = [0_u16; 2];
    if packet.has_ports() && !packet.later {
        assert!(frame.load(packet.l4, &mut ports).is_ok());
    }
    assert_eq!([packet.key.source_port, packet.key.destination_port], ports);
    Some(packet)
}

/// A frame, whose IP header begins after 14 bytes.
pub fn read(bytes: &[u8]) {
    let frame = Frame { bytes: RefCell::new(bytes.to_vec()), at_xdp: bytes.len() % 2 == 1 };
    let Some(packet) = parse(&frame, FlowKey::IN) else { return };
    let mut fragment =
        FragmentKey { source: Address::ZERO, destination: Address::ZERO, id: 0, protocol: 0, hook: 0, reserved: 7 };
    packet.write_fragment_key(&mut fragment);
    assert_eq!((fragment.reserved, fragment.source), (0, packet.key.source));
    assert!(!packet.is_icmp_error(&frame) || packet.is_icmp());
    assert!(!packet.opens_tcp() || packet.begins_tcp());
    assert!(!(packet.opens_tcp() && packet.is_within_tcp()));
}

/// How a case is set up: bits of the first byte.
struct Case<'a> {
    flags: u8,
    address: [u8; 16],
    port: u16,
    frame: &'a [u8],
}

impl<'a> Case<'a> {
    const XDP: u8 = 1;
    const SOURCE: u8 = 2;
    /// The lengths in the headers are what the frame has.
    const FITS: u8 = 4;
    const NO_SUM: u8 = 8;
    const ALIAS: u8 = 16;

    fn of(bytes: &'a [u8]) -> Option<Self> {
        let (head, frame) = bytes.split_first_chunk::<19>()?;
        let address = head[1..17].try_into().ok()?;
        Some(Self { flags: head[0], address, port: u16::from_ne_bytes([head[17], head[18]]), frame })
    }

    fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn end(&self) -> End {
        if self.is(Self::SOURCE) { End::Source } else { End::Destination }
    }

    fn frame(&self) -> Frame {
        let mut bytes = self.frame.to_vec();
        let length = bytes.len().saturating_sub(ETHERNET);
        if self.is(Self::FITS) && bytes.len() >= ETHERNET + 40 {
            let (at, length) = if bytes[12..14] == [8, 0] { (16, length) } else { (18, length - 40) };
            bytes[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        }
        Frame { bytes: RefCell::new(bytes), at_xdp: self.is(Self::XDP) }
    }

    /// Of the packet's family.
    fn address(&self, v4: bool) -> Address {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| self.address[at + byte]));
        if v4 { Address::v4(word(12)) } else { Address::v6([word(0), word(4), word(8), word(12)]) }
    }
}

/// The Internet sum of these parts, folded: 0xffff where a checksum among them is right.
fn folded(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2)).map(|word| match word {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        [high] => u64::from(*high) << 8,
        _ => 0,
    });
    let mut sum = words.sum::<u64>();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where the transport checksum is, and its bytes.
fn transport_sum(packet: &Packet) -> Option<(usize, usize)> {
    let l4 = packet.l4 as usize;
    match packet.key.protocol {
        _ if packet.later || packet.first => None,
        TCP => Some((l4 + 16, 2)),
        UDP => Some((l4 + 6, 2)),
        SCTP => Some((l4 + 8, 4)),
        ICMP if packet.v4 => Some((l4 + 2, 2)),
        ICMPV6 if !packet.v4 => Some((l4 + 2, 2)),
        _ => None,
    }
}

/// The packet's transport header and data, if the frame has all of it.
fn transport(bytes: &[u8], packet: &Packet) -> Option<std::ops::Range<usize>> {
    let range = packet.l4 as usize..packet.l4 as usize + usize::from(packet.length);
    let (at, length) = transport_sum(packet)?;
    (range.end <= bytes.len() && at + length <= range.end && range.end == bytes.len()).then_some(range)
}

/// What the transport checksum has to be; `None` where the packet is not whole, or has none.
fn right_sum(bytes: &[u8], packet: &Packet) -> Option<Vec<u8>> {
    let range = transport(bytes, packet)?;
    let (at, length) = transport_sum(packet)?;
    let mut data = bytes[range].to_vec();
    let own = at - packet.l4 as usize;
    data[own..own + length].fill(0);
    if packet.key.protocol == SCTP {
        return Some(crc32c::of(&data).to_le_bytes().to_vec());
    }
    let l3 = packet.l3 as usize;
    let addresses = if packet.v4 { &bytes[l3 + 12..l3 + 20] } else { &bytes[l3 + 8..l3 + 40] };
    let rest = [u32::from(packet.length).to_be_bytes(), u32::from(packet.key.protocol).to_be_bytes()].concat();
    let sum = match packet.key.protocol {
        ICMP => !folded(&[&data]),
        _ => !folded(&[addresses, &rest, &data]),
    };
    let sum = if packet.key.protocol == UDP && sum == 0 { 0xffff } else { sum };
    Some(sum.to_be_bytes().to_vec())
}

/// Gives the packet the checksums that it should have; whether it is one whole packet, so that it has all of them.
fn seal(frame: &Frame, packet: &Packet, no_sum: bool) -> bool {
    seal_header(frame, packet);
    let sum = right_sum(&frame.bytes.borrow(), packet);
    let Some((sum, (at, length))) = sum.zip(transport_sum(packet)) else { return false };
    let none = no_sum && packet.key.protocol == UDP;
    frame.put(at, if none { &[0, 0] } else { &sum[..length] });
    true
}

fn seal_header(frame: &Frame, packet: &Packet) {
    if packet.v4 {
        let at = packet.l3 as usize;
        let length = usize::from(frame.bytes.borrow()[at] & 15) * 4;
        if let Some(mut header) = frame.get(at, length) {
            header[10..12].fill(0);
            frame.put(at + 10, &(!folded(&[&header])).to_be_bytes());
        }
    }
}

/// Whether a checksum is another's, or says the same: 0 and 0xffff are one number.
fn same_sum(one: &[u8], other: &[u8]) -> bool {
    one == other || (one.len() == 2 && [one, other].iter().all(|sum| matches!(sum, [0, 0] | [0xff, 0xff])))
}

fn assert_sums(frame: &Frame, packet: &Packet, none: bool) {
    let bytes = frame.bytes.borrow();
    if packet.v4 {
        let l3 = packet.l3 as usize;
        if let Some(header) = bytes.get(l3..l3 + (bytes[l3] & 15) as usize * 4) {
            assert_eq!(folded(&[header]), 0xffff, "the header's checksum");
        }
    }
    let Some((right, (at, length))) = right_sum(&bytes, packet).zip(transport_sum(packet)) else { return };
    let found = &bytes[at..at + length];
    match none {
        true => assert_eq!(found, [0, 0], "none stays none"),
        false => assert!(same_sum(found, &right), "{found:02x?}, not {right:02x?}: {packet:?}"),
    }
}

/// Whether two frames differ in these places at most.
fn assert_only(before: &Frame, after: &Frame, places: &[std::ops::Range<usize>]) {
    let (before, after) = (before.bytes.borrow(), after.bytes.borrow());
    assert_eq!(before.len(), after.len());
    for (at, (old, new)) in before.iter().zip(after.iter()).enumerate() {
        assert!(old == new || places.iter().any(|place| place.contains(&at)), "byte {at} was {old}, is {new}");
    }
}

/// 19 bytes that say what to write (see [`Case`]), then a frame.
pub fn rewrite(bytes: &[u8]) {
    let Some(case) = Case::of(bytes) else { return };
    let frame = case.frame();
    let Some(packet) = parse(&frame, FlowKey::IN) else { return };
    let whole = seal(&frame, &packet, case.is(Case::NO_SUM));
    let none = whole && case.is(Case::NO_SUM) && packet.key.protocol == UDP;
    let (before, end, address) = (frame.clone(), case.end(), case.address(packet.v4));
    let result = match case.is(Case::ALIAS) {
        true => {
            let device = case.port.into();
            let flow = Flow { address, port: 0, flags: Flow::ALIAS, seen: 0, device, backend: 0 };
            rewrite_alias(&frame, &packet, end, &flow)
        }
        false => write(&frame, &packet, end, &address, case.port),
    };
    if result.is_err() {
        assert!(!whole, "a whole packet is written");
        return;
    }
    assert_sums(&frame, &packet, none);
    let Some(after) = parse(&frame, FlowKey::IN) else { panic!("what is written is read") };
    let mut wanted = packet.key;
    let (own_address, own_port) = match end {
        End::Source => (&mut wanted.source, &mut wanted.source_port),
        End::Destination => (&mut wanted.destination, &mut wanted.destination_port),
    };
    let (old_address, old_port) = (*own_address, *own_port);
    if !case.is(Case::ALIAS) {
        *own_address = address;
    }
    if packet.has_ports() && !packet.later {
        *own_port = case.port;
    }
    assert_eq!(after, Packet { key: wanted, ..packet });
    let (l3, l4) = (packet.l3 as usize, packet.l4 as usize);
    let sum = transport_sum(&Packet { first: false, ..packet }).map_or(0..0, |(at, length)| at..at + length);
    let ip = if packet.v4 { [l3 + 10..l3 + 12, l3 + 12..l3 + 20] } else { [l3 + 8..l3 + 24, l3 + 24..l3 + 40] };
    assert_only(&before, &frame, &[ip[0].clone(), ip[1].clone(), l4..l4 + 4, sum.clone()]);
    // And back.
    assert_eq!(write(&frame, &after, end, &old_address, old_port), Ok(()));
    let back = frame.bytes.borrow().clone();
    let original = before.bytes.borrow().clone();
    for at in (0..back.len()).filter(|at| back[*at] != original[*at]) {
        let start = if sum.contains(&at) { sum.start } else { l3 + 10 };
        assert!(same_sum(&back[start..start + 2], &original[start..start + 2]), "byte {at} of {packet:?}");
    }
    assert_sums(&frame, &packet, none);
    // One hop less to live.
    assert_eq!(hop(&frame, packet.v4, packet.l3), Ok(()));
    assert_sums(&frame, &packet, none);
    let ttl = if packet.v4 { l3 + 8 } else { l3 + 7 };
    assert_eq!(frame.bytes.borrow()[ttl], original[ttl].wrapping_sub(1));
}

/// 19 bytes that say what becomes of the flow (see [`Case`]), then a frame with an ICMP error.
pub fn icmp(bytes: &[u8]) {
    let Some(case) = Case::of(bytes) else { return };
    let frame = case.frame();
    let hook = if case.is(Case::SOURCE) { FlowKey::OUT } else { FlowKey::IN };
    let Some(packet) = parse(&frame, hook).filter(|packet| packet.is_icmp_error(&frame)) else { return };
    let (mut quoted, mut key) = (empty(0), packet.key);
    if errors::read_quote(&frame, &packet, hook, &mut quoted, &mut Headers::default(), &mut key).is_err() {
        return;
    }
    assert_eq!((key.source, key.destination), (quoted.key.destination, quoted.key.source));
    seal_header(&frame, &quoted);
    let whole = seal(&frame, &packet, false);
    let before = frame.clone();
    let flags = if case.is(Case::ALIAS) { Flow::ALIAS } else { 0 };
    let alias = u16::from_ne_bytes([case.address[0], case.address[1]]);
    let flow =
        Flow { address: case.address(packet.v4), port: case.port, flags, seen: 0, device: alias.into(), backend: 0 };
    if errors::rewrite(&frame, &packet, &quoted, hook, &flow).is_err() {
        assert!(!whole, "a whole error is written");
        return;
    }
    if whole {
        assert_sums(&frame, &packet, false);
        let (mut again, mut key) = (empty(0), packet.key);
        let read = errors::read_quote(&frame, &packet, hook, &mut again, &mut Headers::default(), &mut key);
        assert_eq!(read, Ok(()));
        assert_sums(&frame, &Packet { first: true, ..again }, false);
        let mut wanted = quoted.key;
        let ports = quoted.has_ports() && !quoted.later;
        let (address, port, client) = match hook {
            FlowKey::IN => (&mut wanted.source, &mut wanted.source_port, &mut wanted.destination_port),
            _ => (&mut wanted.destination, &mut wanted.destination_port, &mut wanted.source_port),
        };
        *address = flow.address;
        if ports {
            *port = flow.port;
        }
        if ports && flags != 0 {
            *client = alias;
        }
        assert_eq!(again.key, wanted);
    }
    assert_eq!(before.bytes.borrow().len(), frame.bytes.borrow().len());
}

/// The first byte says whether the frame after it is at XDP.
pub fn reset(bytes: &[u8]) {
    let Some((first, frame)) = bytes.split_first() else { return };
    let case = Case { flags: first & (Case::XDP | Case::FITS), address: [0; 16], port: 0, frame };
    let frame = case.frame();
    let Some(packet) = parse(&frame, FlowKey::IN).filter(|packet| packet.key.protocol == TCP) else { return };
    if packet.later {
        return;
    }
    let whole = seal(&frame, &packet, false);
    if resets::reset(&frame, &packet, &mut Headers::default()).is_err() {
        assert!(!whole, "a whole packet is refused");
        return;
    }
    assert_sums(&frame, &packet, false);
    let Some(after) = parse(&frame, FlowKey::IN) else { panic!("a reset is a packet") };
    assert_eq!((after.key.source, after.key.destination), (packet.key.destination, packet.key.source));
    assert_eq!(
        (after.key.source_port, after.key.destination_port),
        (packet.key.destination_port, packet.key.source_port)
    );
    assert!(after.tcp_flags & !16 == 4, "{}", after.tcp_flags);
}
