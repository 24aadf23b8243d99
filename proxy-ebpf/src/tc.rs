//! The two programs at TC: what comes in to the node gets another destination, what leaves it another source.

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT};
use aya_ebpf::helpers::generated::bpf_redirect;
use kubeferry_ebpf_common::live::LiveEvent;
use kubeferry_ebpf_common::packet::read::read;
use kubeferry_ebpf_common::packet::rewrite::{End, rewrite, rewrite_alias};
use kubeferry_ebpf_common::packet::{RST, Unreadable};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Device, Flow, FlowKey, Slot, TCP, UDP};

use crate::connection::{current, find, leaving, now, touch, vouch};
use crate::counting::count_packet;
use crate::fragments::{leave_ports, recall_ports};
use crate::icmp;
use crate::known::Sockets;
use crate::link;
use crate::live::{self, Place};
use crate::log;
use crate::lookup::{Answer, Origin, answer};
use crate::maps::DEVICES;
use crate::opening::{is_mistakable, masquerade, open};
use crate::others;
use crate::refuse::{address_to, refuse, swap_ethernet};
use crate::route;
use crate::skb::Skb;
use crate::stats::count;
use crate::work::Work;

/// LOOPBACK_IFINDEX: the loopback interface of every network namespace.
pub const LOOPBACK: u32 = 1;

/// What becomes of a packet.
#[derive(Clone, Copy)]
pub enum Action {
    /// It goes on as it is.
    Next,
    /// It is gone.
    Drop(Counter),
    /// A helper has been told where it goes; this is its verdict.
    Redirect(i32),
}

impl From<Unreadable> for Action {
    #[inline(always)]
    fn from(_: Unreadable) -> Self {
        Self::Drop(Counter::Rewrite)
    }
}

impl Action {
    /// TC_ACT_UNSPEC, TCX_NEXT: other programs of the device run, too.
    const NEXT: i32 = -1;

    /// The verdict for the kernel.
    #[inline(always)]
    pub fn verdict(self, place: Place) -> i32 {
        match self {
            Self::Next => Self::NEXT,
            Self::Drop(counter) => {
                count(counter);
                log::dropped(counter);
                live::stopped(LiveEvent::DROPPED, counter, place);
                TC_ACT_SHOT as i32
            }
            Self::Redirect(verdict) => verdict,
        }
    }
}

/// Where a packet comes in.
#[inline(always)]
pub fn at_ingress(skb: &Skb) -> Place {
    Place { hook: LiveEvent::AT_INGRESS, device: skb.device() }
}

/// Where a packet leaves.
#[inline(always)]
pub fn at_egress(skb: &Skb) -> Place {
    Place { hook: LiveEvent::AT_EGRESS, device: skb.device() }
}

/// A packet comes in.
#[inline(always)]
pub fn ingress(skb: Skb, l3: u32) -> Action {
    let Some(work) = Work::get() else { return Action::Next };
    work.came_by = skb.device();
    if !matches!(read(&skb, l3, FlowKey::IN, &mut work.packet, &mut work.headers), Ok(true)) {
        return Action::Next;
    }
    leave_ports(&work.packet, &mut work.fragment);
    if work.packet.later && !recall_ports(&mut work.packet, &mut work.fragment) {
        return Action::Next;
    }
    if work.packet.is_icmp_error(&skb) {
        return error_comes(&skb, work);
    }
    let now = now();
    let Some(flow) = current(work, now) else {
        if work.packet.later {
            // What became of the first is seen in its entry; there is none.
            return Action::Next;
        }
        let sockets = Sockets::behind(skb.raw.cast(), skb.device());
        let mut answered = answer(skb.raw.cast(), work, Origin::Device(skb.device()));
        if !matches!(answered, Answer::NotOurs) && others::is_of_node(&skb, work) {
            answered = Answer::NotOurs;
        }
        let (masquerade, is_served) = match answered {
            Answer::Endpoint { masquerade } => (masquerade, true),
            Answer::NotOurs if is_mistakable(work, FlowKey::OUT, now, sockets) => (false, false),
            other => {
                work.other_key = work.packet.key;
                leave_word(work);
                return without(&skb, work, other, false, at_ingress(&skb));
            }
        };
        return match connect(work, masquerade, 0, now, sockets, is_served, at_ingress(&skb)) {
            Ok(()) => finish(rewrite_forward(&skb, work, &work.flow)),
            Err(counter) => Action::Drop(counter),
        };
    };
    touch(work, flow, now);
    if let Err(error) = rewrite_forward(&skb, work, flow) {
        return error.into();
    }
    if flow.flags & (Flow::OWN | Flow::FORWARD) != Flow::OWN {
        work.packet.key.write_forward(flow, &mut work.other_key);
        leave_word(work);
        return Action::Next;
    }
    work.packet.key.destination = flow.address;
    work.packet.key.destination_port = flow.port;
    match restore_source(&skb, work, now) {
        Ok(()) => arrive(&skb, work, flow.device),
        Err(action) => action,
    }
}

