//! One question to the node under test: what becomes of this first packet?
//!
//! The node is a namespace; every other machine is the far end of one of its cables, where frames are sent and captured
//! without any stack of their own behind it, so nothing but the node ever answers.
//!
//! Silence is proved, not waited for: after the probe two canaries go through the node one after the other, and since the
//! packets of one processor are handled in order, what had to come out has come out when the second canary is back.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::kernel::{Delivered, FrameSocket, LocalSocket, PacketSender, Pinned, wait};
use super::{Protocol, Seen, first_packet, packet, segment_of};
use crate::netns::Netns;

/// The canary's addresses, of the shared address space (RFC 6598): the node must forward it out of the first cable.
const CANARY: (&str, &str) = ("100.127.255.1:9", "100.127.255.2:9");
/// How long a canary may take before the world counts as broken.
const CANARY_DEADLINE: Duration = Duration::from_secs(20);

/// A cable of the node: an interface of the same name on both sides.
#[derive(Clone, Debug)]
pub struct Cable {
    /// The interface's name on both ends.
    pub interface: String,
    /// The Ethernet address of the node's end.
    pub node_mac: [u8; 6],
    /// The Ethernet address of the far end.
    pub far_mac: [u8; 6],
}

/// Where a probe starts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A process of the node itself.
    Node,
    /// The far end of the node's interface of this name.
    Cable(String),
}

/// A first packet that has come out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arrival {
    /// Where: at a process of the node, or at the far end of a cable.
    pub at: Origin,
    /// The source that it has there.
    pub from: SocketAddr,
    /// The destination that it has there.
    pub to: SocketAddr,
}

/// What became of a first packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It came out somewhere.
    Arrived(Arrival),
    /// It was answered with a TCP reset from the address that it was for.
    Reset,
    /// It was answered with ICMP "port unreachable".
    PortUnreachable,
    /// It was answered with another ICMP "unreachable".
    OtherUnreachable,
    /// Nothing came out and nothing came back.
    Silence,
}

/// Sends probes into a node and watches all its exits.
#[derive(Debug)]
pub struct Prober {
    far_ends: Vec<(Cable, FrameSocket)>,
    local: Vec<LocalSocket>,
    sender: PacketSender,
    cookie: u32,
}

impl Prober {
    /// Opens the sockets: frames on `cables` in the namespace `far`, packets in `node`. The node's default route must go
    /// out of the first cable.
    ///
    /// # Errors
    /// An interface is missing, or the right to open raw sockets (CAP_NET_RAW) is.
    pub fn new(node: &Netns, far: &Netns, cables: &[Cable]) -> Result<Self> {
        let open = |cable: &Cable| FrameSocket::open(&cable.interface).map(|socket| (cable.clone(), socket));
        let far_ends = far.run(|| cables.iter().map(open).collect::<Result<_, _>>())?;
        let opened = node.run(|| {
            let protocols =
                [(false, 1), (false, 6), (false, 17), (false, 132), (true, 58), (true, 6), (true, 17), (true, 132)];
            let local = protocols.into_iter().map(|(v6, protocol)| LocalSocket::open(v6, protocol));
            Ok::<_, std::io::Error>((local.collect::<Result<_, _>>()?, PacketSender::open()?))
        })?;
        let (local, sender) = opened.context("cannot open raw sockets: it needs CAP_NET_RAW")?;
        let far_ends = far_ends.context("cannot capture on the far ends: it needs CAP_NET_RAW")?;
        Ok(Self { far_ends, local, sender, cookie: 0x6b66_0000 })
    }

