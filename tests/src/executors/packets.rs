//! Packets: what becomes of real first packets, as often as it takes to have seen every endpoint that a row allows.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use anyhow::{Context, Result, bail, ensure};
use rustix::io::Errno;

use super::{Findings, Last, named};
use crate::flows::{Case, Expect, Row, Step, UPLINK};
use crate::packets::{Arrival, Call, Fate, Origin, Prober, Protocol, Seen, Sockets, packet};

/// New connections for each endpoint of a row before a missing one is believed to be missing.
pub(super) const TRIES: usize = 30;
/// New connections that must stay with the first choice where a row says `affinity` or `same`.
const LOYAL: usize = 8;

/// Source ports of packets.
const PORTS: RangeInclusive<u16> = 20_000..=60_000;
/// Source ports of sockets: none that masqueraded connections take, nor a node port.
const SOCKET_PORTS: RangeInclusive<u16> = 40_000..=60_000;

/// Sends rows through the node; every connection has a source port of its own.
#[derive(Debug)]
pub(super) struct Sender {
    prober: Prober,
    /// Where the node's connections and those of its pods are sockets'.
    sockets: Option<Sockets>,
    ports: RangeInclusive<u16>,
    port: u16,
    /// The node may see its own connections to itself come from the service's address: see the backend's README.
    node_loops: bool,
}

impl Sender {
    pub(super) fn new(prober: Prober) -> Self {
        Self { prober, sockets: None, ports: PORTS, port: *PORTS.start(), node_loops: false }
    }

    /// For a datapath where the node's connections to itself may seem to come from the service.
    pub(super) fn where_the_node_loops(prober: Prober) -> Self {
        Self { node_loops: true, ..Self::new(prober) }
    }

    /// The same, and the node and its pods have real sockets.
    pub(super) fn with_sockets(prober: Prober, sockets: Sockets) -> Self {
        let sender = Self::where_the_node_loops(prober);
        Self { sockets: Some(sockets), ports: SOCKET_PORTS, port: *SOCKET_PORTS.start(), ..sender }
    }

    /// Sends every row of a step and says which came out otherwise.
    pub(super) fn run(&mut self, case: &Case, step: &Step, last: &mut Last) -> Findings {
        let wrong = |row: &Row| self.row(case, row, last).err().map(|error| (named(row), format!("{error:#}")));
        step.rows.iter().filter_map(wrong).collect()
    }

    fn row(&mut self, case: &Case, row: &Row, last: &mut Last) -> Result<()> {
        let (allowed, masquerade, loyal) = match &row.expect {
            Expect::Endpoints { endpoints, masquerade, affinity } => (endpoints.clone(), *masquerade, *affinity),
            Expect::Same { masquerade } => {
                let before = last.get(&row.from).context("no row before reached an endpoint from this source")?;
                (before.clone(), *masquerade, true)
            }
            verdict => {
                let (sent, fate) = self.send(case, row)?;
                return judge_verdict(verdict, row, sent, &fate);
            }
        };
        let (mut reached, mut doubtful) = (BTreeSet::new(), BTreeSet::new());
        // A pod's socket is seldom left to a draw of packets, and then seldom gets itself: see the backend's README.
        let seldom = self.sockets.is_some() && has_socket(case, row) && !itself(row).is_empty();
        let tries = match row.from_port {
            Some(_) => 1,
            None if loyal => LOYAL,
            None if seldom => TRIES * allowed.len() * allowed.len(),
            None => TRIES * allowed.len(),
        };
        for _ in 0..tries {
            let (sent, fate) = self.send(case, row)?;
            let Fate::Arrived(arrival) = fate else { bail!("{}", describe(&fate)) };
            ensure!(allowed.contains(&arrival.to), "it reached {} ({})", arrival.to, place(&arrival.at));
            let on_node = case.node.holds(arrival.to.ip());
            ensure!(on_node == (arrival.at == Origin::Node), "{} came out {}", arrival.to, place(&arrival.at));
            let looped = case.origin(row) == Origin::Node && on_node && arrival.from.ip() == row.to.ip();
            if self.node_loops && (looped || (on_node && arrival.from == sent)) {
                reached.insert(arrival.to);
                continue;
            }
            // Bound, a socket that was translated keeps its address, which is one of the node's as it is: see the backend's
            // README.
            let keeps = self.sockets.is_some() && arrival.from == sent && !sent.ip().is_loopback();
            let masquerade = masquerade && !(keeps && case.origin(row) == Origin::Node);
            match judge_source(case, row, masquerade, sent, &arrival) {
                Ok(()) => drop(reached.insert(arrival.to)),
                // A masqueraded connection takes a port by chance, and one in sixty thousand takes that of a probe, which
                // then gets another, or its own. Twice is no chance.
                Err(fault) => ensure!(doubtful.insert(arrival.to), "{fault:#}"),
            }
            if !loyal && reached.len() == allowed.len() {
                break;
            }
        }
        last.insert(row.from, reached.iter().copied().collect());
        if loyal {
            ensure!(reached.len() == 1, "{tries} connections of one client reached {reached:?}");
        } else {
            ensure!(reached.len() == allowed.len(), "{tries} connections reached only {reached:?}");
        }
        Ok(())
    }

