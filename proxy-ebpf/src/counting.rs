//! Connections of each endpoint: opened, and not ended yet; and what they carry.

use aya_ebpf::Global;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use kubeferry_ebpf_common::packet::RST;
use kubeferry_ebpf_common::{Backend, Flow, SocketConnection};

use crate::atomic::{add, fetch_and};
use crate::connection::find;
use crate::maps::{BACKENDS, SOCKET_CONNECTIONS, TRAFFIC};
use crate::work::Work;

// Constants of the programs as they are loaded: see `shards.rs` in `proxy`. What they rule out, the verifier
// takes out.

/// Rows of a shard of `traffic`, as many as `backends` has or some more; 0: packets are not counted.
#[unsafe(no_mangle)]
static TRAFFIC_ROWS: Global<u32> = Global::new(262_144);

/// The bits of a CPU's number that say which shard is its own: as many as there are shards, a power of two, less one.
#[unsafe(no_mangle)]
static TRAFFIC_MASK: Global<u32> = Global::new(0);

/// 0: connections are not counted. The proxy never asks for that: a benchmark does, to tell what counting costs.
#[unsafe(no_mangle)]
static COUNT_CONNECTIONS: Global<u32> = Global::new(1);

/// An endpoint's row; none for number 0, and where nothing is counted.
#[inline(always)]
fn backend(row: u32) -> Option<*mut Backend> {
    if row == 0 || COUNT_CONNECTIONS.load() == 0 { None } else { BACKENDS.get_ptr_mut(row) }
}

/// An endpoint has one more connection that may end.
#[inline(always)]
pub fn begin(row: u32) {
    if let Some(backend) = backend(row) {
        // SAFETY: see the type.
        unsafe {
            add(&raw mut (*backend).opened, 1);
            add(&raw mut (*backend).active, 1);
        }
    }
}

/// An endpoint has got something whose end nobody sees.
#[inline(always)]
pub fn serve(row: u32) {
    if let Some(backend) = backend(row) {
        // SAFETY: see the type.
        unsafe { add(&raw mut (*backend).opened, 1) };
    }
}

#[inline(always)]
fn end(row: u32) {
    if let Some(backend) = backend(row) {
        // SAFETY: see the type.
        unsafe { add(&raw mut (*backend).active, u64::MAX) };
    }
}

/// A connection has ended: its forward-in entry is `flow`. It is taken from the count once.
#[inline(always)]
pub fn end_flow(flow: &mut Flow) {
    // SAFETY: the row's number is the upper half of the word; everybody changes that atomically.
    let before = unsafe { fetch_and((&raw mut flow.device).cast(), !(u64::from(Flow::COUNTED) << 32)) };
    let before = (before >> 32) as u32;
    if before & Flow::COUNTED != 0 {
        end(before & !Flow::COUNTED);
    }
}

/// A FIN or RST went by, the first of `flow`, an entry of the packet with the key in `work.other_key`: the connection has ended with a
/// RST, or with the FIN of the other side. Only forward-in and backward-out entries know.
#[inline(never)]
pub fn close(work: &mut Work, flow: &mut Flow) {
    let reset = work.packet.flags & RST != 0;
    if flow.flags & Flow::FORWARD != 0 {
        work.other_key.write_backward(flow, &mut work.key);
        if reset || find(&work.key).is_some_and(|answers| answers.flags & Flow::FIN != 0) {
            end_flow(flow);
        }
    } else {
        work.other_key.write_first(flow, &mut work.key);
        if let Some(first) = find(&work.key)
            && first.flags & Flow::FORWARD != 0
            && (reset || first.flags & Flow::FIN != 0)
        {
            end_flow(first);
        }
    }
}

/// Counts a packet of a connection, where that is asked for.
#[inline(always)]
pub fn count_packet(work: &Work, flow: &Flow) {
    let rows = TRAFFIC_ROWS.load();
    let row = flow.backend_row();
    if row == 0 || row >= rows {
        return;
    }
    // SAFETY: no arguments.
    let shard = unsafe { bpf_get_smp_processor_id() } & TRAFFIC_MASK.load();
    if let Some(traffic) = TRAFFIC.get_ptr_mut(shard.wrapping_mul(rows).wrapping_add(row)) {
        // SAFETY: see the type.
        unsafe {
            add(&raw mut (*traffic).packets, work.packet.segments.into());
            add(&raw mut (*traffic).bytes, work.packet.bytes.into());
        }
    }
}

/// A socket is connected to an endpoint without a packet being translated; before, it may have been to another.
#[inline(always)]
pub fn join(cookie: u64, connection: &SocketConnection) {
    leave(cookie);
    if SOCKET_CONNECTIONS.insert(cookie, connection, 0).is_ok() {
        begin(connection.backend);
    }
}

/// A socket is not connected to an endpoint any more.
#[inline(always)]
pub fn leave(cookie: u64) {
    // SAFETY: read at once.
    let Some(connection) = (unsafe { SOCKET_CONNECTIONS.get(&cookie) }) else { return };
    let row = connection.backend;
    if SOCKET_CONNECTIONS.remove(&cookie).is_ok() {
        end(row);
    }
}
