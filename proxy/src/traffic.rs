//! What every service port got, as totals that only grow: an endpoint that leaves takes its numbers with it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use crate::backend::EndpointCount;
use crate::desired::target::ServicePortName;
use crate::state::objects::Family;

/// A service port in one family.
pub type Port = (ServicePortName, Family);

/// Totals of a service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Total {
    /// New connections.
    pub connections: u64,
    /// Connections that have not ended, now.
    pub active: u64,
    /// Packets, both ways.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

/// Totals of all service ports since the process began to look. What an endpoint gets between the last look and its end
/// is not in them.
#[derive(Debug, Default)]
pub struct Totals {
    ports: BTreeMap<Port, (Total, HashMap<SocketAddr, EndpointCount>)>,
}

impl Totals {
    /// Takes in what is counted now of every service port. Those that are gone are given, and forgotten.
    pub fn look(&mut self, now: impl Iterator<Item = (Port, Vec<EndpointCount>)>) -> Vec<Port> {
        let mut before = std::mem::take(&mut self.ports);
        for (port, counts) in now {
            let (mut total, seen) = before.remove(&port).unwrap_or_default();
            total.active = 0;
            for count in &counts {
                let old = seen.get(&count.endpoint);
                // Less than before: it had gone, and has come again.
                let more = |of: fn(&EndpointCount) -> u64| {
                    let (now, old) = (of(count), old.map_or(0, of));
                    if now >= old { now - old } else { now }
                };
                total.connections += more(|count| count.opened);
                total.packets += more(|count| count.packets);
                total.bytes += more(|count| count.bytes);
                total.active += count.active;
            }
            self.ports.insert(port, (total, counts.into_iter().map(|count| (count.endpoint, count)).collect()));
        }
        before.into_keys().collect()
    }

    /// The totals of each service port.
    pub fn all(&self) -> impl Iterator<Item = (&Port, &Total)> {
        self.ports.iter().map(|(port, (total, _))| (port, total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::objects::{ObjectName, Protocol};

    fn port(name: &str) -> Port {
        let service = ObjectName { namespace: "default".into(), name: name.into() };
        (ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }, Family::V4)
    }

    fn count(endpoint: &str, opened: u64, active: u64) -> EndpointCount {
        EndpointCount { endpoint: endpoint.parse().unwrap(), opened, active, packets: opened * 10, bytes: opened * 100 }
    }

    #[test]
    fn totals_only_grow() {
        let mut totals = Totals::default();
        let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
        let mut look = |counts: Vec<EndpointCount>| {
            assert_eq!(totals.look([(port("web"), counts)].into_iter()), []);
            let total = totals.all().next().map(|(_, total)| *total).unwrap();
            assert_eq!((total.packets, total.bytes), (total.connections * 10, total.connections * 100));
            (total.connections, total.active)
        };
        assert_eq!(look(vec![count(a, 5, 1), count(b, 7, 2)]), (12, 3));
        assert_eq!(look(vec![count(a, 6, 0)]), (13, 0), "an endpoint left");
        assert_eq!(look(vec![count(a, 6, 0), count(b, 1, 1)]), (14, 1), "and came again");
        assert_eq!(look(vec![count(a, 2, 0), count(b, 1, 1)]), (16, 1), "its row began anew");
        assert_eq!(totals.look([(port("other"), vec![])].into_iter()), [port("web")]);
        assert_eq!(totals.all().count(), 1);
    }
}
