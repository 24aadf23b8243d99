//! What the kernel tells of packets that are followed: of rules, and the headers that anybody on the network has sent.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::live::nftables::assemble::Assembler;
use crate::live::nftables::event::{self, Verdict};
use crate::live::nftables::tap;
use crate::live::packet::Ends;

/// A datagram of nf_tables' traces, and the journeys that come of it. What is shown of them is lines of text and nothing else.
pub fn events(bytes: &[u8]) {
    let Ok(events) = event::read(bytes) else { return };
    let (table, name) = (tap::table(1), |index: u32| format!("eth{index}"));
    let mut assembler = Assembler::new(table);
    let now = Instant::now();
    let packets = events.iter().filter(|event| event.ends.is_some()).count();
    let mut journeys = Vec::new();
    for event in events {
        let chain = match &event.verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) => chain.as_str(),
            _ => "",
        };
        for text in [&event.table, &event.chain, chain] {
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
        journeys.extend(assembler.take(event, now, name));
    }
    journeys.extend(assembler.expire(now + Duration::from_hours(1), name));
    assert!(journeys.len() <= packets, "a packet has one journey for each time that it came");
    assert_eq!(assembler.expire(now + Duration::from_hours(2), name), [], "who was given up is gone");
    for journey in journeys {
        let shown = journey.to_string();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        assert!(shown.lines().count() >= 2, "{shown:?}");
    }
}

/// What the BPF programs tell of packets that are followed, and the journeys that come of it, as [`events`].
#[cfg(feature = "ebpf")]
pub fn live_events(bytes: &[u8]) {
    use kubeferry_ebpf_common::live::LiveEvent;
    use zerocopy::FromBytes;

    let name = |index: u32| format!("eth{index}");
    let mut assembler = crate::live::ebpf::assemble::Assembler::default();
    let (now, mut journeys, mut events) = (Instant::now(), Vec::new(), 0);
    for event in bytes.chunks(size_of::<LiveEvent>()).filter_map(|bytes| LiveEvent::read_from_bytes(bytes).ok()) {
        events += 1;
        journeys.extend(assembler.take(&event, now, name));
    }
    journeys.extend(assembler.expire(now + Duration::from_hours(1)));
    assert!(journeys.len() <= events, "an event ends one journey at the most");
    assert_eq!(assembler.expire(now + Duration::from_hours(2)), [], "who was given up is gone");
    for journey in journeys {
        let shown = journey.to_string();
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
        assert!(shown.lines().count() >= 2, "{shown:?}");
    }
}

/// The first byte says how long the network header is; the rest is the transport header's.
pub fn headers(bytes: &[u8]) {
    let Some((length, bytes)) = bytes.split_first() else { return };
    let (network, transport) = bytes.split_at(usize::from(*length).min(bytes.len()));
    let Some(ends) = Ends::read(network, transport) else { return };
    let Ends { protocol, from, to } = ends;
    assert_eq!(from.is_ipv4(), to.is_ipv4());
    // Written anew, with nothing in it but what was read.
    let again = header(protocol.number(), from, to);
    let ports = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    assert_eq!(Ends::read(&again, &ports), Some(ends));
    // A byte less of either, and there are no ends.
    assert_eq!(Ends::read(&again[..again.len() - 1], &ports), None);
    assert_eq!(Ends::read(&again, &ports[..3]), None);
    let parts = if from.is_ipv4() { [9..10, 12..20] } else { [6..7, 8..40] };
    assert!(parts.into_iter().all(|part| network[part.clone()] == again[part]), "{ends} is not in {network:?}");
}

/// A header with addresses, version and protocol alone.
fn header(protocol: u8, from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            [&[0x40, 0, 0, 0, 0, 0, 0, 0, 0, protocol, 0, 0], &from.octets()[..], &to.octets()].concat()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            [&[0x60, 0, 0, 0, 0, 0, protocol, 0], &from.octets()[..], &to.octets()].concat()
        }
        _ => unreachable!("both are of one family"),
    }
}