/// Has the entry know by which the packet leaves with the key in `work.other_key`: see [`vouch`].
#[inline(always)]
fn leave_word(work: &mut Work) {
    if work.packet.ends() || work.packet.begins_tcp() {
        work.other_key.hook = FlowKey::OUT;
        vouch(work);
    }
}

/// What an entry for packets that come in does to one.
#[inline(always)]
fn rewrite_forward(skb: &Skb, work: &Work, flow: &Flow) -> Result<(), Unreadable> {
    rewrite(skb, &work.packet, End::Destination, &flow.address, flow.port)?;
    rewrite_alias(skb, &work.packet, End::Source, flow)
}

/// An ICMP error comes in.
#[inline(always)]
fn error_comes(skb: &Skb, work: &mut Work) -> Action {
    match icmp::translate(skb, work, FlowKey::IN) {
        // A connection of the node itself: see `restore_source`.
        Ok(Some(flow)) if flow.flags & (Flow::OWN | Flow::FORWARD) == Flow::OWN => {
            work.packet.key.destination = flow.address;
            if icmp::translate(skb, work, FlowKey::OUT).is_err() {
                return Action::Drop(Counter::Rewrite);
            }
            arrive(skb, work, flow.device)
        }
        Ok(_) => Action::Next,
        // Too short to be about anything of ours.
        Err(_) => Action::Next,
    }
}

/// An answer to a connection of the node itself: no other hook sees it, so it gets its source back here, and then has to
/// come from where the connection left, as the check of the reverse path wants.
#[inline(always)]
fn restore_source(skb: &Skb, work: &mut Work, now: u32) -> Result<(), Action> {
    work.packet.key.hook = FlowKey::OUT;
    let Some(flow) = find(&work.packet.key) else { return Err(Action::Drop(Counter::FlowTable)) };
    touch(work, flow, now);
    rewrite(skb, &work.packet, End::Source, &flow.address, flow.port)?;
    Ok(rewrite_alias(skb, &work.packet, End::Destination, flow)?)
}

/// What came in here comes in by the device that its connection left by. By the loopback interface that is a connection to
/// one of the node's own addresses, and refused as such unless `net.ipv4.conf.lo.accept_local` is 1.
#[inline(always)]
fn arrive(skb: &Skb, work: &mut Work, device: u32) -> Action {
    if device == skb.device() {
        return Action::Next;
    }
    // SAFETY: read at once.
    let addressed = match unsafe { DEVICES.get(device) } {
        Some(to) if work.packet.l3 != 0 => address_to(skb, work, to),
        Some(to) if to.flags & Device::NO_ETHERNET == 0 => link::put(skb, &mut work.refusal, to.link, work.packet.v4),
        Some(_) => Ok(()),
        None => Err(Unreadable),
    };
    match addressed {
        Ok(()) => come_in(device),
        Err(error) => error.into(),
    }
}

/// The packet comes in by a device.
#[inline(always)]
fn come_in(device: u32) -> Action {
    // SAFETY: no pointers.
    Action::Redirect(unsafe { bpf_redirect(device, BPF_F_INGRESS.into()) } as i32)
}

/// Opens a connection to `work.slot`: to an endpoint that was chosen, or, if not `is_served`, to where the packet goes anyway.
#[inline(always)]
fn connect(
    work: &mut Work,
    masquerade: bool,
    device: u32,
    now: u32,
    sockets: Sockets,
    is_served: bool,
    place: Place,
) -> Result<(), Counter> {
    if !work.packet.has_ports() || work.packet.flags & RST != 0 {
        return Err(Counter::FlowTable);
    }
    if open(work, masquerade, device, now, sockets)? && is_served {
        count(Counter::Connected);
        log::connected(&work.packet.key, &work.slot, masquerade);
        live::chosen(work, masquerade, place);
    }
    // The first packet is counted like those after it.
    count_packet(work, &work.flow);
    Ok(())
}

/// What becomes of a packet that gets no endpoint.
#[inline(always)]
fn without(skb: &Skb, work: &mut Work, answer: Answer, own: bool, place: Place) -> Action {
    match answer {
        Answer::Drop(counter) => Action::Drop(counter),
        Answer::Refuse(counter) => {
            count(counter);
            log::refused(work, counter);
            live::stopped(LiveEvent::REFUSED, counter, place);
            refuse(skb, work, own)
        }
        Answer::NotOurs | Answer::Endpoint { .. } => {
            live::not_ours(work, place);
            Action::Next
        }
    }
}

#[inline(always)]
fn finish(result: Result<(), Unreadable>) -> Action {
    match result {
        Ok(()) => Action::Next,
        Err(error) => error.into(),
    }
}

