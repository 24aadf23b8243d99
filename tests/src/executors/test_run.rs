//! The programs by themselves, run by the kernel (BPF_PROG_TEST_RUN) on the first packet of a row, as it arrives or leaves;
//! no packet goes anywhere. What comes out has to be, byte for byte, the packet that should.
//!
//! Programs of TC, in the world of the executor `ebpf`. And in that of `xdp`, for rows that come in by the uplink, the program
//! of XDP: what goes on by the uplink has to be sent there and then; all else is passed up untouched, and what the program
//! of TC then makes of it has to be what the one of XDP began.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kubeferry_ebpf_common::{Flow, FlowKey};

use super::{Findings, Last, named, uplink};
use crate::bpf::pinned::{Pinned, Ran, flow_key, interface_index};
use crate::flows::{Case, Expect, Row, Step, UPLINK};
use crate::packets::{Cable, Origin, Protocol, Seen, first_packet, packet};
use crate::world::World;

// include/uapi/linux/pkt_cls.h; and TCX_NEXT.
const NEXT: i32 = -1;
const SHOT: i32 = 2;
const REDIRECT: i32 = 7;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// Source ports: none that the packets of another executor have in the same world.
const PORTS: RangeInclusive<u16> = 60_001..=64_000;
/// Runs for each endpoint of a row before a missing one is believed to be missing.
const TRIES: usize = 30;
/// Runs that must stay with the first choice where a row says `affinity` or `same`.
const LOYAL: usize = 8;

/// Which program sees a packet first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    /// Those of TC.
    Tc,
    /// That of XDP at the uplink.
    Xdp,
}

/// The programs that another executor has loaded.
#[derive(Debug)]
pub(super) struct Programs {
    hook: Hook,
    last: Last,
    port: u16,
    cookie: u32,
}

/// Programs, and where they run.
pub(super) struct Loaded<'a> {
    pub(super) pinned: Pinned,
    pub(super) world: &'a World,
}

/// What a program was given.
pub(super) struct Sent {
    pub(super) from: SocketAddr,
    pub(super) cookie: u32,
    own: bool,
    pub(super) ran: Ran,
    /// What XDP did before, where that runs.
    pub(super) at_xdp: Option<uplink::AtXdp>,
}

impl Programs {
    /// Nothing has run yet.
    pub(super) fn new(hook: Hook) -> Self {
        Self { hook, last: Last::new(), port: *PORTS.start(), cookie: 0x6b67_0000 }
    }

    /// Runs the programs pinned in a BPF file system, in whose maps the step is in force, on its rows; and says how many of
    /// them that are.
    pub(super) fn run(&mut self, case: &Case, world: &World, bpffs: &Path, step: &Step) -> Result<(Findings, usize)> {
        let pinned = match Pinned::open(bpffs) {
            Ok(pinned) => pinned,
            Err(error) => return Ok((vec![("the programs".into(), format!("{error:#}"))], 0)),
        };
        // A row that names its source port has been a connection of that executor.
        pinned.forget_flows()?;
        let loaded = Loaded { pinned, world };
        let is_ours = |row: &&Row| self.hook == Hook::Tc || case.origin(row) == Origin::Cable(UPLINK.into());
        let rows: Vec<_> = step.rows.iter().filter(is_ours).collect();
        let wrong = |row: &&Row| self.row(case, &loaded, row).err().map(|error| (named(row), format!("{error:#}")));
        let findings = world.node.run(|| rows.iter().filter_map(wrong).collect())?;
        Ok((findings, rows.len()))
    }

