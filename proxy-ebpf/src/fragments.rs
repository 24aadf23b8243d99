//! Ports of datagrams that come in fragments: the first leaves them for the others.

use kubeferry_ebpf_common::packet::{FragmentKey, Packet};

use crate::maps::FRAGMENTS;

/// Takes the ports and the protocol of a later fragment from what the first left; `key` is room for its key. False: not known.
#[inline(always)]
pub fn recall_ports(packet: &mut Packet, key: &mut FragmentKey) -> bool {
    packet.write_fragment_key(key);
    // SAFETY: the value is read at once; the first fragment of another datagram may replace it, as with any reused id.
    match unsafe { FRAGMENTS.get(&*key) } {
        Some([source, destination, protocol]) => {
            packet.key.source_port = *source;
            packet.key.destination_port = *destination;
            packet.key.protocol = *protocol as u8;
            true
        }
        None => false,
    }
}

/// Leaves the ports for later fragments, whatever the datagram is: otherwise those of an earlier one with its number would be taken for its own.
#[inline(always)]
pub fn leave_ports(packet: &Packet, key: &mut FragmentKey) {
    if packet.first {
        packet.write_fragment_key(key);
        let ports = [packet.key.source_port, packet.key.destination_port, packet.key.protocol.into()];
        // An LRU map takes every row; without it the later fragments would pass untranslated.
        let _ = FRAGMENTS.insert(&*key, ports, 0);
    }
}
