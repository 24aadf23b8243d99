//! The live trace: `kubeferry trace --live` follows packets of every row through a node that is served and goes on from step to
//! step. Of each it has to tell where it came in, what was decided and why, and as what it went out: what the row says, what is seen
//! of the packet on the other side, and what the model says.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};
use kubeferry::status::Status;
use serde_json::Value;

use super::packets::{Sender, has_socket};
use super::told::{self, Sent};
use super::{Disagreement, Follower, Last, Source, auto, ebpf, named};
use crate::client::{DEADLINE, Running, until};
use crate::flows::{Case, Expect, Row, Step};
use crate::netns::Netns;
use crate::packets::Protocol;
use crate::world::World;

/// What the node is served by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServedBy {
    /// Rules.
    Nftables,
    /// The programs of TC alone.
    Tc,
    /// All hooks of eBPF: what comes by the uplink meets XDP first, and sockets of the node and its pods are translated. Where a row
    /// could be a socket's, a packet and a socket are followed.
    AllHooks,
}

/// What came of following a case.
#[derive(Debug, Default)]
pub struct Followed {
    /// Rows of which something was told as it should be.
    pub rows: usize,
    /// Packets that were told of as they should be.
    pub packets: usize,
    /// Sockets that were told of where they were translated.
    pub sockets: usize,
    /// What was told otherwise, or not at all.
    pub disagreements: Vec<Disagreement>,
}

impl Followed {
    /// Takes in what came of another case.
    pub fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.packets += other.packets;
        self.sockets += other.sockets;
        self.disagreements.extend(other.disagreements);
    }
}

/// Follows every row of every step.
///
/// # Errors
/// The harness itself fails, or the proxy or the trace does not start.
pub fn follow_rows(case: &Case, by: ServedBy) -> Result<Followed> {
    let mut place = Place::new(case, by)?;
    let case = place.case(case);
    let (mut running, mut follower) = (None, None);
    let (mut last, mut followed) = (Last::new(), Followed::default());
    for (number, step) in case.steps.iter().enumerate() {
        if step.restarts() {
            running = None;
        }
        let written = SystemTime::now();
        place.write(step)?;
        if running.is_none() {
            running = Some(Running::start_command(&mut place.command()?, place.node())?);
        }
        let is_in_force = || settled(place.node()).filter(|since| *since > written);
        until("a step to be in force", is_in_force).with_context(|| format!("step {}", number + 1))?;
        let follower = match &mut follower {
            Some(follower) => follower,
            none => none.insert(Follower::start(&[], place.node())?),
        };
        let wrong =
            Turn { case: &case, by, follower, followed: &mut followed }.follow(place.sender(), step, &mut last)?;
        let label = format!("{} step {}", case.name, number + 1);
        let disagreement = |(what, says)| Disagreement { step: label.clone(), executor: "trace --live", what, says };
        followed.disagreements.extend(wrong.into_iter().map(disagreement));
        // Of anything: what the harness itself sends is followed, too.
        for line in follower.lines().iter().filter(|line| !line["difference"].is_null()) {
            followed.disagreements.push(disagreement(("shouted".to_owned(), format!("{line:#}"))));
        }
    }
    Ok(followed)
}

/// When the proxy of a node has synced last, if no change waits.
fn settled(node: &Netns) -> Option<SystemTime> {
    let get = || kubeferry::status::get("http://127.0.0.1:10249/status", DEADLINE);
    let status: Status = serde_json::from_str(&node.run(get).ok()?.ok()?.body).ok()?;
    status.last_sync.filter(|last| last.error.is_none() && status.pending == 0).map(|last| last.at.into())
}

/// The node of a case.
enum Place {
    Rules { sender: Sender, world: World, source: Source },
    Tc { programs: ebpf::Programs, source: Source },
    All(Box<auto::Programs>),
}

impl Place {
    fn new(case: &Case, by: ServedBy) -> Result<Self> {
        Ok(match by {
            ServedBy::Nftables => {
                let world = World::build(case)?;
                Self::Rules { sender: Sender::new(world.prober()?), world, source: Source::new(case)? }
            }
            ServedBy::Tc => {
                Self::Tc { programs: ebpf::Programs::new(case, ebpf::Hooks::Tc)?, source: Source::new(case)? }
            }
            ServedBy::AllHooks => Self::All(Box::new(auto::Programs::new(case)?)),
        })
    }

    /// The case as it is here.
    fn case(&self, case: &Case) -> Case {
        match self {
            Self::All(programs) => programs.case().clone(),
            _ => case.clone(),
        }
    }

    fn node(&self) -> &Netns {
        match self {
            Self::Rules { world, .. } => &world.node,
            Self::Tc { programs, .. } => &programs.world.node,
            Self::All(programs) => programs.node(),
        }
    }

    fn command(&self) -> Result<Command> {
        match self {
            Self::Rules { source, .. } => source.command("run"),
            Self::Tc { programs, source } => programs.command(source),
            Self::All(programs) => programs.command(),
        }
    }

    fn write(&self, step: &Step) -> Result<()> {
        match self {
            Self::Rules { source, .. } | Self::Tc { source, .. } => source.write(step),
            Self::All(programs) => programs.source().write(step),
        }
    }

    fn sender(&mut self) -> &mut Sender {
        match self {
            Self::Rules { sender, .. } => sender,
            Self::Tc { programs, .. } => programs.sender(),
            Self::All(programs) => programs.sender(),
        }
    }
}