    fn row(&mut self, case: &Case, loaded: &Loaded<'_>, row: &Row) -> Result<()> {
        let (allowed, masquerade, loyal) = match &row.expect {
            Expect::Endpoints { endpoints, masquerade, affinity } => (endpoints.clone(), *masquerade, *affinity),
            Expect::Same { masquerade } => {
                let before = self.last.get(&row.from).context("no row before reached an endpoint from this source")?;
                (before.clone(), *masquerade, true)
            }
            verdict => {
                let sent = self.send(case, loaded, row)?;
                let judged = uplink::judge_verdict(verdict, row, &sent).and_then(|gone| match gone {
                    true => Ok(()),
                    false => judge_verdict(verdict, row, &sent),
                });
                return judged.with_context(|| describe(&sent));
            }
        };
        let mut reached = BTreeSet::new();
        let tries = match row.from_port {
            Some(_) => 1,
            None if loyal => LOYAL,
            None => TRIES * allowed.len(),
        };
        for _ in 0..tries {
            let sent = self.send(case, loaded, row)?;
            let judged = uplink::judge_endpoint(case, loaded, row, &allowed, masquerade, &sent);
            let endpoint = judged.and_then(|gone| match gone {
                Some(endpoint) => Ok(endpoint),
                None => judge_endpoint(case, &loaded.pinned, row, &allowed, masquerade, &sent)
                    .and_then(|endpoint| uplink::judge_passed(case, loaded, row, &sent, endpoint).map(|()| endpoint)),
            });
            reached.insert(endpoint.with_context(|| describe(&sent))?);
            if !loyal && reached.len() == allowed.len() {
                break;
            }
        }
        self.last.insert(row.from, reached.iter().copied().collect());
        if loyal {
            ensure!(reached.len() == 1, "{tries} connections of one client were sent to {reached:?}");
        } else {
            ensure!(reached.len() == allowed.len(), "{tries} connections were sent only to {reached:?}");
        }
        Ok(())
    }

    /// Runs a program on the first packet of a new connection.
    fn send(&mut self, case: &Case, loaded: &Loaded<'_>, row: &Row) -> Result<Sent> {
        self.port = if self.port == *PORTS.end() { *PORTS.start() } else { self.port + 1 };
        self.cookie += 1;
        let (from, mut cookie) = (SocketAddr::new(row.from, row.from_port.unwrap_or(self.port)), self.cookie);
        let origin = case.origin(row);
        let own = origin == Origin::Node;
        let interface = match origin {
            Origin::Cable(interface) => interface,
            // Where the node's routes lead.
            Origin::Node if case.node.holds(row.to.ip()) => "lo".to_owned(),
            Origin::Node => loaded.way(row.to.ip()).to_owned(),
        };
        let cable = loaded.cable(&interface);
        let (near, far) = cable.map_or(([0; 6], [0; 6]), |cable| (cable.node_mac, cable.far_mac));
        let (to, by) = if own { (far, near) } else { (near, far) };
        let mut packet = first_packet(row.protocol, from, row.to, cookie);
        if self.hook == Hook::Xdp && uplink::looks_unfinished(from, row.to, row.protocol, &packet) {
            self.cookie += 1;
            cookie = self.cookie;
            packet = first_packet(row.protocol, from, row.to, cookie);
        }
        let frame = frame(to, by, &packet);
        let device = interface_index(&loaded.world.node, &interface)?;
        let at_xdp = match self.hook {
            Hook::Tc => None,
            Hook::Xdp => Some(uplink::run(loaded, row, device, from, &frame)?),
        };
        let ran = match &at_xdp {
            Some(at_xdp) if !at_xdp.passed => at_xdp.ran.clone(),
            _ => loaded.pinned.run(&loaded.world.node, own, device, &frame)?,
        };
        Ok(Sent { from, cookie, own, ran, at_xdp })
    }
}

impl Loaded<'_> {
    /// The interface by which the node reaches an address that is not its own.
    pub(super) fn way(&self, to: IpAddr) -> &str {
        self.world.routes.get(&to).map_or(UPLINK, String::as_str)
    }

    /// The cable of an interface.
    pub(super) fn cable(&self, interface: &str) -> Option<&Cable> {
        self.world.cables.iter().find(|cable| cable.interface == interface)
    }
}

/// An IP packet in an Ethernet frame.
pub(super) fn frame(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&to[..], &from, &kind, packet].concat()
}

