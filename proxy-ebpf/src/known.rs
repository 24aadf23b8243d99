//! Connections that the kernel has sockets for and `flows` no entry: those that no program for packets translates.

use core::ffi::c_void;
use core::mem::size_of_val;

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use kubeferry_ebpf_common::{FlowKey, TCP, UDP};

use crate::maps::DEVICES;

/// States of a socket that waits for whoever comes: TCP_LISTEN, and of UDP TCP_CLOSE (include/net/tcp_states.h).
const LISTENS: u32 = 10;
const UNCONNECTED: u32 = 7;
/// No socket has this state.
const NONE: u32 = 0;
/// A bit beside the state: the socket is bound to just the address that packets go to, and not to every one.
const THERE: u32 = 1 << 8;

/// Whose sockets are asked for.
#[derive(Clone, Copy)]
pub struct Sockets {
    /// What the program runs for.
    context: *mut c_void,
    /// The network namespace, as the helpers want it, or [`NOBODY`]. Not an `Option`: the verifier does not let one be passed on
    /// whose number was never written.
    namespace: u64,
}

/// No network namespace has this number.
const NOBODY: u64 = 1 << 32;

impl Sockets {
    /// Those of the network namespace that the program runs in: the node's own, or for programs of sockets their own.
    #[inline(always)]
    pub fn here(context: *mut c_void) -> Self {
        Self { context, namespace: BPF_F_CURRENT_NETNS as u64 }
    }

    /// Those at the other end of an interface; nobody's, if that is not in a namespace that the node knows.
    #[inline(always)]
    pub fn behind(context: *mut c_void, device: u32) -> Self {
        // SAFETY: read at once.
        let namespace = match unsafe { DEVICES.get(device) } {
            Some(device) if device.peer != 0 => u64::from(device.peer) - 1,
            _ => NOBODY,
        };
        Self { context, namespace }
    }

    /// Whether anybody's can be asked for.
    #[inline(always)]
    pub fn are_known(self) -> bool {
        self.namespace != NOBODY
    }

    /// Whether one is connected from `key`'s destination to its source: packets with these ends come in for it.
    #[inline(always)]
    pub fn has(self, key: &FlowKey) -> bool {
        !matches!(self.state(key) & !THERE, NONE | LISTENS | UNCONNECTED)
    }

    /// Whether there is one for packets with these ends, but for those that a connection begins with.
    #[inline(always)]
    pub fn expects(self, key: &FlowKey) -> bool {
        !matches!(self.state(key) & !THERE, NONE | LISTENS)
    }

    /// Whether there is any for packets with these ends.
    #[inline(always)]
    pub fn have(self, key: &FlowKey) -> bool {
        self.state(key) & !THERE != NONE
    }

    /// Whether one is bound to just `key`'s destination.
    #[inline(always)]
    pub fn serves(self, key: &FlowKey) -> bool {
        self.state(key) & THERE != 0
    }

    /// Whether one of UDP waits at `key`'s destination for whoever comes.
    #[inline(always)]
    pub fn waits(self, key: &FlowKey) -> bool {
        key.protocol == UDP && self.state(key) & !THERE == UNCONNECTED
    }

    #[inline(always)]
    fn state(self, key: &FlowKey) -> u32 {
        if !self.are_known() || !matches!(key.protocol, TCP | UDP) {
            return NONE;
        }
        state(self.context, key, self.namespace)
    }
}

/// The state of the socket that packets with these ends come in for, with [`THERE`]; [`NONE`]: there is none.
#[inline(never)]
fn state(context: *mut c_void, key: &FlowKey, namespace: u64) -> u32 {
    // SAFETY: a union of integers.
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: unsafe { core::mem::zeroed() } };
    let size = if key.destination.is_v4() {
        // SAFETY: a union of integers, all of it written.
        let at = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        at.saddr = key.source.words[3];
        at.daddr = key.destination.words[3];
        at.sport = key.source_port;
        at.dport = key.destination_port;
        size_of_val(at)
    } else {
        // SAFETY: as above.
        let at = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        at.saddr = key.source.words;
        at.daddr = key.destination.words;
        at.sport = key.source_port;
        at.dport = key.destination_port;
        size_of_val(at)
    } as u32;
    match key.protocol {
        TCP => state_of_tcp(context, &mut tuple, size, namespace),
        _ => state_of_udp(context, &mut tuple, size, namespace),
    }
}

// The verifier wants each kind of socket to be read by an instruction of its own: so these are two functions.

/// Whether a socket that was found by a tuple of this length is bound to just the address that the tuple goes to.
macro_rules! is_bound {
    ($found:ident, $tuple:ident, $size:ident) => {
        if $size == size_of_val(&$tuple.__bindgen_anon_1.ipv4) as u32 {
            (&raw const (*$found).src_ip4).read_volatile() == $tuple.__bindgen_anon_1.ipv4.daddr
        } else {
            let (at, to) = (&raw const (*$found).src_ip6, &$tuple.__bindgen_anon_1.ipv6.daddr);
            let word = |n: usize| at.cast::<u32>().add(n).read_volatile();
            word(0) == to[0] && word(1) == to[1] && word(2) == to[2] && word(3) == to[3]
        }
    };
}

#[inline(never)]
fn state_of_tcp(context: *mut c_void, tuple: &mut bpf_sock_tuple, size: u32, namespace: u64) -> u32 {
    // SAFETY: the tuple is as long as told; a socket that is found is given back.
    unsafe {
        let found = bpf_skc_lookup_tcp(context, tuple, size, namespace, 0);
        if found.is_null() {
            return NONE;
        }
        let state = (&raw const (*found).state).read_volatile();
        let is_there = is_bound!(found, tuple, size);
        bpf_sk_release(found.cast());
        if is_there { state | THERE } else { state }
    }
}

#[inline(never)]
fn state_of_udp(context: *mut c_void, tuple: &mut bpf_sock_tuple, size: u32, namespace: u64) -> u32 {
    // SAFETY: as above.
    unsafe {
        let found = bpf_sk_lookup_udp(context, tuple, size, namespace, 0);
        if found.is_null() {
            return NONE;
        }
        let state = (&raw const (*found).state).read_volatile();
        let is_there = is_bound!(found, tuple, size);
        bpf_sk_release(found.cast());
        if is_there { state | THERE } else { state }
    }
}
