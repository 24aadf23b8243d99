//! A frame at XDP. Nothing is left to the hardware there: checksums are mended in place (RFC 1624).

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, xdp_md};
use aya_ebpf::helpers::generated::{bpf_xdp_load_bytes, bpf_xdp_store_bytes};

use crate::packet::{Buffer, Packet, Unreadable};

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
        let mangled = flags & BPF_F_MARK_MANGLED_0 as u32 != 0;
        // UDP without a checksum stays so.
        if mangled && sum == 0 {
            return Ok(());
        }
        let mut total = u64::from(!sum) + difference;
        total = (total & 0xffff) + (total >> 16);
        total = (total & 0xffff) + (total >> 16);
        total = (total & 0xffff) + (total >> 16);
        total = (total & 0xffff) + (total >> 16);
        let mut sum = !(total as u16);
        if mangled && sum == 0 {
            sum = 0xffff;
        }
        self.store(at, &sum)
    }
}

impl Buffer for Frame {
    #[inline(always)]
    fn load_first<T>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable> {
        let to: *mut T = value;
        // SAFETY: the helper writes no more than `bytes`, which callers keep within `T`.
        match unsafe { bpf_xdp_load_bytes(self.raw, at, to.cast(), bytes) } {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }

    #[inline(always)]
    fn store<T>(&self, at: u32, value: &T) -> Result<(), Unreadable> {
        let from: *const T = value;
        // SAFETY: the helper reads `value` only.
        match unsafe { bpf_xdp_store_bytes(self.raw, at, from.cast_mut().cast(), size_of::<T>() as u32) } {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }

    #[inline(always)]
    fn replace_header_sum(&self, at: u32, from: u32, to: u32) -> Result<(), Unreadable> {
        self.add(at, u64::from(!from) + u64::from(to), 0)
    }

    #[inline(always)]
    fn replace_sum(&self, at: u32, from: u64, to: u64, flags: u32) -> Result<(), Unreadable> {
        // A size of 0: `to` is a difference already.
        let difference = match flags & 0xf {
            0 => to as u32 as u64,
            2 => u64::from(!(from as u16)) + to,
            _ => u64::from(!(from as u32)) + to,
        };
        self.add(at, difference, flags)
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
