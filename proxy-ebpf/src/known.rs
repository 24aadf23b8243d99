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
    /// The node's own.
    #[inline(always)]
    pub fn of_node(context: *mut c_void) -> Self {
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
        self.are_known() && matches!(key.protocol, TCP | UDP) && {
            let state = state(self.context, key, self.namespace);
            state != NONE && state != LISTENS && state != UNCONNECTED
        }
    }

    /// Whether one of UDP waits at `key`'s destination for whoever comes.
    #[inline(always)]
    pub fn waits(self, key: &FlowKey) -> bool {
        self.are_known() && key.protocol == UDP && state(self.context, key, self.namespace) == UNCONNECTED
    }
}

/// The state of the socket that packets with these ends come in for; [`NONE`]: there is none.
#[inline(never)]
fn state(context: *mut c_void, key: &FlowKey, namespace: u64) -> u32 {
    // SAFETY: a union of integers.
    let mut tuple = bpf_sock_tuple { __bindgen_anon_1: unsafe { core::mem::zeroed() } };
    let size = if key.source.is_v4() {
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

#[inline(never)]
fn state_of_tcp(context: *mut c_void, tuple: &mut bpf_sock_tuple, size: u32, namespace: u64) -> u32 {
    // SAFETY: the tuple is as long as told; a socket that is found is given back.
    unsafe {
        let found = bpf_skc_lookup_tcp(context, tuple, size, namespace, 0);
        if found.is_null() {
            return NONE;
        }
        let state = (&raw const (*found).state).read_volatile();
        bpf_sk_release(found.cast());
        state
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
        bpf_sk_release(found.cast());
        state
    }
}
