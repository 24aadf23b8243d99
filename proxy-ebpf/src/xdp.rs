//! The program at XDP of an uplink: connections from outside to endpoints on other nodes, and their answers, go out again
//! before the kernel makes a socket buffer of them. Both rewrites of TC in one step, with the same entries of `flows`, so
//! that either hook carries on what the other began. Everything else is passed up untouched.

use core::mem::size_of;

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as Lookup, xdp_action};
use aya_ebpf::helpers::generated::{bpf_fib_lookup, bpf_redirect};
use kubeferry_ebpf_common::live::LiveEvent;
use kubeferry_ebpf_common::packet::read::read;
use kubeferry_ebpf_common::packet::rewrite::{End, hop, rewrite, rewrite_alias};
use kubeferry_ebpf_common::packet::sum::pseudo_header;
use kubeferry_ebpf_common::packet::{Buffer, Packet, Unreadable};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Device, Flow, FlowKey, TCP, UDP};

use crate::connection::{current, find, now, touch};
use crate::counting::count_packet;
use crate::frame::Frame;
use crate::known::Sockets;
use crate::live::{self, Place};
use crate::log;
use crate::lookup::{Answer, Origin, answer};
use crate::maps::DEVICES;
use crate::opening::{masquerade, open};
use crate::route::fill;
use crate::stats::count;
use crate::work::Work;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;

/// What becomes of a frame.
#[derive(Clone, Copy)]
pub enum Action {
    /// The stack gets it.
    Pass,
    Drop(Counter),
    /// Out of the interface that it came in by.
    Back,
    /// Out of another.
    Redirect(i64),
}

impl Action {
    /// The verdict for the kernel.
    #[inline(always)]
    pub fn verdict(self, place: Place) -> u32 {
        match self {
            Self::Pass => xdp_action::XDP_PASS,
            Self::Drop(counter) => {
                count(counter);
                log::dropped(counter);
                live::stopped(LiveEvent::DROPPED, counter, place);
                xdp_action::XDP_DROP
            }
            Self::Back => xdp_action::XDP_TX,
            Self::Redirect(verdict) => verdict as u32,
        }
    }
}

/// Where a frame comes in.
#[inline(always)]
pub fn at_uplink(frame: &Frame) -> Place {
    Place { hook: LiveEvent::AT_XDP, device: frame.device() }
}

/// A frame comes in.
#[inline(always)]
pub fn uplink(frame: Frame) -> Action {
    let Some(work) = Work::get() else { return Action::Pass };
    work.came_by = frame.device();
    if !matches!(read(&frame, ETHERNET, FlowKey::IN, &mut work.packet, &mut work.headers), Ok(true)) {
        return Action::Pass;
    }
    let packet = &work.packet;
    if packet.later || packet.first || !matches!(packet.key.protocol, TCP | UDP) {
        return Action::Pass;
    }
    // Options and extension headers are the stack's, and a packet at the end of its life, which it answers.
    let (length, hops) = if packet.v4 { (20, work.headers.v4.ttl) } else { (40, work.headers.v6.hop_limit) };
    if packet.l4 != ETHERNET + length || hops <= 1 {
        return Action::Pass;
    }
    if !is_for_us(&frame) {
        return Action::Pass;
    }
    let now = now();
    match current(work, now) {
        Some(flow) if flow.flags & (Flow::OWN | Flow::ALIAS) != 0 => Action::Pass,
        Some(flow) => {
            work.slot.address = flow.address;
            work.slot.port = flow.port;
            work.slot.flags = 0;
            match forward(&frame, work, now, Some(flow), false) {
                Ok(action) => action,
                Err(Unreadable) => Action::Drop(Counter::Rewrite),
            }
        }
        // It may be for somebody who has begun elsewhere: TC asks who.
        None if work.packet.is_within_tcp() => Action::Pass,
        None => match answer(frame.raw.cast(), work, Origin::Device(frame.device())) {
            Answer::Drop(counter) => Action::Drop(counter),
            Answer::Endpoint { masquerade } => match forward(&frame, work, now, None, masquerade) {
                Ok(action) => action,
                Err(Unreadable) => Action::Drop(Counter::Rewrite),
            },
            _ => Action::Pass,
        },
    }
}

/// Whether the frame's transport checksum is still to be made (CHECKSUM_PARTIAL): in generic mode, and of a veth. Here it cannot be told
/// apart from one that is made and the same by chance: one in 65,536.
#[inline(always)]
fn is_unfinished(frame: &Frame, packet: &Packet) -> bool {
    let at = packet.l4 + if packet.key.protocol == TCP { 16 } else { 6 };
    let mut sum = 0_u16;
    let key = &packet.key;
    frame.load(at, &mut sum).is_ok()
        && sum == pseudo_header(&key.source.words, &key.destination.words, key.protocol, packet.length)
}

