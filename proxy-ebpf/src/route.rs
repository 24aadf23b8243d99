//! Sends a packet whose destination changed after it was routed.

use core::mem::size_of;
use core::ptr::null_mut;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as bpf_fib_lookup_params,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh};
use kubeferry_ebpf_common::stats::Counter;

use crate::packet::Skb;
use crate::tc::Action;
use crate::work::Work;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// To the device and neighbour that the routes have for the packet's destination.
#[inline(always)]
pub fn send(skb: &Skb, work: &mut Work) -> Action {
    let (packet, at) = (&work.packet, &raw mut work.lookup);
    // SAFETY: all zeroes are a valid value of this struct of numbers; unions get the member of the family.
    unsafe {
        *at = core::mem::zeroed();
        (*at).family = if packet.v4 { AF_INET } else { AF_INET6 };
        (*at).l4_protocol = packet.key.protocol;
        (*at).sport = packet.key.source_port;
        (*at).dport = packet.key.destination_port;
        (*at).ifindex = skb.device();
        if packet.v4 {
            (*at).__bindgen_anon_3.ipv4_src = packet.key.source.words[3];
            (*at).__bindgen_anon_4.ipv4_dst = packet.key.destination.words[3];
        } else {
            (*at).__bindgen_anon_3.ipv6_src = packet.key.source.words;
            (*at).__bindgen_anon_4.ipv6_dst = packet.key.destination.words;
        }
        // Without BPF_FIB_LOOKUP_OUTPUT, as what has come in to be forwarded: no route is bound to a device then.
        let found = bpf_fib_lookup(skb.raw.cast(), at, size_of::<bpf_fib_lookup_params>() as i32, 0) as u32;
        match found {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
                Action::Redirect(bpf_redirect_neigh((*at).ifindex, null_mut(), 0, 0) as i32)
            }
            _ => Action::Drop(Counter::Unreachable),
        }
    }
}
