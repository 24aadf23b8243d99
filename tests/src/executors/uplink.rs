//! The program of XDP by itself: see [`super::test_run`].

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail, ensure};
use kubeferry_ebpf_common::packet::sum::pseudo_header;
use kubeferry_ebpf_common::{Address, FlowKey};

use super::test_run::{Loaded, Sent, frame};
use crate::bpf::pinned::{Ran, flow_key};
use crate::flows::{Case, Expect, Row, UPLINK};
use crate::packets::{Protocol, Seen, first_packet, forwarded, packet};

// include/uapi/linux/bpf.h, enum xdp_action.
const DROP: i32 = 1;
const PASS: i32 = 2;
const TX: i32 = 3;
/// Ports that connections are masqueraded with, where nothing else is said.
const MASQUERADE: RangeInclusive<u16> = 16_384..=29_999;

/// What the program made of a frame.
#[derive(Debug)]
pub(super) struct AtXdp {
    pub(super) ran: Ran,
    /// It is the stack's, as it is.
    pub(super) passed: bool,
    /// The endpoint that it has drawn, by its entry for the next packets.
    drawn: Option<SocketAddr>,
}

/// Runs it on the first packet of a row, which has the source `from`.
pub(super) fn run(loaded: &Loaded<'_>, row: &Row, device: u32, from: SocketAddr, frame: &[u8]) -> Result<AtXdp> {
    let ran = loaded.pinned.run_at_xdp(&loaded.world.node, device, frame)?;
    let passed = ran.verdict == PASS;
    ensure!(!passed || ran.frame == frame, "XDP passes up another frame than came in");
    let entry = loaded.pinned.flow(&flow_key(row.protocol.number(), from, row.to, FlowKey::IN))?;
    Ok(AtXdp { ran, passed, drawn: entry.map(|entry| entry.end) })
}

/// Whether a packet without options looks as if its checksum were still to be made: one in 65,536 does, and is the stack's.
pub(super) fn looks_unfinished(from: SocketAddr, to: SocketAddr, protocol: Protocol, packet: &[u8]) -> bool {
    let transport = &packet[if from.is_ipv4() { 20 } else { 40 }..];
    let at = if protocol == Protocol::Tcp { 16 } else { 6 };
    let words = [from, to].map(|end| Address::from(end.ip()).words);
    let made = pseudo_header(&words[0], &words[1], protocol.number(), transport.len() as u16);
    transport.get(at..at + 2) == Some(&made.to_ne_bytes()[..])
}

/// Whether the program knows the row's protocol: SCTP is the stack's.
fn knows(row: &Row) -> bool {
    row.protocol != Protocol::Sctp
}

/// The endpoint that a frame was sent on to, one of `allowed`, at once; `None`: the stack has it.
pub(super) fn judge_endpoint(
    case: &Case,
    loaded: &Loaded<'_>,
    row: &Row,
    allowed: &[SocketAddr],
    masquerade: bool,
    sent: &Sent,
) -> Result<Option<SocketAddr>> {
    let Some(at_xdp) = sent.at_xdp.as_ref().filter(|at_xdp| !at_xdp.passed) else { return Ok(None) };
    ensure!(at_xdp.ran.verdict == TX, "it is neither sent out of the uplink nor passed up");
    let Some(Seen::First { from, to, .. }) = packet(sent.packet()) else { bail!("no first packet") };
    ensure!(knows(row) && allowed.contains(&to), "not on its way to any endpoint of the row");
    ensure!(goes_on(case, loaded, to), "{to} is not by the uplink");
    ensure!(at_xdp.drawn == Some(to), "the next packets go elsewhere");
    match Expect::masquerades(masquerade, row.from, to) {
        true => ensure!(
            case.node.holds(from.ip()) && MASQUERADE.contains(&from.port()),
            "{to} sees {from}, which is nothing to masquerade with"
        ),
        false => ensure!(from == sent.from, "{to} sees {from} for {}", sent.from),
    }
    let cable = loaded.cable(UPLINK).context("no uplink")?;
    let right = frame(cable.far_mac, cable.node_mac, &forwarded(&first_packet(row.protocol, from, to, sent.cookie)));
    ensure!(sent.ran.frame == right, "sent on, but not as a router would have, or with a wrong checksum");
    Ok(Some(to))
}

/// Whether an endpoint is where XDP may send.
fn goes_on(case: &Case, loaded: &Loaded<'_>, endpoint: SocketAddr) -> bool {
    !case.node.holds(endpoint.ip()) && loaded.way(endpoint.ip()) == UPLINK
}

/// Of a frame that the program passed up, and that TC then translated: it had to be passed, and goes where XDP has it go.
pub(super) fn judge_passed(
    case: &Case,
    loaded: &Loaded<'_>,
    row: &Row,
    sent: &Sent,
    endpoint: SocketAddr,
) -> Result<()> {
    let Some(at_xdp) = &sent.at_xdp else { return Ok(()) };
    ensure!(!knows(row) || !goes_on(case, loaded, endpoint), "XDP leaves to the stack what goes on by the uplink");
    ensure!(at_xdp.drawn == Some(endpoint).filter(|_| knows(row)), "XDP has begun another connection");
    Ok(())
}

/// Of a row without an endpoint: whether that is the end of the frame, as it should be, or TC has a say.
pub(super) fn judge_verdict(verdict: &Expect, row: &Row, sent: &Sent) -> Result<bool> {
    let Some(at_xdp) = &sent.at_xdp else { return Ok(false) };
    let drops = knows(row) && *verdict == Expect::Drop;
    ensure!(at_xdp.ran.verdict == if drops { DROP } else { PASS }, "not what XDP is to do with such a frame");
    ensure!(at_xdp.drawn.is_none(), "XDP has begun a connection");
    Ok(drops)
}
