//! What every service port got, as totals that only grow: an endpoint that leaves takes its numbers with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Counts, EndpointCount};
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

impl Total {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            connections: self.connections + other.connections,
            active: self.active + other.active,
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// Which of the numbers a datapath counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counting {
    /// New connections.
    pub connections: bool,
    /// Those that have not ended.
    pub active: bool,
    /// Packets and bytes.
    pub packets: bool,
    /// What an endpoint that leaves got since the last look is lost: looks have to be regular.
    pub forgets: bool,
}

/// What was seen of a service port in one family.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Since the process began to look.
    pub total: Total,
    /// New connections a second between the last two looks; `None` before the second.
    pub rate: Option<f64>,
    /// Its endpoints at the last look, by address.
    pub endpoints: Arc<[EndpointCount]>,
}

/// A rate is told only between looks that are no further apart.
const RECENT: Duration = Duration::from_secs(30);

/// Totals of all service ports since the process began to look.
#[derive(Debug, Default)]
pub struct Totals {
    ports: HashMap<Port, Seen>,
    looked: Option<Instant>,
}

impl Totals {
    /// Takes in what is counted at `at` of every service port. Those that are gone are given, and forgotten.
    pub fn look(&mut self, at: Instant, now: impl IntoIterator<Item = Counts>) -> Vec<Port> {
        let since = self.looked.replace(at).map(|last| at.saturating_duration_since(last));
        let since = since.filter(|since| !since.is_zero() && *since <= RECENT);
        let mut before = std::mem::take(&mut self.ports);
        for Counts { port, here: mut counts, left } in now {
            counts.sort_unstable_by_key(|count| count.endpoint);
            let old = before.remove(&port);
            let first = old.is_none();
            let Seen { mut total, endpoints: seen, .. } = old.unwrap_or_default();
            total.active = 0;
            let connections = total.connections;
            for count in counts.iter().chain(&left) {
                let old =
                    seen.binary_search_by_key(&count.endpoint, |old| old.endpoint).ok().and_then(|at| seen.get(at));
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
            let rate = since.filter(|_| !first);
            let rate = rate.map(|since| (total.connections - connections) as f64 / since.as_secs_f64());
            self.ports.insert(port, Seen { total, rate, endpoints: counts.into() });
        }
        before.into_keys().collect()
    }

    /// What was seen of each service port.
    pub fn all(&self) -> impl Iterator<Item = (&Port, &Seen)> {
        self.ports.iter()
    }

    /// What was seen of a service port.
    pub fn of(&self, port: &Port) -> Option<&Seen> {
        self.ports.get(port)
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

    fn told(name: &str, here: Vec<EndpointCount>, left: Vec<EndpointCount>) -> Counts {
        Counts { port: port(name), here, left }
    }

    #[test]
    fn who_leaves_is_counted_to_the_end_and_begins_anew() {
        let mut totals = Totals::default();
        let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
        let mut look = |here: Vec<EndpointCount>, left: Vec<EndpointCount>| {
            totals.look(Instant::now(), [told("web", here, left)]);
            let seen = totals.of(&port("web")).unwrap();
            (seen.total.connections, seen.endpoints.len())
        };
        assert_eq!(look(vec![count(a, 5, 0), count(b, 7, 0)], vec![]), (12, 2));
        assert_eq!(look(vec![count(a, 5, 0)], vec![count(b, 10, 0)]), (15, 1));
        assert_eq!(look(vec![count(a, 5, 0), count(b, 12, 0)], vec![]), (27, 2), "all of it is new");
    }

    #[test]
    fn totals_only_grow() {
        let mut totals = Totals::default();
        let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
        let start = Instant::now();
        let mut look = |counts: Vec<EndpointCount>| {
            assert_eq!(totals.look(start, [told("web", counts, vec![])]), []);
            let total = totals.of(&port("web")).unwrap().total;
            assert_eq!((total.packets, total.bytes), (total.connections * 10, total.connections * 100));
            (total.connections, total.active)
        };
        assert_eq!(look(vec![count(a, 5, 1), count(b, 7, 2)]), (12, 3));
        assert_eq!(look(vec![count(a, 6, 0)]), (13, 0), "an endpoint left");
        assert_eq!(look(vec![count(a, 6, 0), count(b, 1, 1)]), (14, 1), "and came again");
        assert_eq!(look(vec![count(a, 2, 0), count(b, 1, 1)]), (16, 1), "its row began anew");
        assert_eq!(totals.look(start, [told("other", vec![], vec![])]), [port("web")]);
        assert_eq!(totals.all().count(), 1);
    }

    #[test]
    fn a_rate_needs_two_looks_that_are_not_far_apart() {
        let mut totals = Totals::default();
        let start = Instant::now();
        let mut rate = |after: u64, opened: u64| {
            let counts = vec![count("10.0.0.1:80", opened, 0)];
            totals.look(start + Duration::from_secs(after), [told("web", counts, vec![])]);
            totals.of(&port("web")).unwrap().rate
        };
        assert_eq!(rate(0, 1_000), None);
        assert_eq!(rate(2, 1_050), Some(25.0));
        assert_eq!(rate(3, 1_050), Some(0.0));
        assert_eq!(rate(3, 1_060), None, "no time has passed");
        assert_eq!(rate(40, 1_070), None, "that was long ago");
        assert_eq!(rate(41, 1_080), Some(10.0));
    }
}
