//! What the endpoints of service ports got: what their rows count now, and what rows had counted that are no more; and what
//! their connections carried, where that is followed.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::kernel::{Kernel, KernelError, RowCount};
use crate::backend::nftables::rows::Key;
use crate::backend::{Counts, EndpointCount};
use crate::conntrack::accounting::{Carried, Way};
use crate::desired::Desired;
use crate::desired::target::{Frontend, Target};
use crate::traffic::Port;

use super::Reconciler;

/// Something of each endpoint of each service port.
type ByEndpoint<T> = HashMap<Port, HashMap<SocketAddr, T>>;

/// What rows and connections that are no more had counted.
#[derive(Clone, Copy, Debug, Default)]
struct Past {
    connections: u64,
    packets: u64,
    bytes: u64,
}

/// Who has the rows in force, and what rows that are gone had counted.
#[derive(Debug, Default)]
pub(super) struct Counting {
    frontends: HashMap<Frontend, Port>,
    turns: HashMap<Turn, Port>,
    /// Whose connections of a way are: kept while there are some, also when the frontend is gone.
    ways: HashMap<Way, Port>,
    past: ByEndpoint<Past>,
}

impl Counting {
    /// Rows are gone that had counted this. To be told before [`Counting::own`] of the same commit.
    pub(super) fn take(&mut self, desired: &Desired, counts: Vec<RowCount>) {
        for count in counts.into_iter().filter(|count| count.connections > 0) {
            if let Some(port) = self.port(desired, &count.key) {
                let past = self.past.entry(port).or_default().entry(count.endpoint).or_default();
                past.connections += count.connections;
            }
        }
    }

    /// The rows of these frontends are in force: whoever holds them now has them.
    pub(super) fn own(&mut self, desired: &Desired, frontends: impl Iterator<Item = Frontend>) {
        for frontend in frontends {
            let Some(claim) = desired.holder(&frontend) else {
                self.frontends.remove(&frontend);
                continue;
            };
            let port = port_of(claim.target);
            if claim.target.schedule.scheduler.takes_turns() {
                self.turns.insert(Turn::of(&claim.target.name, claim.target.family), port.clone());
            }
            self.frontends.insert(frontend, port);
        }
    }

    /// Whose a row is; of one that another process wrote, whoever holds its frontend.
    fn port(&self, desired: &Desired, key: &Key) -> Option<Port> {
        match key {
            Key::Of(frontend, _) => {
                self.frontends.get(frontend).cloned().or_else(|| Some(port_of(desired.holder(frontend)?.target)))
            }
            Key::Turn(turn, _) => self.turns.get(turn).cloned(),
            _ => None,
        }
    }

    /// Whose the connections of a way are.
    fn port_of_way(&self, desired: &Desired, way: &Way) -> Option<Port> {
        let Way { protocol, to, .. } = *way;
        let address = Frontend::Address { ip: to.ip(), protocol, port: to.port() };
        let family = address.family();
        let node_port = || {
            let holder = desired.holder(&Frontend::NodePort { family, protocol, port: to.port() });
            holder.filter(|_| desired.node().answers_node_ports(to.ip()))
        };
        let claim = desired.holder(&address).or_else(node_port);
        claim.map(|claim| port_of(claim.target)).or_else(|| self.ways.get(way).cloned())
    }

    /// What every service port's endpoints got, with what rows count now. Those that have left, and have no connections any
    /// more, are told once more and forgotten.
    fn look(&mut self, desired: &Desired, rows: Vec<RowCount>, ways: HashMap<Way, Carried>) -> Vec<Counts> {
        let mut now: ByEndpoint<EndpointCount> = HashMap::new();
        for row in rows {
            if let Some(port) = self.port(desired, &row.key) {
                at(&mut now, port, row.endpoint).opened += row.connections;
            }
        }
        let mut owners = HashMap::new();
        let mut lingering: HashMap<Port, BTreeSet<SocketAddr>> = HashMap::new();
        for (way, carried) in ways {
            let Some(port) = self.port_of_way(desired, &way) else { continue };
            let past = self.past.entry(port.clone()).or_default().entry(way.endpoint).or_default();
            past.packets += carried.ended_packets;
            past.bytes += carried.ended_bytes;
            if carried.entries > 0 {
                lingering.entry(port.clone()).or_default().insert(way.endpoint);
                let count = at(&mut now, port.clone(), way.endpoint);
                count.active += carried.active;
                count.packets += carried.packets;
                count.bytes += carried.bytes;
                owners.insert(way, port);
            }
        }
        self.ways = owners;
        let mut past = std::mem::take(&mut self.past);
        let all = desired.targets().map(|(_, target, _)| {
            let port = port_of(target);
            let mut now = now.remove(&port).unwrap_or_default();
            let mut past = past.remove(&port).unwrap_or_default();
            let mut endpoints: BTreeSet<SocketAddr> = target.endpoints.used().collect();
            endpoints.extend(target.endpoints.serving.iter());
            // Who has left and has connections yet goes on being counted.
            endpoints.extend(lingering.remove(&port).unwrap_or_default());
            let mut kept = HashMap::new();
            let here = endpoints.iter().map(|endpoint| {
                let now = now.remove(endpoint).unwrap_or_else(|| EndpointCount::none(*endpoint));
                match past.remove(endpoint) {
                    Some(before) => {
                        kept.insert(*endpoint, before);
                        before.and(now)
                    }
                    None => now,
                }
            });
            let here = here.collect();
            let mut left: Vec<EndpointCount> = Vec::new();
            for (endpoint, now) in now {
                left.push(past.remove(&endpoint).unwrap_or_default().and(now));
            }
            left.extend(past.into_iter().map(|(endpoint, past)| past.and(EndpointCount::none(endpoint))));
            if !kept.is_empty() {
                self.past.insert(port.clone(), kept);
            }
            Counts { port, here, left }
        });
        all.collect()
    }
}

impl Past {
    fn and(self, now: EndpointCount) -> EndpointCount {
        EndpointCount {
            opened: self.connections + now.opened,
            packets: self.packets + now.packets,
            bytes: self.bytes + now.bytes,
            ..now
        }
    }
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
        Ok(self.counting.look(desired, rows, ways))
    }
}