/// A packet leaves.
#[inline(always)]
pub fn egress(skb: Skb, l3: u32) -> Action {
    let Some(work) = Work::get() else { return Action::Next };
    work.came_by = skb.came_by();
    if !matches!(read(&skb, l3, FlowKey::OUT, &mut work.packet, &mut work.headers), Ok(true)) {
        return Action::Next;
    }
    leave_ports(&work.packet, &mut work.fragment);
    if work.packet.later && !recall_ports(&mut work.packet, &mut work.fragment) {
        return Action::Next;
    }
    if work.packet.is_icmp_error(&skb) {
        // One that cannot be read is about nothing of ours.
        let _ = icmp::translate(&skb, work, FlowKey::OUT);
        return Action::Next;
    }
    let now = now();
    let Some(flow) = leaving(work) else {
        if skb.is_own() {
            return send_own(&skb, work, now);
        }
        others::leaves(&skb, work, now);
        live::leaves(&work.packet, None, at_egress(&skb));
        return Action::Next;
    };
    touch(work, flow, now);
    if flow.flags & Flow::PENDING != 0
        && let Err(counter) = masquerade(work, flow, skb.device(), now, Sockets::here(skb.raw.cast()))
    {
        return Action::Drop(counter);
    }
    live::leaves(&work.packet, Some(flow), at_egress(&skb));
    if flow.flags & Flow::KEEPS != 0 {
        if flow.flags & (Flow::OWN | Flow::FORWARD) == 0 {
            others::go_on(work, now);
        }
        return Action::Next;
    }
    let source = rewrite(&skb, &work.packet, End::Source, &flow.address, flow.port);
    finish(source.and_then(|()| rewrite_alias(&skb, &work.packet, End::Destination, flow)))
}

/// A packet of the node itself, on its way to what may be a service's address: it has been routed as if that were a place,
/// so it is sent on to where its endpoint is.
#[inline(always)]
fn send_own(skb: &Skb, work: &mut Work, now: u32) -> Action {
    work.packet.key.hook = FlowKey::IN;
    let inside = skb.device() == LOOPBACK;
    let (flags, port) = match current(work, now) {
        Some(flow) if flow.flags & Flow::FORWARD == 0 => {
            touch(work, flow, now);
            return answer_loops(skb, work, flow, now);
        }
        Some(flow) => {
            touch(work, flow, now);
            work.slot.address = flow.address;
            work.slot.port = flow.port;
            (flow.flags, flow.client_port(work.packet.key.source_port))
        }
        None if work.packet.later => return Action::Next,
        None => {
            let sockets = Sockets::here(skb.raw.cast());
            let at = if inside { FlowKey::OUT } else { FlowKey::IN };
            let (masquerade, stays, is_served) = match answer(skb.raw.cast(), work, Origin::Node) {
                // The node's own stack says no, at a port where nobody is; its answer comes by here.
                Answer::Refuse(counter) if inside && matches!(work.packet.key.protocol, TCP | UDP) => {
                    count(counter);
                    log::refused(work, counter);
                    live::stopped(LiveEvent::REFUSED, counter, at_egress(skb));
                    work.slot.address = work.packet.key.destination;
                    work.slot.port = 0;
                    work.slot.flags = 0;
                    work.slot.backend = 0;
                    (false, true, false)
                }
                // Both ends are on this node and the way between them is the loopback interface: nothing is routed anew.
                Answer::Endpoint { masquerade } => (masquerade, inside && work.slot.flags & Slot::HOST != 0, true),
                Answer::NotOurs if is_mistakable(work, at, now, sockets) => (false, inside, false),
                other => {
                    if matches!(other, Answer::NotOurs) {
                        others::leaves(skb, work, now);
                    }
                    return without(skb, work, other, true, at_egress(skb));
                }
            };
            let device = if stays { 0 } else { skb.device() };
            match connect(work, masquerade && !stays, device, now, sockets, is_served, at_egress(skb)) {
                Ok(()) => (work.flow.flags, work.flow.client_port(work.packet.key.source_port)),
                Err(counter) => return Action::Drop(counter),
            }
        }
    };
    let loops = flags & Flow::LOOPS != 0;
    if loops || flags & Flow::ALIAS != 0 {
        let key = &work.packet.key;
        let source = if loops { &key.destination } else { &key.source };
        if let Err(error) = rewrite(skb, &work.packet, End::Source, source, port) {
            return error.into();
        }
    }
    if let Err(error) = rewrite(skb, &work.packet, End::Destination, &work.slot.address, work.slot.port) {
        return error.into();
    }
    if flags & Flow::OWN == 0 {
        return Action::Next;
    }
    if loops {
        return match swap_ethernet(skb, work) {
            Ok(()) => come_in(skb.device()),
            Err(error) => error.into(),
        };
    }
    route::send(skb, work)
}

/// An answer of an endpoint on this node to a connection of the node itself: see [`Flow::LOOPS`].
#[inline(always)]
fn answer_loops(skb: &Skb, work: &mut Work, flow: &Flow, now: u32) -> Action {
    if let Err(error) = rewrite(skb, &work.packet, End::Destination, &flow.address, flow.port) {
        return error.into();
    }
    work.packet.key.destination = flow.address;
    work.packet.key.destination_port = flow.port;
    match restore_source(skb, work, now).and_then(|()| Ok(swap_ethernet(skb, work)?)) {
        Ok(()) => come_in(flow.device),
        Err(action) => action,
    }
}
