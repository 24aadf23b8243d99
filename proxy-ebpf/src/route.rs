//! Sends a packet whose destination changed after it was routed.

use core::ffi::c_void;
use core::mem::size_of;
use core::ptr::null_mut;

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as bpf_fib_lookup_params,
};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect_neigh};
use kubeferry_ebpf_common::stats::Counter;

use crate::link;
use crate::skb::Skb;
use crate::tc::Action;
use crate::work::Work;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Asks, in `work.lookup`, for the way from the packet's source to `work.slot`, as for a packet that came in by `device`.
#[inline(always)]
pub fn fill(work: &mut Work, device: u32) {
    let (packet, slot, at) = (&work.packet, &work.slot, &mut work.lookup);
    // SAFETY: all zeroes are a valid value of this struct of numbers.
    *at = unsafe { core::mem::zeroed() };
    at.family = if packet.v4 { AF_INET } else { AF_INET6 };
    at.l4_protocol = packet.key.protocol;
    at.sport = packet.key.source_port;
    at.dport = slot.port;
    at.ifindex = device;
    if packet.v4 {
        at.__bindgen_anon_3.ipv4_src = packet.key.source.words[3];
        at.__bindgen_anon_4.ipv4_dst = slot.address.words[3];
    } else {
        at.__bindgen_anon_3.ipv6_src = packet.key.source.words;
        at.__bindgen_anon_4.ipv6_dst = slot.address.words;
    }
}

/// The interface by which the routes send answers to the packet's source, if that is the next hop; `None`: it is not, or they do not say.
#[inline(always)]
pub fn way_back(context: *mut c_void, work: &mut Work) -> Option<u32> {
    let (packet, at) = (&work.packet, &mut work.lookup);
    // SAFETY: all zeroes are a valid value of this struct of numbers.
    *at = unsafe { core::mem::zeroed() };
    at.ifindex = work.came_by;
    if packet.v4 {
        at.family = AF_INET;
        at.__bindgen_anon_4.ipv4_dst = packet.key.source.words[3];
    } else {
        at.family = AF_INET6;
        at.__bindgen_anon_4.ipv6_dst = packet.key.source.words;
    }
    let at = &raw mut work.lookup;
    // SAFETY: the struct is as long as told.
    unsafe {
        match bpf_fib_lookup(context, at, size_of::<bpf_fib_lookup_params>() as i32, 0) as u32 {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
                let source = &work.packet.key.source;
                // A gateway stands there where there is one.
                let is_next = match work.packet.v4 {
                    true => (*at).__bindgen_anon_4.ipv4_dst == source.words[3],
                    false => (*at).__bindgen_anon_4.ipv6_dst == source.words,
                };
                is_next.then_some((*at).ifindex)
            }
            _ => None,
        }
    }
}

/// To the device and neighbour that the routes have for `work.slot`.
#[inline(always)]
pub fn send(skb: &Skb, work: &mut Work) -> Action {
    // As what has come in to be forwarded: no route is bound to the device then.
    fill(work, skb.device());
    let at = &raw mut work.lookup;
    // SAFETY: the struct is as long as told.
    let device = unsafe {
        match bpf_fib_lookup(skb.raw.cast(), at, size_of::<bpf_fib_lookup_params>() as i32, 0) as u32 {
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => (*at).ifindex,
            _ => return Action::Drop(Counter::Unreachable),
        }
    };
    if work.packet.l3 == 0 {
        // The kernel takes it off again, looks for the route and the neighbour, and writes one where the device has such. Without, the packet
        // would keep the route that it had to the service, which some tunnels ask for the other end.
        if let Err(error) = link::put(skb, &mut work.refusal, [0; 3], work.packet.v4) {
            return error.into();
        }
    }
    // SAFETY: no pointers but one to nothing.
    Action::Redirect(unsafe { bpf_redirect_neigh(device, null_mut(), 0, 0) } as i32)
}
