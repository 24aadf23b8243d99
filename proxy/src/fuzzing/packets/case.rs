//! What the first bytes of an input say of the rest.

use std::cell::RefCell;

use kubeferry_ebpf_common::Address;
use kubeferry_ebpf_common::packet::rewrite::End;

use super::frame::{ETHERNET, Frame};

/// How a case is set up: bits of the first byte.
pub(super) struct Case<'a> {
    pub(super) flags: u8,
    pub(super) address: [u8; 16],
    pub(super) port: u16,
    pub(super) frame: &'a [u8],
}

impl<'a> Case<'a> {
    pub(super) const XDP: u8 = 1;
    pub(super) const SOURCE: u8 = 2;
    /// The lengths in the headers are what the frame has.
    pub(super) const FITS: u8 = 4;
    pub(super) const NO_SUM: u8 = 8;
    pub(super) const ALIAS: u8 = 16;

    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let (head, frame) = bytes.split_first_chunk::<19>()?;
        let address = head[1..17].try_into().ok()?;
        Some(Self { flags: head[0], address, port: u16::from_ne_bytes([head[17], head[18]]), frame })
    }

    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn end(&self) -> End {
        if self.is(Self::SOURCE) { End::Source } else { End::Destination }
    }

    pub(super) fn frame(&self) -> Frame {
        let mut bytes = self.frame.to_vec();
        let length = bytes.len().saturating_sub(ETHERNET);
        if self.is(Self::FITS) && bytes.len() >= ETHERNET + 40 {
            let (at, length) = if bytes[12..14] == [8, 0] { (16, length) } else { (18, length - 40) };
            bytes[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        }
        Frame { bytes: RefCell::new(bytes), at_xdp: self.is(Self::XDP) }
    }

    /// Of the packet's family.
    pub(super) fn address(&self, v4: bool) -> Address {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| self.address[at + byte]));
        if v4 { Address::v4(word(12)) } else { Address::v6([word(0), word(4), word(8), word(12)]) }
    }
}
