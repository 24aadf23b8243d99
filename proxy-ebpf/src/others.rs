//! Connections that begin at an address and port of the node where a frontend is, too: a CNI that masquerades draws any port, and
//! it may be a node port. Programs see their answers before connection tracking does, which knows whose they are. So what leaves from
//! there is noted, and its answers go on as they are, as do packets of whoever had the port before the Service.
//!
//! A SYN is not noted, and that it is answered opens nothing of ours (see `answer` in `lookup.rs`): what nobody answers costs no entry.

use aya_ebpf::bindings::BPF_ANY;
use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::packet::{FIN, RST};
use kubeferry_ebpf_common::{Flow, FlowKey};

use crate::connection::find;
use crate::lookup::{address, config, frontend};
use crate::maps::FLOWS;
use crate::work::Work;

/// The packet in `work` leaves, and belongs to no connection of ours.
#[inline(always)]
pub fn leaves(work: &mut Work, now: u32) {
    let packet = &work.packet;
    let Some(config) = config() else { return };
    if config.may_be_own(packet.key.source_port)
        && packet.has_ports()
        && !packet.begins_tcp()
        && packet.tcp_flags & RST == 0
    {
        note(work, now);
    }
}

/// Gives its connection entries if there is a frontend where it comes from: one for the answers, and one for what leaves.
#[inline(never)]
fn note(work: &mut Work, now: u32) {
    let Some(config) = config() else { return };
    let key = &work.packet.key;
    if address(&key.source) & address_is::HELD == 0 {
        return;
    }
    work.frontend.address = key.source;
    work.frontend.port = key.source_port;
    work.frontend.protocol = key.protocol;
    if frontend(&mut work.frontend, config, &mut work.row).is_err() {
        return;
    }
    key.write_reverse(FlowKey::IN, &mut work.other_key);
    let flow = &mut work.flow;
    flow.address = key.source;
    flow.port = key.source_port;
    flow.flags = Flow::FORWARD | Flow::SEEN;
    flow.seen = now;
    flow.device = 0;
    flow.backend = 0;
    flow.sender = 0;
    flow.reserved = 0;
    if find(&work.other_key).is_some_and(|there| !there.passes(&work.other_key)) {
        // Whoever is at the other end talks to the Service from there: one of the two cannot be told from the other.
        return;
    }
    // What is there already is of an earlier connection with these ends.
    if FLOWS.insert(&work.other_key, &*flow, BPF_ANY.into()).is_err() {
        return;
    }
    flow.flags = Flow::KEEPS | Flow::SEEN;
    if work.packet.tcp_flags & FIN != 0 {
        flow.flags |= Flow::FIN;
    }
    work.other_key.write_reverse(FlowKey::OUT, &mut work.key);
    let _ = FLOWS.insert(&work.key, &*flow, BPF_ANY.into());
}
