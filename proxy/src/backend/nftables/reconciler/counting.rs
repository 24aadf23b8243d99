//! What the endpoints of service ports got: what their rows count now, and what rows had counted that are no more; and what
//! their connections carried, where that is followed.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use crate::backend::nftables::diff::Change;
use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::kernel::{Kernel, KernelError, RowCount};
use crate::backend::nftables::rows::{Key, Part, Rows, Value};
use crate::backend::{Counts, EndpointCount, Left};
use crate::conntrack::accounting::{Carried, Way};
use crate::desired::Desired;
use crate::desired::target::{Frontend, Target};
use crate::traffic::{Port, Total};

use super::Reconciler;
use super::past::{Books, Past, is_served};

/// Something of each endpoint of each service port.
type ByEndpoint<T> = HashMap<Port, HashMap<SocketAddr, T>>;

/// Frontends that nobody has any more and whose last owner is known, so that the next does not get its connections.
const FORMER: usize = 4_096;

/// Who has the rows in force, what they had counted when they were last read, and what rows that are gone had.
#[derive(Debug, Default)]
pub(super) struct Counting {
    frontends: HashMap<Frontend, Port>,
    /// Who had frontends that nobody has.
    former: HashMap<Frontend, Port>,
    turns: HashMap<Turn, Port>,
    /// With more turns than this, those that are no more are looked for.
    room: usize,
    /// Whose connections of a way are: kept while there are some, also when the frontend is gone.
    ways: HashMap<Way, Port>,
    /// Connections of each row that had any, as last read: a row that is made anew by anybody begins at 0.
    read: HashMap<Key, u64>,
    past: Books,
}

impl Counting {
    /// Rows are gone that had counted this. To be told before [`Reconciler::own`] of the same commit. `applied` are the rows from
    /// before, `changes` what has become of them; of rows that were deleted and not counted, what was last read counts.
    pub(super) fn take(&mut self, desired: &Desired, applied: &Rows, changes: &[Change], counts: Vec<RowCount>) {
        for count in counts {
            let before = self.read.remove(&count.key).filter(|before| *before > count.connections).unwrap_or(0);
            self.add(desired, &count.key, count.endpoint, before + count.connections);
        }
        for change in changes {
            if let Change::Delete(key, _) = change {
                self.lost(desired, applied, key);
            }
        }
    }

    /// These rows are there, or none of before: who else has deleted or made anew some cannot be asked what they had counted since
    /// they were last read.
    pub(super) fn found(&mut self, desired: &Desired, applied: &Rows, found: Option<&Rows>) {
        let is_other = |key: &&Key| found.is_none_or(|found| found.get(*key) != applied.get(*key));
        let lost: Vec<Key> = self.read.keys().filter(is_other).copied().collect();
        lost.iter().for_each(|key| self.lost(desired, applied, key));
    }

    /// A row is not the one any more that was read.
    fn lost(&mut self, desired: &Desired, applied: &Rows, key: &Key) {
        if let Some(connections) = self.read.remove(key)
            && let Some(Value::Endpoint(endpoint)) = applied.get(key)
        {
            self.add(desired, key, *endpoint, connections);
        }
    }

    fn add(&mut self, desired: &Desired, key: &Key, endpoint: SocketAddr, connections: u64) {
        if connections > 0
            && let Some(port) = self.port(desired, key)
        {
            self.past.add(desired, &port, endpoint, Past::connections(connections));
        }
    }

