//! Room to work in. A program's stack has 512 bytes, less than the keys and values of one connection; so they are in a map,
//! one for each CPU. A program at TC is not interrupted by another there: packets leave and come in with softirqs off.

use aya_ebpf::btf_maps::lpm_trie::Key;
use kubeferry_ebpf_common::packet::headers::Headers;
use kubeferry_ebpf_common::packet::{FragmentKey, Packet};
use kubeferry_ebpf_common::{Affinity, AffinityKey, Flow, FlowKey, Frontend, FrontendKey, MemberKey, RangeKey, Slot};

use crate::maps::WORK;
use crate::refuse::Refusal;

/// What a program has in hand.
#[repr(C)]
pub struct Work {
    pub packet: Packet,
    /// The interface that the packet came in by; 0: the node itself made it.
    pub came_by: u32,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet,
    pub headers: Headers,
    pub fragment: FragmentKey,
    pub frontend: FrontendKey,
    /// The row of that.
    pub row: Frontend,
    pub range: Key<RangeKey>,
    pub client: AffinityKey,
    pub affinity: Affinity,
    pub member: MemberKey,
    /// The endpoint that was chosen.
    pub slot: Slot,
    /// An entry being written, and its key.
    pub key: FlowKey,
    pub flow: Flow,
    /// The entry that belongs to it.
    pub other_key: FlowKey,
    pub other: Flow,
    pub refusal: Refusal,
    pub lookup: aya_ebpf::bindings::bpf_fib_lookup,
}

impl Work {
    /// This CPU's.
    #[inline(always)]
    pub fn get() -> Option<&'static mut Self> {
        // SAFETY: see the module.
        WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }
}
