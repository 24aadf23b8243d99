//! Connections that begin on this node, translated when the socket connects or sends, so that no packet has to be. Only
//! those whose whole answer is known then; the others go out as they are, and TC answers them.
//!
//! These programs may be interrupted by others on the same CPU: they work on the stack.

use core::ptr::addr_of_mut;

use aya_ebpf::Global;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_skc_to_tcp_sock};
use kubeferry_ebpf_common::flow::{JUST_NOW, limits, since};
use kubeferry_ebpf_common::policy::{Source, choose};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{
    Address, Config, FlowKey, Frontend, FrontendKey, Slot, SocketConnection, SocketKey, SocketPeer, TCP, frontend::draw,
};

use crate::connection::now;
use crate::counting::{join, leave, serve};
use crate::known::Sockets;
use crate::live;
use crate::log;
use crate::lookup::{config, frontend, may_be_of_node};
use crate::maps::{SOCKET_CONNECTIONS, SOCKET_ENDPOINTS, SOCKET_SERVICES};
use crate::scheduler::{pick, put_back};
use crate::stats::count;

/// The bit of `struct sock` that says that the kernel has made a socket for itself (`sk_kern_sock`), as this kernel has it; 0: nobody
/// knows. A constant of the programs as they are loaded: see `load.rs` in `proxy`.
#[unsafe(no_mangle)]
static KERNEL_SOCKET_BIT: Global<u32> = Global::new(0);

/// TCP_ESTABLISHED (include/net/tcp_states.h): the state of a socket of UDP that is connected, too.
const ESTABLISHED: u32 = 1;
/// How often an endpoint is drawn from which a socket does not hear by way of another service already.
const DRAWS: usize = 5;

/// The context of a program for socket addresses.
#[derive(Clone, Copy)]
pub struct Socket {
    pub raw: *mut bpf_sock_addr,
    /// It has the address in IPv6 form, which may be an IPv4-mapped one.
    pub v6: bool,
}

impl Socket {
    #[inline(always)]
    fn address(&self) -> Address {
        // SAFETY: the context is valid while the program runs; each word is read by itself, as the verifier wants.
        unsafe {
            match self.v6 {
                true => {
                    let words = &raw const (*self.raw).user_ip6;
                    Address::v6([0, 1, 2, 3].map(|at| words.cast::<u32>().add(at).read_volatile()))
                }
                false => Address::v4((*self.raw).user_ip4),
            }
        }
    }

    #[inline(always)]
    fn port(&self) -> u16 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).user_port as u16 }
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.raw).protocol as u8 }
    }

    #[inline(always)]
    fn set(&self, address: &Address, port: u16) {
        // SAFETY: the context is valid while the program runs; each word is written by itself, as the verifier wants.
        unsafe {
            match self.v6 {
                true => {
                    let words = addr_of_mut!((*self.raw).user_ip6).cast::<u32>();
                    words.write_volatile(address.words[0]);
                    words.add(1).write_volatile(address.words[1]);
                    words.add(2).write_volatile(address.words[2]);
                    words.add(3).write_volatile(address.words[3]);
                }
                false => addr_of_mut!((*self.raw).user_ip4).write_volatile(address.words[3]),
            }
            addr_of_mut!((*self.raw).user_port).write_volatile(port.into());
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: a helper that takes the context.
        unsafe { bpf_get_socket_cookie(self.raw.cast()) }
    }

    #[inline(always)]
    fn key(&self, address: Address, port: u16) -> SocketKey {
        SocketKey { cookie: self.cookie(), address, port, protocol: self.protocol().into(), reserved: 0 }
    }

    /// What it is connected to by way of a service. A socket of UDP may have been disconnected since, which no hook sees.
    #[inline(always)]
    fn connection(&self, cookie: u64) -> Option<SocketConnection> {
        // SAFETY: read at once.
        let connection = unsafe { *SOCKET_CONNECTIONS.get(&cookie)? };
        // SAFETY: the context is valid while the program runs.
        let state = unsafe { (*(*self.raw).__bindgen_anon_1.sk).state };
        if self.protocol() != TCP && state != ESTABLISHED {
            // Another thread of its process may be connecting it just now.
            if since(now(), connection.since) > JUST_NOW {
                leave(cookie);
            }
            return None;
        }
        Some(connection)
    }

    /// Whether it is one of TCP that the kernel has made for itself, and of whose end it tells nobody.
    #[inline(always)]
    fn is_of_kernel(&self) -> bool {
        let bit = KERNEL_SOCKET_BIT.load();
        if bit == 0 || self.protocol() != TCP {
            return false;
        }
        // SAFETY: the context is valid while the program runs; the helper asks which kind of socket it is, and the verifier
        // looks whether the byte is one of it.
        unsafe {
            let socket = bpf_skc_to_tcp_sock((*self.raw).__bindgen_anon_1.sk.cast()).cast::<u8>();
            !socket.is_null() && socket.add((bit / 8) as usize).read_volatile() & 1 << (bit % 8) != 0
        }
    }

    #[inline(always)]
    fn is_host(&self, config: &Config) -> bool {
        // SAFETY: a helper that takes the context.
        unsafe { bpf_get_netns_cookie(self.raw.cast()) == config.host_netns }
    }

    /// What comes in there, for sockets of this one's network namespace.
    #[inline(always)]
    fn others(&self, address: &Address, port: u16) -> (Sockets, FlowKey) {
        (Sockets::here(self.raw.cast()), FlowKey::from_anybody(self.protocol(), *address, port))
    }

    /// Whether another socket of this network namespace is bound to just that address.
    #[inline(always)]
    fn is_served_by_node(&self, address: &Address, port: u16) -> bool {
        let (sockets, key) = self.others(address, port);
        sockets.serves(&key)
    }

    /// Whether a socket of this network namespace listens there: then the endpoint may be the client's own pod. More may
    /// than are, for one that listens at all addresses.
    #[inline(always)]
    fn may_be_self(&self, slot: &Slot) -> bool {
        let (sockets, key) = self.others(&slot.address, slot.port);
        sockets.have(&key)
    }
}

