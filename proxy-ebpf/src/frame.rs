//! A frame at XDP. Nothing is left to the hardware there: checksums are mended in place (RFC 1624).

use core::mem::size_of;

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes};
use kubeferry_ebpf_common::packet::sum::{difference_of, mended};
use kubeferry_ebpf_common::packet::{Buffer, Packet, Unreadable};
use kubeferry_ebpf_common::plain::Plain;

/// A frame.
#[derive(Clone, Copy)]
pub struct Frame {
    pub raw: *mut xdp_md,
}

/// Where an Ethernet header has its type.
const ETHER_TYPE: u32 = 12;

impl Frame {
    /// The interface that the frame came in by.
    #[inline(always)]
    pub fn device(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).ingress_ifindex }
    }

    /// Adds a difference to the checksum at `at`.
    #[inline(always)]
    fn add(&self, at: u32, difference: u64, flags: u32) -> Result<(), Unreadable> {
        let mut sum = 0_u16;
        self.load(at, &mut sum)?;
        self.store(at, &mended(sum, difference, flags))
    }
}

impl Buffer for Frame {
    #[inline(always)]
    fn load_first<T: Plain>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable> {
        let to: *mut T = value;
        // SAFETY: the helper writes no more than `bytes`, which callers keep within `T`.
        match unsafe { bpf_xdp_load_bytes(self.raw, at, to.cast(), bytes) } {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }

    #[inline(always)]
    fn store<T: Plain>(&self, at: u32, value: &T) -> Result<(), Unreadable> {
        let from: *const T = value;
        // SAFETY: the helper reads `value` only.
        match unsafe { bpf_xdp_store_bytes(self.raw, at, from.cast_mut().cast(), size_of::<T>() as u32) } {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }

    #[inline(always)]
    fn replace_header_sum(&self, at: u32, from: u32, to: u32) -> Result<(), Unreadable> {
        self.add(at, difference_of(from.into(), to.into(), 4), 0)
    }

    #[inline(always)]
    fn replace_header_sum16(&self, at: u32, from: u16, to: u16) -> Result<(), Unreadable> {
        self.add(at, difference_of(from.into(), to.into(), 2), 0)
    }

    #[inline(always)]
    fn replace_sum(&self, at: u32, from: u64, to: u64, flags: u32) -> Result<(), Unreadable> {
        self.add(at, difference_of(from, to, flags), flags)
    }

    #[inline(always)]
    fn size(&self, packet: &Packet) -> (u32, u32) {
        (u32::from(packet.length) + (packet.l4 - packet.l3), 1)
    }

    #[inline(always)]
    fn ether_type(&self) -> u32 {
        let mut kind = 0_u16;
        match self.load(ETHER_TYPE, &mut kind) {
            Ok(()) => kind.into(),
            Err(_) => 0,
        }
    }
}
