//! What the BPF programs do with a packet's bytes, on this machine: the same functions, over a buffer here.

mod case;
mod frame;
mod sums;

use std::cell::RefCell;

use kubeferry_ebpf_common::packet::headers::Headers;
use kubeferry_ebpf_common::packet::rewrite::{End, hop, rewrite as write, rewrite_alias};
use kubeferry_ebpf_common::packet::{FragmentKey, Packet, icmp as errors, reset as resets};
use kubeferry_ebpf_common::{Address, Flow, FlowKey, TCP, UDP};

use self::case::Case;
use self::frame::{Frame, empty, parse};
use self::sums::{assert_only, assert_sums, same_sum, seal, seal_header, transport_sum};

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
            let flow =
                Flow { address, port: 0, flags: Flow::ALIAS, seen: 0, device, backend: 0, sender: 0, reserved: 0 };
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
    let flow = Flow {
        address: case.address(packet.v4),
        port: case.port,
        flags,
        seen: 0,
        device: alias.into(),
        backend: 0,
        sender: 0,
        reserved: 0,
    };
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
    assert!(after.flags & !16 == 4, "{}", after.flags);
}