/// A socket connects.
#[inline(always)]
pub fn connect(socket: Socket) {
    let (address, port) = (socket.address(), socket.port());
    let Some(slot) = translate(&socket, address, port, true) else {
        // A socket of UDP may connect again and again, one of TCP after it was refused.
        leave(socket.cookie());
        return log::left(|| socket.key(address, port));
    };
    let connection = SocketConnection {
        service: address,
        endpoint: slot.address,
        service_port: port,
        endpoint_port: slot.port,
        protocol: socket.protocol().into(),
        backend: slot.backend,
        since: now(),
    };
    join(socket.cookie(), &connection);
    count(Counter::SocketConnected);
    log::translated(|| socket.key(address, port), &slot);
    live::translated(socket.protocol(), &address, port, &slot);
    socket.set(&slot.address, slot.port);
}

/// A socket is closed.
#[inline(always)]
pub fn release(socket: *mut bpf_sock) {
    // SAFETY: a helper that takes the context.
    let cookie = unsafe { bpf_get_socket_cookie(socket.cast()) };
    leave(cookie);
    if config().is_some_and(|config| config.flags & Config::MOVING != 0) {
        // The maps that connections come from may know it.
        let _ = SOCKET_CONNECTIONS.insert(cookie, SocketConnection::CLOSED, 0);
    }
}

/// A socket sends a datagram to an address that it names.
#[inline(always)]
pub fn send(socket: Socket) {
    let (address, port) = (socket.address(), socket.port());
    let key = socket.key(address, port);
    if let Some(connection) = socket.connection(key.cookie)
        && connection.service == address
        && connection.service_port == port
    {
        // It is connected there, and hears nobody else.
        socket.set(&connection.endpoint, connection.endpoint_port);
        return;
    }
    let now = now();
    // SAFETY: read at once.
    if let Some(known) = unsafe { SOCKET_ENDPOINTS.get(&key) }
        && since(now, known.seen) <= limits::STREAM
    {
        let peer = SocketPeer { seen: now, ..*known };
        let _ = SOCKET_ENDPOINTS.insert(&key, &peer, 0);
        let shown = socket.key(peer.address, peer.port);
        match lasting(&shown, now) {
            Some(service) if is(service, &address, port) => renew(service, now),
            // Other sockets may have taken the place of the row that answers need, or this one asks another service, too.
            _ => {
                let service = SocketPeer { address, port, reserved: 0, seen: now };
                let _ = SOCKET_SERVICES.insert(&shown, &service, 0);
            }
        }
        socket.set(&peer.address, peer.port);
        return;
    }
    // What it hears from an endpoint is of one service: where this one has others, not from the same by two.
    let mut drawn = None;
    for _ in 0..DRAWS {
        drawn = translate(&socket, address, port, false);
        let Some(slot) = &drawn else { break };
        match lasting(&socket.key(slot.address, slot.port), now) {
            Some(service) if !is(service, &address, port) => {}
            _ => break,
        }
    }
    let Some(slot) = drawn else { return log::left(|| key) };
    let service = SocketPeer { address, port, reserved: 0, seen: now };
    // An LRU map takes every row.
    let _ = SOCKET_SERVICES.insert(socket.key(slot.address, slot.port), &service, 0);
    count(Counter::SocketConnected);
    log::translated(|| socket.key(address, port), &slot);
    live::translated(socket.protocol(), &address, port, &slot);
    let peer = SocketPeer { address: slot.address, port: slot.port, reserved: 0, seen: now };
    // An LRU map takes every row; not remembered, the next datagram is drawn again.
    let _ = SOCKET_ENDPOINTS.insert(&key, &peer, 0);
    serve(slot.backend);
    socket.set(&slot.address, slot.port);
}