    /// Sends the first packet of a connection and says what became of it.
    ///
    /// # Errors
    /// The world is broken: a socket fails, a canary is lost, a packet comes out twice, or an answer has a wrong sender.
    pub fn probe(&mut self, origin: &Origin, protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Result<Fate> {
        self.probe_with(to, |prober, cookie| {
            let bytes = first_packet(protocol, from, to, cookie);
            prober.send(origin, &bytes, to.ip()).with_context(|| format!("cannot send {protocol} {from} to {to}"))
        })
    }

    /// As [`Prober::probe`], for a first packet to `to` that somebody else sends: it has to bear the cookie.
    ///
    /// # Errors
    /// As [`Prober::probe`], and those of `send`.
    pub fn probe_with(&mut self, to: SocketAddr, send: impl FnOnce(&Self, u32) -> Result<()>) -> Result<Fate> {
        let _pinned = Pinned::here()?;
        // Whatever else the node has got meanwhile takes the room that what is to be seen needs.
        drop(self.drain()?);
        self.cookie += 1;
        let cookie = self.cookie;
        send(self, cookie)?;
        let mut seen = Vec::new();
        for _ in 0..2 {
            self.canary(cookie, &mut seen)?;
        }
        fate(&seen, to)
    }

    /// Sends an IP packet to an address of `to`'s family.
    ///
    /// # Errors
    /// There is no such interface, or no such right.
    pub fn send(&self, origin: &Origin, packet: &[u8], to: IpAddr) -> Result<()> {
        let name = match origin {
            // A packet that the output hook drops or rejects is reported to its sender as EPERM: that is a fate, no fault.
            Origin::Node => match self.sender.send(packet, to) {
                Err(error) if error.kind() != std::io::ErrorKind::PermissionDenied => return Err(error.into()),
                _ => return Ok(()),
            },
            Origin::Cable(name) => name,
        };
        let end = self.far_ends.iter().find(|(cable, _)| cable.interface == *name);
        let (cable, socket) = end.with_context(|| format!("the node has no interface {name}"))?;
        let kind: [u8; 2] = if to.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let frame = [&cable.node_mac[..], &cable.far_mac, &kind, packet].concat();
        Ok(socket.send(&frame)?)
    }

    /// Sends a canary through the node and collects what comes out until it is back; what bears `cookie` goes to `seen`.
    fn canary(&mut self, cookie: u32, seen: &mut Vec<(Origin, Seen)>) -> Result<()> {
        self.cookie += 1;
        let canary = self.cookie;
        let (from, to): (SocketAddr, SocketAddr) = (CANARY.0.parse()?, CANARY.1.parse()?);
        let first = Origin::Cable(self.far_ends[0].0.interface.clone());
        self.send(&first, &first_packet(Protocol::Udp, from, to, canary), to.ip()).context("cannot send a canary")?;
        let end = Instant::now() + CANARY_DEADLINE;
        let sockets: Vec<_> = self.far_ends.iter().map(|(_, socket)| socket.as_raw_fd()).collect();
        loop {
            let news = self.drain()?;
            let back = news.iter().any(|(_, seen)| seen.cookie() == canary);
            seen.extend(news.into_iter().filter(|(_, seen)| seen.cookie() == cookie));
            if back {
                // What is delivered on the node beside the canary is there by now, too.
                seen.extend(self.drain()?.into_iter().filter(|(_, seen)| seen.cookie() == cookie));
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "waited for a canary to come through the node for {CANARY_DEADLINE:?}: forwarding is broken"
            );
            wait(&sockets, left)?;
        }
    }

    /// Everything that has been captured since the last time and is ours.
    fn drain(&self) -> Result<Vec<(Origin, Seen)>> {
        let mut news = Vec::new();
        for (cable, socket) in &self.far_ends {
            while let Some(bytes) = socket.receive()? {
                news.extend(packet(&bytes).map(|seen| (Origin::Cable(cable.interface.clone()), seen)));
            }
        }
        for socket in &self.local {
            while let Some(delivered) = socket.receive()? {
                let seen = match delivered {
                    Delivered::V4(bytes) => packet(&bytes),
                    Delivered::V6(protocol, from, to, bytes) => segment_of(protocol, from, to, &bytes),
                };
                news.extend(seen.map(|seen| (Origin::Node, seen)));
            }
        }
        Ok(news)
    }
}

/// What the captured packets of one probe for `asked` mean. An arrival counts before the answers that it caused: a closed
/// port of the node answers, too.
fn fate(seen: &[(Origin, Seen)], asked: SocketAddr) -> Result<Fate> {
    // At port 0 nobody can listen: where a datapath sends what the node is to refuse by itself.
    let arrived = |at: &Origin, to: SocketAddr| *at != Origin::Node || to.port() != 0;
    let mut arrivals = seen.iter().filter_map(|(at, seen)| match *seen {
        Seen::First { from, to, .. } if arrived(at, to) => Some(Arrival { at: at.clone(), from, to }),
        _ => None,
    });
    if let Some(arrival) = arrivals.next() {
        if let Some(again) = arrivals.next() {
            bail!("the packet came out twice: {arrival:?} and {again:?}");
        }
        return Ok(Fate::Arrived(arrival));
    }
    match seen.iter().find(|(_, seen)| !matches!(seen, Seen::First { .. })) {
        None => Ok(Fate::Silence),
        Some((_, Seen::Reset { from, .. })) if *from == asked => Ok(Fate::Reset),
        Some((_, Seen::Unreachable { about, port, .. })) if *about == asked => {
            Ok(if *port { Fate::PortUnreachable } else { Fate::OtherUnreachable })
        }
        Some((_, answer)) => bail!("an answer that does not fit a packet to {asked}: {answer:?}"),
    }
}