impl Sent {
    /// Whether the packet came out with these addresses, otherwise unchanged and with right checksums.
    fn is(&self, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> bool {
        self.packet() == first_packet(protocol, from, to, self.cookie)
    }

    pub(super) fn packet(&self) -> &[u8] {
        self.ran.frame.get(ETHERNET..).unwrap_or_default()
    }
}

/// The endpoint that the packet was sent to, one of `allowed`, with or without masquerading as it should be.
fn judge_endpoint(
    case: &Case,
    pinned: &Pinned,
    row: &Row,
    allowed: &[SocketAddr],
    masquerade: bool,
    sent: &Sent,
) -> Result<SocketAddr> {
    let key = |from, to, hook| flow_key(row.protocol.number(), from, to, hook);
    let first = pinned.flow(&key(sent.from, row.to, FlowKey::IN))?;
    let port = first.and_then(|first| first.alias).unwrap_or(sent.from.port());
    let client = SocketAddr::new(sent.from.ip(), port);
    let looped = SocketAddr::new(row.to.ip(), port);
    let goes = |from: SocketAddr| allowed.iter().copied().find(|endpoint| sent.is(row.protocol, from, *endpoint));
    let on_node = |endpoint: SocketAddr| case.node.holds(endpoint.ip());
    let (endpoint, verdicts): (_, &[i32]) = match (goes(client), sent.own) {
        (Some(endpoint), false) => (endpoint, &[NEXT]),
        // By the loopback interface to the node itself nothing is routed anew.
        (Some(endpoint), true) => (endpoint, if on_node(endpoint) { &[NEXT, REDIRECT] } else { &[REDIRECT] }),
        // The node's connection to itself comes from the service: see the backend's README.
        (None, true) => match goes(looped).filter(|endpoint| on_node(*endpoint)) {
            Some(endpoint) => (endpoint, &[REDIRECT]),
            None => bail!("not on its way to any endpoint of the row"),
        },
        (None, false) => bail!("not on its way to any endpoint of the row"),
    };
    ensure!(verdicts.contains(&sent.ran.verdict), "the verdict for a packet to {endpoint} has to be {verdicts:?}");
    if !on_node(endpoint) {
        let out = pinned.flow(&key(client, endpoint, FlowKey::OUT))?;
        let expected = Expect::masquerades(masquerade, row.from, endpoint);
        // Where it leaves, it gets a source; the entry says so until then.
        let marked = out.is_some_and(|out| out.flags & Flow::PENDING != 0);
        ensure!(marked == expected, "{endpoint}: masquerading is {marked}, by the entry {out:?}");
        ensure!((client != sent.from) == (sent.own && expected), "from {client}, with nobody beside it");
    }
    Ok(endpoint)
}

fn judge_verdict(verdict: &Expect, row: &Row, sent: &Sent) -> Result<()> {
    let answered = || match packet(sent.packet()) {
        Some(Seen::Reset { from, cookie }) => row.protocol == Protocol::Tcp && (from, cookie) == (row.to, sent.cookie),
        Some(Seen::Unreachable { about, port, cookie }) => {
            row.protocol != Protocol::Tcp && port && (about, cookie) == (row.to, sent.cookie)
        }
        _ => false,
    };
    let unchanged = || sent.ran.verdict == NEXT && sent.is(row.protocol, sent.from, row.to);
    // The node's own stack refuses what comes by the loopback interface, at a port where nobody is.
    let nobody =
        || sent.own && sent.ran.verdict == NEXT && sent.is(row.protocol, sent.from, SocketAddr::new(row.to.ip(), 0));
    let right = match verdict {
        Expect::Reject => (sent.ran.verdict == REDIRECT && answered()) || nobody(),
        Expect::Drop => sent.ran.verdict == SHOT,
        _ => unchanged(),
    };
    ensure!(right, "not what becomes of such a packet");
    Ok(())
}

fn describe(sent: &Sent) -> String {
    let seen = packet(sent.packet());
    let at_xdp = sent.at_xdp.as_ref().map(|at_xdp| format!("XDP: {at_xdp:?}; ")).unwrap_or_default();
    format!("{at_xdp}verdict {}, {seen:?} ({} bytes)", sent.ran.verdict, sent.ran.frame.len())
}