    /// Sends the first packet of a new connection.
    pub(super) fn send(&mut self, case: &Case, row: &Row) -> Result<(SocketAddr, Fate)> {
        self.by_a_free_port(row, |sender| sender.send_once(case, row))
    }

    /// The same by a packet, also where a socket could be.
    pub(super) fn send_packet(&mut self, case: &Case, row: &Row) -> Result<(SocketAddr, Fate)> {
        let from = self.next(row);
        Ok((from, self.prober.probe(&case.origin(row), row.protocol, from, row.to)?))
    }

    /// Does it again by another port where a socket of somebody else has the one that is the next.
    fn by_a_free_port<T>(&mut self, row: &Row, mut attempt: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let is_taken = |error: &anyhow::Error| {
            let says_so = error.chain().any(|cause| {
                cause.downcast_ref::<Errno>() == Some(&Errno::ADDRINUSE)
                    || cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
            });
            row.from_port.is_none() && says_so
        };
        for _ in 0..8 {
            match attempt(self) {
                Err(error) if is_taken(&error) => {}
                done => return done,
            }
        }
        attempt(self)
    }

    fn send_once(&mut self, case: &Case, row: &Row) -> Result<(SocketAddr, Fate)> {
        let from = self.next(row);
        let origin = case.origin(row);
        let Some(sockets) = self.sockets.as_ref().filter(|_| has_socket(case, row)) else {
            return Ok((from, self.prober.probe(&origin, row.protocol, from, row.to)?));
        };
        let fate = self.prober.probe_with(row.to, |prober, cookie| match origin {
            Origin::Node => sockets.of_node(row.protocol, call(from), from, row.to, cookie),
            Origin::Cable(_) => {
                let bytes = sockets.of_pod(row.protocol, call(from), from, row.to, cookie, &itself(row))?;
                prober.send(&origin, &bytes, row.to.ip())
            }
        })?;
        Ok((from, fate))
    }

    /// Has a socket of the node or of one of its pods begin; source and destination of its first packet as it leaves the
    /// node, or the pod, whose packet goes no further.
    pub(super) fn ask(&mut self, case: &Case, row: &Row) -> Result<(SocketAddr, SocketAddr, SocketAddr)> {
        self.by_a_free_port(row, |sender| sender.ask_once(case, row))
    }

    fn ask_once(&mut self, case: &Case, row: &Row) -> Result<(SocketAddr, SocketAddr, SocketAddr)> {
        let sent = self.next(row);
        let sockets = self.sockets.as_ref().context("no sockets")?;
        let mut left = None;
        let fate = self.prober.probe_with(row.to, |_, cookie| match case.origin(row) {
            Origin::Node => sockets.of_node(row.protocol, call(sent), sent, row.to, cookie),
            Origin::Cable(_) => {
                let bytes = sockets.of_pod(row.protocol, call(sent), sent, row.to, cookie, &itself(row))?;
                left = packet(&bytes);
                Ok(())
            }
        })?;
        match (left, fate) {
            (Some(Seen::First { from, to, .. }), Fate::Silence) => Ok((sent, from, to)),
            (None, Fate::Arrived(Arrival { from, to, .. })) => Ok((sent, from, to)),
            (_, fate) => bail!("{}", describe(&fate)),
        }
    }

