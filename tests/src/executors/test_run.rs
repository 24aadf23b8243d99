//! The programs by themselves: each program of TC, in the world of the executor `ebpf`, run by the kernel
//! (BPF_PROG_TEST_RUN) on the first packet of a row, as it arrives or leaves; no packet goes anywhere. What comes
//! out has to be, byte for byte, the packet that should.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use kubeferry_ebpf_common::{Flow, FlowKey};

use super::{Findings, Last, named};
use crate::bpf::pinned::{Pinned, Ran, interface_index};
use crate::flows::{Case, Expect, Row, Step, UPLINK};
use crate::packets::{Origin, Protocol, Seen, first_packet, packet};
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

/// The programs that another executor has loaded.
#[derive(Debug)]
pub(super) struct Programs {
    last: Last,
    port: u16,
    cookie: u32,
}

/// Programs, and where they run.
struct Loaded<'a> {
    pinned: Pinned,
    world: &'a World,
}

/// What a program was given.
struct Sent {
    from: SocketAddr,
    cookie: u32,
    own: bool,
    ran: Ran,
}

impl Programs {
    /// Nothing has run yet.
    pub(super) fn new() -> Self {
        Self { last: Last::new(), port: *PORTS.start(), cookie: 0x6b67_0000 }
    }

    /// Runs the programs pinned in a BPF file system, in whose maps the step is in force, on its rows.
    pub(super) fn run(&mut self, case: &Case, world: &World, bpffs: &Path, step: &Step) -> Result<Findings> {
        let pinned = match Pinned::open(bpffs) {
            Ok(pinned) => pinned,
            Err(error) => return Ok(vec![("the programs".into(), format!("{error:#}"))]),
        };
        // A row that names its source port has been a connection of that executor.
        pinned.forget_flows()?;
        let loaded = Loaded { pinned, world };
        let mut findings = Findings::new();
        for row in &step.rows {
            findings.extend(self.row(case, &loaded, row).err().map(|error| (named(row), format!("{error:#}"))));
        }
        Ok(findings)
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
                return judge_verdict(verdict, row, &sent).with_context(|| describe(&sent.ran));
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
            let endpoint = judge_endpoint(case, &loaded.pinned, row, &allowed, masquerade, &sent);
            reached.insert(endpoint.with_context(|| describe(&sent.ran))?);
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
        let (from, cookie) = (SocketAddr::new(row.from, row.from_port.unwrap_or(self.port)), self.cookie);
        let origin = case.origin(row);
        let own = origin == Origin::Node;
        let interface = match origin {
            Origin::Cable(interface) => interface,
            // Where the node's routes lead.
            Origin::Node if case.node.holds(row.to.ip()) => "lo".to_owned(),
            Origin::Node => {
                let routes = case.routes()?;
                let routed = routes.into_iter().find(|(ip, _)| *ip == row.to.ip());
                routed.map_or_else(|| UPLINK.to_owned(), |(_, interface)| interface)
            }
        };
        let cable = loaded.world.cables.iter().find(|cable| cable.interface == interface);
        let (near, far) = cable.map_or(([0; 6], [0; 6]), |cable| (cable.node_mac, cable.far_mac));
        let (to, by) = if own { (far, near) } else { (near, far) };
        let kind: [u8; 2] = if row.to.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let frame = [&to[..], &by, &kind, &first_packet(row.protocol, from, row.to, cookie)].concat();
        let device = interface_index(&loaded.world.node, &interface)?;
        let ran = loaded.pinned.run(&loaded.world.node, own, device, &frame)?;
        Ok(Sent { from, cookie, own, ran })
    }
}

impl Sent {
    /// Whether the packet came out with these addresses, otherwise unchanged and with right checksums.
    fn is(&self, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> bool {
        self.packet() == first_packet(protocol, from, to, self.cookie)
    }

    fn packet(&self) -> &[u8] {
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
    let looped = SocketAddr::new(row.to.ip(), sent.from.port());
    let goes = |from: SocketAddr| allowed.iter().copied().find(|endpoint| sent.is(row.protocol, from, *endpoint));
    let on_node = |endpoint: SocketAddr| case.node.holds(endpoint.ip());
    let (endpoint, verdicts): (_, &[i32]) = match (goes(sent.from), sent.own) {
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
        let out = pinned.flow(&FlowKey {
            source: sent.from.ip().into(),
            destination: endpoint.ip().into(),
            source_port: sent.from.port().to_be(),
            destination_port: endpoint.port().to_be(),
            protocol: row.protocol.number(),
            hook: FlowKey::OUT,
            reserved: 0,
        })?;
        let expected = Expect::masquerades(masquerade, row.from, endpoint);
        // Where it leaves, it gets a source; the entry says so until then.
        let marked = out.is_some_and(|out| out.flags & Flow::PENDING != 0);
        ensure!(marked == expected, "{endpoint}: masquerading is {marked}, by the entry {out:?}");
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

fn describe(ran: &Ran) -> String {
    let seen = packet(ran.frame.get(ETHERNET..).unwrap_or_default());
    format!("verdict {}, {seen:?} ({} bytes)", ran.verdict, ran.frame.len())
}
