//! Connections that begin at an address and port of the node where a frontend is, too: a CNI that masquerades draws any port, and
//! it may be a node port. Programs see their answers before connection tracking does, which knows whose they are. So what leaves from
//! there is noted, and its answers go on as they are, as do packets of whoever had the port before the Service.
//!
//! A SYN is not noted, and that it is answered or refused opens nothing of ours (see `answer` in `lookup.rs`): what nobody answers costs
//! no entry. Until an answer came, an entry is kept for a minute, and whoever is at the other end may open a connection instead.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::flow::{JUST_NOW, since};
use kubeferry_ebpf_common::packet::{FIN, RST};
use kubeferry_ebpf_common::{Device, Flow, FlowKey, UDP};

use crate::connection::find;
use crate::counting::end_flow;
use crate::known::Sockets;
use crate::lookup::{address, config, frontend};
use crate::maps::{DEVICES, FLOWS};
use crate::skb::Skb;
use crate::work::Work;

/// Whether the packet in `work`, which has no entry and meets a frontend, is for a socket of the node's: of somebody who had the port before
/// the Service, or is bound there.
#[inline(always)]
pub fn is_of_node(skb: &Skb, work: &Work) -> bool {
    work.packet.is_within_tcp() && Sockets::here(skb.raw.cast()).has(&work.packet.key)
}

/// The packet in `work` leaves, and belongs to no connection of ours.
#[inline(always)]
pub fn leaves(skb: &Skb, work: &mut Work, now: u32) {
    let Some(config) = config() else { return };
    let key = &work.packet.key;
    if key.protocol == UDP && config.masquerades_by(key.source_port) {
        key.write_reverse(FlowKey::IN, &mut work.other_key);
        give_up(work, now);
    }
    let packet = &work.packet;
    if config.may_be_own(packet.key.source_port)
        && packet.has_ports()
        && !packet.begins_tcp()
        && packet.flags & RST == 0
    {
        packet.key.write_reverse(FlowKey::IN, &mut work.other_key);
        if may_pass(skb.device(), &work.other_key) && is_frontend(work) && !is_server(skb, work) {
            note(work, now);
        }
    }
}

/// A packet of such a connection leaves: the entry for its answers may have been thrown out of a full table.
#[inline(always)]
pub fn go_on(work: &mut Work, now: u32) {
    work.packet.key.write_reverse(FlowKey::IN, &mut work.other_key);
    if find(&work.other_key).is_none() {
        note(work, now);
    }
}

/// Connection tracking masquerades by our ports, too, and knows nothing of ours. A question over UDP that has its answer, and that we
/// masquerade by the port that the packet leaves from, to the same endpoint, is forgotten: the next answer, whose key is in
/// `work.other_key`, is another's. One that a packet went by just now stays: where packets leave twice, it may be this one.
#[inline(never)]
fn give_up(work: &mut Work, now: u32) {
    let answers = &mut work.other_key;
    let Some(flow) = find(&*answers) else { return };
    if flow.flags & (Flow::FORWARD | Flow::SEEN | Flow::LASTS) != Flow::SEEN {
        return;
    }
    let backward = &mut work.key;
    backward.source = answers.source;
    backward.source_port = answers.source_port;
    backward.destination = flow.address;
    backward.destination_port = flow.port;
    backward.protocol = UDP;
    backward.hook = FlowKey::OUT;
    backward.reserved = 0;
    let Some(service) = find(backward) else { return };
    let endpoint = (answers.source, answers.source_port);
    backward.write_reverse(FlowKey::OUT, answers);
    let Some(out) = find(&*answers) else { return };
    if since(now, out.seen) <= JUST_NOW || out.flags & Flow::LASTS != 0 {
        return;
    }
    // There is room for two keys: that of the answers is written anew at the end.
    let _ = FLOWS.remove(&*answers);
    backward.write_first(service, answers);
    let _ = FLOWS.remove(&*backward);
    if let Some(first) = find(&*answers)
        && first.flags & Flow::FORWARD != 0
        && (first.address, first.port) == endpoint
    {
        end_flow(first);
        let _ = FLOWS.remove(&*answers);
    }
    work.packet.key.write_reverse(FlowKey::IN, answers);
    let _ = FLOWS.remove(&*answers);
}

/// Whether answers with this key may be of such a connection.
#[inline(never)]
fn may_pass(device: u32, answer: &FlowKey) -> bool {
    // Whoever is at the other end talks to the Service from there: one of the two cannot be told from the other.
    if find(answer).is_some_and(|there| !there.passes(answer)) {
        return false;
    }
    !has_left(device) && address(&answer.destination) & address_is::HELD != 0
}

/// Whether what leaves by this device has left by another before: there it was looked at as it was, here it may have the address that we have
/// given it.
#[inline(always)]
fn has_left(device: u32) -> bool {
    // SAFETY: read at once.
    unsafe { DEVICES.get(device) }.is_some_and(|device| device.flags & Device::PORT != 0)
}

/// Whether a frontend is where the packet comes from.
#[inline(never)]
fn is_frontend(work: &mut Work) -> bool {
    let Some(config) = config() else { return false };
    work.frontend.address = work.other_key.destination;
    work.frontend.port = work.other_key.destination_port;
    work.frontend.protocol = work.other_key.protocol;
    frontend(&mut work.frontend, config, &mut work.row).is_ok()
}

/// Whether a server of the node answers over UDP: its client has to be free to go to another endpoint.
#[inline(always)]
fn is_server(skb: &Skb, work: &Work) -> bool {
    skb.is_own() && Sockets::here(skb.raw.cast()).waits(&work.other_key)
}

/// Gives the connection entries: one for the answers, whose key is in `work.other_key`, and one for what leaves.
#[inline(never)]
fn note(work: &mut Work, now: u32) {
    let flow = &mut work.flow;
    flow.address = work.other_key.destination;
    flow.port = work.other_key.destination_port;
    flow.flags = Flow::FORWARD;
    flow.seen = now;
    flow.device = 0;
    flow.backend = 0;
    flow.sender = 0;
    flow.reserved = 0;
    // What is there already is of an earlier connection with these ends.
    let how =
        if find(&work.other_key).is_some_and(|there| there.passes(&work.other_key)) { BPF_ANY } else { BPF_NOEXIST };
    if FLOWS.insert(&work.other_key, &*flow, how.into()).is_err() {
        return;
    }
    flow.flags = Flow::KEEPS | Flow::SEEN;
    if work.packet.flags & FIN != 0 {
        flow.flags |= Flow::FIN;
    }
    work.other_key.write_reverse(FlowKey::OUT, &mut work.key);
    let _ = FLOWS.insert(&work.key, &*flow, BPF_ANY.into());
}