    /// The frontends whose rows are in force.
    pub(super) fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.frontends.keys().copied()
    }

    /// Whether a row of an endpoint has counted for another service port than the one that it is to count for.
    pub(super) fn changes_hands(&self, desired: &Desired, key: &Key) -> bool {
        let Key::Of(frontend, Part::Endpoint(_)) = key else { return false };
        self.frontends.get(frontend).is_some_and(|port| !is_held_by(desired, frontend, port))
    }

    /// Whose a row is; of one that another process wrote, whoever holds its frontend.
    fn port(&self, desired: &Desired, key: &Key) -> Option<Port> {
        match key {
            Key::Of(frontend, _) => self.port_of_frontend(desired, frontend),
            Key::Turn(turn, _) => self.turns.get(turn).cloned(),
            _ => None,
        }
    }

    fn port_of_frontend(&self, desired: &Desired, frontend: &Frontend) -> Option<Port> {
        self.frontends.get(frontend).cloned().or_else(|| Some(port_of(desired.holder(frontend)?.target)))
    }

    /// Whose the connections of a way are.
    fn port_of_way(&self, desired: &Desired, way: &Way) -> Option<Port> {
        let of = |frontend: Frontend| self.port_of_frontend(desired, &frontend);
        each_frontend(desired, way).into_iter().find_map(of).or_else(|| self.ways.get(way).cloned())
    }

    /// Connections on these ways have ended, with so many packets and bytes.
    fn ended(&mut self, desired: &Desired, ended: HashMap<Way, (u64, u64)>) {
        for (way, (packets, bytes)) in ended {
            if let Some(port) = self.port_of_way(desired, &way) {
                self.past.add(desired, &port, way.endpoint, Past { connections: 0, packets, bytes });
            }
        }
    }

    /// What every service port's endpoints got, with what rows count now. The numbers of those that have left, and have no
    /// connections any more, become one of their service port.
    fn look(
        &mut self,
        desired: &Desired,
        applied: &Rows,
        rows: Vec<RowCount>,
        ways: HashMap<Way, Carried>,
    ) -> Vec<Counts> {
        let mut now: ByEndpoint<EndpointCount> = HashMap::new();
        let mut read = HashMap::new();
        for row in rows {
            let RowCount { key, endpoint, connections } = row;
            // Less than before: it was made anew.
            if self.read.get(&key).is_some_and(|before| *before > connections) {
                self.lost(desired, applied, &key);
            }
            self.read.remove(&key);
            if connections > 0
                && let Some(port) = self.port(desired, &key)
            {
                read.insert(key, connections);
                at(&mut now, port, endpoint).opened += connections;
            }
        }
        self.found(desired, applied, None);
        self.read = read;
        let mut owners = HashMap::new();
        let mut lingering: HashMap<Port, BTreeSet<SocketAddr>> = HashMap::new();
        for (way, carried) in ways {
            let Some(port) = self.port_of_way(desired, &way) else { continue };
            let past = Past { connections: 0, packets: carried.ended_packets, bytes: carried.ended_bytes };
            self.past.add(desired, &port, way.endpoint, past);
            if carried.entries > 0 {
                lingering.entry(port.clone()).or_default().insert(way.endpoint);
                let count = at(&mut now, port.clone(), way.endpoint);
                count.active += carried.active;
                count.packets = count.packets.saturating_add(carried.packets);
                count.bytes = count.bytes.saturating_add(carried.bytes);
                owners.insert(way, port);
            }
        }
        self.ways = owners;
        let mut past = std::mem::take(&mut self.past);
        let all = desired.targets().map(|(_, target, _)| {
            let port = port_of(target);
            let mut now = now.remove(&port).unwrap_or_default();
            let mut book = past.take(&port);
            let mut endpoints: BTreeSet<SocketAddr> = target.endpoints.used().collect();
            endpoints.extend(target.endpoints.serving.iter());
            // Who has left and has connections yet goes on being counted.
            endpoints.extend(lingering.remove(&port).unwrap_or_default());
            let here = endpoints.iter().map(|endpoint| {
                let now = now.remove(endpoint).unwrap_or_else(|| EndpointCount::none(*endpoint));
                book.of(endpoint).and(now)
            });
            let here = here.collect();
            book.forget_but(|endpoint| endpoints.contains(endpoint));
            let left = now.into_values().fold(book.left(), |sum, count| sum.plus(Total::from(count)));
            self.past.put(port.clone(), book);
            Counts { port, here, left: Left::Ever(left) }
        });
        all.collect()
    }
}

/// The frontends by which a connection may have come this way.
fn each_frontend(desired: &Desired, way: &Way) -> Vec<Frontend> {
    let Way { protocol, to, .. } = *way;
    let address = Frontend::Address { ip: to.ip(), protocol, port: to.port() };
    let mut all = vec![address];
    if desired.node().answers_node_ports(to.ip()) {
        all.push(Frontend::NodePort { family: address.family(), protocol, port: to.port() });
    }
    all
}

