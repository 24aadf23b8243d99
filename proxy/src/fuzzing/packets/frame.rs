//! A frame in this machine's memory, and reading it.

use std::cell::RefCell;

use kubeferry_ebpf_common::packet::headers::Headers;
use kubeferry_ebpf_common::packet::sum::{MANGLED_0, SIZE, difference_of, mended};
use kubeferry_ebpf_common::packet::{Buffer, Packet, Unreadable, read as reader};
use kubeferry_ebpf_common::plain::Plain;
use kubeferry_ebpf_common::{Address, FlowKey};

/// Where the IP header begins.
pub(super) const ETHERNET: usize = 14;

/// A frame in memory. `at_xdp`: checksums as the program at XDP mends them; else as the kernel's helpers do at TC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) bytes: RefCell<Vec<u8>>,
    pub(super) at_xdp: bool,
}

impl Frame {
    pub(super) fn get(&self, at: usize, length: usize) -> Option<Vec<u8>> {
        Some(self.bytes.borrow().get(at..at.checked_add(length)?)?.to_vec())
    }

    pub(super) fn put(&self, at: usize, value: &[u8]) {
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

pub(super) fn empty(l3: u32) -> Packet {
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
    Packet { l3, l4: l3, key, v4, later, first, flags: 0, length: 0, id: 0, fragment: 0, bytes: 0, segments: 0 }
}

pub(super) fn parse(frame: &Frame, hook: u8) -> Option<Packet> {
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