/// Sends a frame on to `work.slot`, if that is out of an interface where XDP may send. What is not sent on is passed up
/// untouched, its connection with entries: TC carries it to the endpoint that was drawn here. Drawn anew there, endpoints
/// here would be drawn more seldom than others.
#[inline(always)]
fn forward(
    frame: &Frame,
    work: &mut Work,
    now: u32,
    known: Option<&'static mut Flow>,
    masquerades: bool,
) -> Result<Action, Unreadable> {
    let found = route(frame, work);
    let device = work.lookup.ifindex;
    let stays = found != BPF_FIB_LKUP_RET_SUCCESS || !sends(device) || is_unfinished(frame, &work.packet);
    match known {
        Some(_) if stays => return Ok(Action::Pass),
        Some(flow) => touch(work, flow, now),
        None => {
            let sockets = Sockets::behind(frame.raw.cast(), frame.device());
            match open(work, masquerades, 0, now, sockets) {
                Ok(true) => {
                    count(Counter::Connected);
                    log::connected(&work.packet.key, &work.slot, masquerades);
                    live::chosen(work, masquerades, at_uplink(frame));
                }
                // The way was looked up for another endpoint.
                Ok(false) => return Ok(Action::Pass),
                Err(counter) => return Ok(Action::Drop(counter)),
            }
            if stays || work.flow.flags & Flow::ALIAS != 0 {
                return Ok(Action::Pass);
            }
            count_packet(work, &work.flow);
        }
    }
    rewrite(frame, &work.packet, End::Destination, &work.slot.address, work.slot.port)?;
    work.packet.key.destination = work.slot.address;
    work.packet.key.destination_port = work.slot.port;
    work.packet.key.hook = FlowKey::OUT;
    let leaving = Place { device, ..at_uplink(frame) };
    if let Some(out) = find(&work.packet.key) {
        touch(work, out, now);
        if out.flags & Flow::PENDING != 0
            && let Err(counter) = masquerade(work, out, device, now, Sockets::here(frame.raw.cast()))
        {
            return Ok(Action::Drop(counter));
        }
        live::leaves(&work.packet, Some(out), leaving);
        if out.flags & Flow::KEEPS == 0 {
            rewrite(frame, &work.packet, End::Source, &out.address, out.port)?;
            rewrite_alias(frame, &work.packet, End::Destination, out)?;
        }
    } else {
        live::leaves(&work.packet, None, leaving);
    }
    hop(frame, work.packet.v4, work.packet.l3)?;
    frame.store(0, &work.lookup.dmac)?;
    frame.store(6, &work.lookup.smac)?;
    if device == frame.device() {
        return Ok(Action::Back);
    }
    // SAFETY: no pointers.
    Ok(Action::Redirect(unsafe { bpf_redirect(device, 0) }))
}

/// Whether a frame is addressed to the interface that it came in by. One for another, or for everybody, is the stack's to drop or to keep: each
/// node that a switch floods with it would send a packet of its own. (Ports of bonds have no row.)
#[inline(always)]
fn is_for_us(frame: &Frame) -> bool {
    let mut to = [0_u16; 3];
    // SAFETY: read at once.
    frame.load(0, &mut to).is_ok() && unsafe { DEVICES.get(frame.device()) }.is_none_or(|device| device.link == to)
}

/// Whether XDP may send out of an interface.
#[inline(always)]
fn sends(device: u32) -> bool {
    // SAFETY: read at once.
    unsafe { DEVICES.get(device) }.is_some_and(|device| device.flags & Device::XDP != 0)
}

/// Asks the routes for the way to `work.slot`; the answer is in `work.lookup`. Too large a packet is no success.
#[inline(always)]
fn route(frame: &Frame, work: &mut Work) -> u32 {
    fill(work, frame.device());
    let length = match work.packet.v4 {
        true => u16::from_be(work.headers.v4.total_length),
        false => u16::from_be(work.headers.v6.payload_length).wrapping_add(40),
    };
    work.lookup.__bindgen_anon_1.tot_len = length;
    let at = &raw mut work.lookup;
    // SAFETY: the struct is as long as told.
    unsafe { bpf_fib_lookup(frame.raw.cast(), at, size_of::<Lookup>() as i32, 0) as u32 }
}