/// A datagram is received, or a program asks whom it is connected to: it sees the service's address.
#[inline(always)]
pub fn reveal(socket: Socket) {
    let key = socket.key(socket.address(), socket.port());
    if let Some(connection) = socket.connection(key.cookie)
        && connection.endpoint == key.address
        && connection.endpoint_port == key.port
    {
        socket.set(&connection.service, connection.service_port);
        return;
    }
    let now = now();
    if let Some(service) = lasting(&key, now) {
        renew(service, now);
        // SAFETY: a row stays readable while the program runs.
        let (address, port) = unsafe { ((*service).address, (*service).port) };
        socket.set(&address, port);
    }
}

/// The service that answers of an endpoint are shown as coming from, if the last datagram either way was not too long ago.
#[inline(always)]
fn lasting(key: &SocketKey, now: u32) -> Option<*mut SocketPeer> {
    let service = SOCKET_SERVICES.get_ptr_mut(key)?;
    // SAFETY: a row stays readable while the program runs.
    let seen = unsafe { (&raw const (*service).seen).read_volatile() };
    (since(now, seen) <= limits::STREAM).then_some(service)
}

/// Whether it is the one at this address and port.
#[inline(always)]
fn is(service: *mut SocketPeer, address: &Address, port: u16) -> bool {
    // SAFETY: a row stays readable while the program runs.
    unsafe { (*service).address == *address && (*service).port == port }
}

/// A datagram has gone by.
#[inline(always)]
fn renew(service: *mut SocketPeer, now: u32) {
    // SAFETY: a row stays writable while the program runs; whoever comes at the same time writes the same second.
    unsafe { (&raw mut (*service).seen).write_volatile(now) };
}

/// The endpoint for a connection of a socket, if it is for this hook to choose. `lasts`: until the socket is closed, which has to be
/// told.
#[inline(always)]
fn translate(socket: &Socket, address: Address, port: u16, lasts: bool) -> Option<Slot> {
    let config = config()?;
    let all = config.flags & Config::ALL_AT_CONNECT != 0;
    let mut at = FrontendKey { address, port, protocol: socket.protocol(), kind: 0 };
    let mut row = Frontend::default();
    if frontend(&mut at, config, &mut row).is_err() {
        return None;
    }
    if lasts && socket.is_of_kernel() {
        return None;
    }
    let frontend = &row;
    if frontend.flags & (Frontend::REFUSE | Frontend::NESTED) != 0 || (!all && frontend.flags & Frontend::RANGED != 0) {
        return None;
    }
    if !all && frontend.affinity != 0 {
        return None;
    }
    let host = socket.is_host(config);
    // Whom a pod asks there only its packets can find out.
    if !all && may_be_of_node(frontend, &at) && (!host || socket.is_served_by_node(&address, port)) {
        return None;
    }
    if !host && !all && config.flags & Config::PODS_AT_CONNECT == 0 {
        return None;
    }
    let detector = config.flags & if address.is_v4() { Config::DETECTOR4 } else { Config::DETECTOR6 } != 0;
    // Pods' sockets come here only where every pod of this node counts as one, or where none can (no detector).
    let source = Source { is_pod: !host && detector, is_node: host, detector };
    let choice = choose(frontend, config.flags, source);
    // Rewritten to a node's address, the source of a node's own connection is what it was.
    if choice.count == 0 || (choice.masquerade && !host && !all) {
        return None;
    }
    // The source and its port are not known yet; with everything translated here, any will do.
    if matches!(frontend.draw, draw::SOURCE | draw::SOURCE_AND_PORT) && !all {
        return None;
    }
    let mut slot = Slot::default();
    if !pick(frontend, &choice, &Address::ZERO, socket.cookie() as u16, &address, &mut slot) {
        return None;
    }
    // A connection of a pod to itself has to come from elsewhere: see hairpin.
    if !host && !all && socket.may_be_self(&slot) {
        put_back(frontend, &choice);
        return None;
    }
    Some(slot)
}