fn is_held_by(desired: &Desired, frontend: &Frontend, port: &Port) -> bool {
    let holds = |target: &Target| (&target.name, target.family) == (&port.0, port.1);
    desired.holder(frontend).is_some_and(|claim| holds(claim.target))
}

fn at(all: &mut ByEndpoint<EndpointCount>, port: Port, endpoint: SocketAddr) -> &mut EndpointCount {
    all.entry(port).or_default().entry(endpoint).or_insert_with(|| EndpointCount::none(endpoint))
}

fn port_of(target: &Target) -> Port {
    (target.name.clone(), target.family)
}

impl<K: Kernel> Reconciler<K> {
    /// What every service port's endpoints got. Reads all rows of endpoints, at once.
    pub(in crate::backend::nftables) fn look(&mut self, desired: &Desired) -> Result<Vec<Counts>, KernelError> {
        let rows = self.kernel.counters()?;
        let ways = self.kernel.carried()?;
        Ok(self.counting.look(desired, &self.applied, rows, ways))
    }

    /// Takes in what connections carried that have ended, so that it does not pile up while nobody looks.
    pub(in crate::backend::nftables) fn settle(&mut self, desired: &Desired) {
        match self.kernel.ended() {
            Ok(ended) => self.counting.ended(desired, ended),
            Err(error) => tracing::debug!(%error, "what ended connections carried cannot be read"),
        }
    }

    /// The rows of these frontends are in force: whoever holds them now has them, and what comes by them from now on.
    pub(super) fn own(&mut self, desired: &Desired, frontends: impl Iterator<Item = Frontend>) {
        let frontends: Vec<Frontend> = frontends.collect();
        self.hand_over(desired, &frontends);
        let counting = &mut self.counting;
        for frontend in &frontends {
            let Some(claim) = desired.holder(frontend) else {
                if let Some(port) = counting.frontends.remove(frontend) {
                    if counting.former.len() >= FORMER {
                        counting.former.clear();
                    }
                    counting.former.insert(*frontend, port);
                }
                continue;
            };
            let port = port_of(claim.target);
            if claim.target.schedule.scheduler.takes_turns() {
                counting.turns.insert(Turn::of(&claim.target.name, claim.target.family), port.clone());
            }
            counting.former.remove(frontend);
            counting.frontends.insert(*frontend, port);
        }
        if counting.turns.len() > counting.room {
            counting.turns.retain(|_, port| is_served(desired, port));
            counting.room = counting.turns.len() * 2;
        }
        self.kernel.follow(&mut frontends.iter().map(|frontend| (*frontend, desired.holder(frontend).is_some())));
    }

    /// The connections that are open by frontends which have another owner now than before are that one's no more, and not the
    /// new one's.
    fn hand_over(&mut self, desired: &Desired, frontends: &[Frontend]) {
        let Counting { frontends: owners, former, .. } = &self.counting;
        let moved = frontends.iter().filter_map(|frontend| {
            let port = owners.get(frontend).or_else(|| former.get(frontend))?;
            let is_moved = desired.holder(frontend).is_some() && !is_held_by(desired, frontend, port);
            is_moved.then(|| (*frontend, port.clone()))
        });
        let moved: HashMap<Frontend, Port> = moved.collect();
        if moved.is_empty() {
            return;
        }
        let of = |way: &Way| each_frontend(desired, way).iter().find_map(|frontend| moved.get(frontend));
        match self.kernel.disown(&|way| of(way).is_some()) {
            Ok(carried) => {
                for (way, carried) in carried {
                    let packets = carried.ended_packets.saturating_add(carried.packets);
                    let bytes = carried.ended_bytes.saturating_add(carried.bytes);
                    if let Some(port) = of(&way) {
                        let past = Past { connections: 0, packets, bytes };
                        self.counting.past.add(desired, port, way.endpoint, past);
                    }
                    self.counting.ways.remove(&way);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "open connections are counted for the Service that has their address now")
            }
        }
    }
}