/// What a socket has begun.
enum Begun<'a> {
    /// It was left to packets, of which this is the first.
    Packet(Sent<'a>),
    /// It goes to an endpoint, by this packet.
    Translated(Sent<'a>),
}

/// What is wrong with what is told, with the row.
type Wrong = Vec<(String, String)>;

/// One step.
struct Turn<'a> {
    case: &'a Case,
    by: ServedBy,
    follower: &'a Follower,
    followed: &'a mut Followed,
}

impl Turn<'_> {
    fn follow(&mut self, sender: &mut Sender, step: &Step, last: &mut Last) -> Result<Wrong> {
        let (mut sent, mut wrong) = (Vec::new(), Wrong::new());
        let mut right = BTreeSet::new();
        for row in &step.rows {
            let before = sent.len();
            let allowed = allowed(row, last)?;
            let is_sockets = self.by == ServedBy::AllHooks && has_socket(self.case, row);
            // From a port there is one connection.
            if !(is_sockets && row.from_port.is_some()) {
                for _ in 0..times(row) {
                    let (from, fate) = sender.send_packet(self.case, row).with_context(|| named(row))?;
                    sent.push(Sent::new(row, &allowed, from, fate));
                }
            }
            if is_sockets {
                // Two calls of UDP, by turns.
                for _ in 0..if row.protocol == Protocol::Udp { 2 } else { 1 } {
                    match self.socket(sender, row, &allowed) {
                        Ok(Begun::Packet(one)) => sent.push(one),
                        Ok(Begun::Translated(packet)) => {
                            right.insert(&row.place);
                            sent.push(packet);
                        }
                        Err(error) => wrong.push((named(row), format!("a socket: {error:#}"))),
                    }
                }
            }
            let reached = sent[before..].iter().filter_map(Sent::reached).collect::<BTreeSet<_>>();
            if is_loyal(row) && reached.len() > 1 {
                wrong.push((named(row), format!("connections of one client reached {reached:?}")));
            }
            if !reached.is_empty() {
                last.insert(row.from, reached.into_iter().collect());
            }
        }
        let lines = self.told(&sent);
        for one in &sent {
            let judged = match lines.get(&one.ends()).map(Vec::as_slice) {
                None | Some([]) => Err(anyhow!("a packet from {} was not told of: {}", one.from, one.fate())),
                Some([line]) => told::judge(self.case, self.by, one, line).with_context(|| format!("{line:#}")),
                Some([..]) => Err(anyhow!("a packet from {} was told of more than once", one.from)),
            };
            match judged {
                Ok(()) => {
                    self.followed.packets += 1;
                    right.insert(&one.row.place);
                }
                Err(error) => wrong.push((named(one.row), format!("{error:#}"))),
            }
        }
        self.followed.rows += right.len();
        Ok(wrong)
    }

    /// Has a socket begin. Where it was translated, it is told of there, and its packet is nobody's.
    fn socket<'a>(&mut self, sender: &mut Sender, row: &'a Row, allowed: &[SocketAddr]) -> Result<Begun<'a>> {
        let is_it = |line: &&Value| {
            line["from"].is_null() && line["to"] == row.to.to_string() && line["protocol"] == row.protocol.as_str()
        };
        let of_sockets = || self.follower.lines().iter().filter(is_it).cloned().collect::<Vec<_>>();
        let before = of_sockets().len();
        let (from, fate) = sender.send(self.case, row)?;
        let sent = Sent::new(row, allowed, from, fate);
        let told = || {
            let translated = of_sockets().get(before).cloned();
            let is_packet = || self.follower.lines().iter().any(|line| told::ends(line) == Some(sent.ends()));
            (translated.is_some() || is_packet()).then_some(translated)
        };
        let Some(line) = until("a socket or its packet to be told of", told).with_context(|| sent.fate())? else {
            return Ok(Begun::Packet(sent));
        };
        told::judge_socket(&sent, &line).with_context(|| format!("{line:#}"))?;
        self.followed.sockets += 1;
        Ok(Begun::Translated(sent.translated()?))
    }

    /// The lines of packets, by their ends, once there is one for each, or for some it is too late.
    fn told(&self, sent: &[Sent<'_>]) -> HashMap<(SocketAddr, SocketAddr), Vec<Value>> {
        let mut lines = HashMap::new();
        let all = || {
            lines = HashMap::<_, Vec<Value>>::new();
            for line in self.follower.lines() {
                if let Some(ends) = told::ends(&line) {
                    lines.entry(ends).or_default().push(line);
                }
            }
            sent.iter().all(|sent| lines.contains_key(&sent.ends())).then_some(())
        };
        // What is not there is said row by row.
        drop(until("every packet to be told of", all));
        lines
    }
}

/// Where the connections of a row may go.
fn allowed(row: &Row, last: &Last) -> Result<Vec<SocketAddr>> {
    Ok(match &row.expect {
        Expect::Endpoints { endpoints, .. } => endpoints.clone(),
        Expect::Same { .. } => {
            last.get(&row.from).context("no row before reached an endpoint from this source")?.clone()
        }
        Expect::Reject | Expect::Drop | Expect::None => Vec::new(),
    })
}

/// Whether a client stays with its first choice.
fn is_loyal(row: &Row) -> bool {
    matches!(row.expect, Expect::Endpoints { affinity: true, .. } | Expect::Same { .. })
}

/// How many packets are followed: where an endpoint is drawn or a client remembered, one is not enough.
fn times(row: &Row) -> usize {
    match &row.expect {
        _ if row.from_port.is_some() => 1,
        Expect::Endpoints { endpoints, .. } if endpoints.len() > 1 => 2,
        _ if is_loyal(row) => 2,
        _ => 1,
    }
}
