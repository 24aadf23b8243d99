//! A socket buffer at TC. Bytes are read and written by the kernel's helpers, which check every offset and see to the
//! buffer's fragments and to checksums that are still the hardware's to finish.

use core::mem::size_of;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{
    bpf_csum_update, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use kubeferry_ebpf_common::packet::sum::{PSEUDO_HEADER, SIZE};
use kubeferry_ebpf_common::packet::{Buffer, Packet, Unreadable};
use kubeferry_ebpf_common::plain::Plain;

/// A socket buffer.
#[derive(Clone, Copy)]
pub struct Skb {
    pub raw: *mut __sk_buff,
}

/// What a helper answers.
#[inline(always)]
fn check(answer: i64) -> Result<(), Unreadable> {
    match answer {
        0 => Ok(()),
        _ => Err(Unreadable),
    }
}

impl Buffer for Skb {
    #[inline(always)]
    fn load_first<T: Plain>(&self, at: u32, value: &mut T, bytes: u32) -> Result<(), Unreadable> {
        let to: *mut T = value;
        // SAFETY: the helper writes no more than `bytes`, which callers keep within `T`.
        check(unsafe { bpf_skb_load_bytes(self.raw.cast(), at, to.cast(), bytes) })
    }

    #[inline(always)]
    fn store<T: Plain>(&self, at: u32, value: &T) -> Result<(), Unreadable> {
        let from: *const T = value;
        // SAFETY: the helper reads `value` only.
        check(unsafe { bpf_skb_store_bytes(self.raw.cast(), at, from.cast(), size_of::<T>() as u32, 0) })
    }

    #[inline(always)]
    fn replace_header_sum(&self, at: u32, from: u32, to: u32) -> Result<(), Unreadable> {
        // SAFETY: a helper without pointers of ours.
        check(unsafe { bpf_l3_csum_replace(self.raw.cast(), at, from.into(), to.into(), 4) })
    }

    #[inline(always)]
    fn replace_header_sum16(&self, at: u32, from: u16, to: u16) -> Result<(), Unreadable> {
        // SAFETY: a helper without pointers of ours.
        check(unsafe { bpf_l3_csum_replace(self.raw.cast(), at, from.into(), to.into(), 2) })
    }

    #[inline(always)]
    fn replace_sum(&self, at: u32, from: u64, to: u64, flags: u32) -> Result<(), Unreadable> {
        // SAFETY: a helper without pointers of ours.
        check(unsafe { bpf_l4_csum_replace(self.raw.cast(), at, from, to, flags.into()) })?;
        // A network card's sum of the whole packet (CHECKSUM_COMPLETE) stays what it is where an address of IPv6 changes and the checksum with
        // it. The helper takes the address for one of IPv4, whose header makes up for it, too.
        if flags & (PSEUDO_HEADER | SIZE) == PSEUDO_HEADER {
            // SAFETY: as above. Of other packets it does nothing.
            unsafe { bpf_csum_update(self.raw, to as u32) };
        }
        Ok(())
    }

    #[inline(always)]
    fn size(&self, packet: &Packet) -> (u32, u32) {
        // SAFETY: the context is valid while the program runs.
        let (bytes, segments) = unsafe { ((*self.raw).len, (*self.raw).gso_segs) };
        (bytes.wrapping_sub(packet.l3), if segments == 0 { 1 } else { segments })
    }

    /// A VLAN tag beside the packet: the device above gets it too, and without.
    #[inline(always)]
    fn ether_type(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { if (*self.raw).vlan_present != 0 { 0 } else { (*self.raw).protocol } }
    }
}

impl Skb {
    /// The interface that the program runs at.
    #[inline(always)]
    pub fn device(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).ifindex }
    }

    /// Bytes of the packet, from where the program sees it.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).len }
    }

    /// The interface that the packet came in by last; 0: the node itself made it.
    #[inline(always)]
    pub fn came_by(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).ingress_ifindex }
    }

    /// Whether the node itself made the packet.
    #[inline(always)]
    pub fn is_own(&self) -> bool {
        self.came_by() == 0
    }
}