    /// The source of a new connection.
    fn next(&mut self, row: &Row) -> SocketAddr {
        self.port = if self.port == *self.ports.end() { *self.ports.start() } else { self.port + 1 };
        SocketAddr::new(row.from, row.from_port.unwrap_or(self.port))
    }
}

/// Whether a row's connections are of a socket where there are any: of the node itself, or of a pod that is a pod to every
/// hook. (One whose address is outside the Node's ranges is not: see the backend's README.)
pub(super) fn has_socket(case: &Case, row: &Row) -> bool {
    let mut ranges = case.node.pod_cidrs.iter().filter(|range| range.addr().is_ipv4() == row.from.is_ipv4()).peekable();
    let mut is_pod = || ranges.peek().is_none() || ranges.any(|range| range.contains(&row.from));
    match case.origin(row) {
        _ if row.protocol == Protocol::Sctp => false,
        Origin::Node => true,
        Origin::Cable(interface) => interface != UPLINK && is_pod(),
    }
}

/// Programs do both.
fn call(from: SocketAddr) -> Call {
    if from.port().is_multiple_of(2) { Call::Connect } else { Call::Send }
}

/// Where the source is an endpoint of the row itself.
fn itself(row: &Row) -> Vec<SocketAddr> {
    match &row.expect {
        Expect::Endpoints { endpoints, .. } => endpoints.iter().copied().filter(|at| at.ip() == row.from).collect(),
        _ => Vec::new(),
    }
}

/// Compares the source that an endpoint sees with the one that was sent.
fn judge_source(case: &Case, row: &Row, masquerade: bool, sent: SocketAddr, arrival: &Arrival) -> Result<()> {
    if arrival.at == Origin::Node && case.origin(row) != Origin::Node {
        // A packet from elsewhere for an endpoint on the node itself meets no postrouting hook: there is nothing to judge.
        return Ok(());
    }
    let expected = Expect::masquerades(masquerade, row.from, arrival.to);
    match (expected, arrival.from == sent) {
        (true, true) => bail!("{} sees the sender's own {sent}: not masqueraded", arrival.to),
        (false, false) => bail!("{} sees {} for {sent}: masqueraded", arrival.to, arrival.from),
        (true, false) => ensure!(case.node.holds(arrival.from.ip()), "masqueraded as {}, not the node", arrival.from),
        (false, true) => {}
    }
    Ok(())
}

pub(super) fn judge_verdict(verdict: &Expect, row: &Row, sent: SocketAddr, fate: &Fate) -> Result<()> {
    let right = match (verdict, fate) {
        (Expect::Reject, Fate::Reset) => row.protocol == Protocol::Tcp,
        (Expect::Reject, Fate::PortUnreachable) => row.protocol != Protocol::Tcp,
        (Expect::Drop, Fate::Silence) => true,
        (Expect::None, Fate::Arrived(arrival)) => arrival.to == row.to && arrival.from == sent,
        _ => false,
    };
    ensure!(right, "{}", describe(fate));
    Ok(())
}

pub(super) fn describe(fate: &Fate) -> String {
    match fate {
        Fate::Arrived(Arrival { at, from, to }) => format!("it reached {to} from {from} ({})", place(at)),
        Fate::Reset => "it was answered with a TCP reset".into(),
        Fate::PortUnreachable => "it was answered with ICMP port unreachable".into(),
        Fate::OtherUnreachable => "it was answered with an ICMP error that is not port unreachable".into(),
        Fate::Silence => "silence".into(),
    }
}

fn place(at: &Origin) -> String {
    match at {
        Origin::Node => "on the node itself".into(),
        Origin::Cable(interface) => format!("out of {interface}"),
    }
}
