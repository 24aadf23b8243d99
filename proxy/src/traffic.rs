//! What every service port got, as totals that only grow: an endpoint that leaves takes its numbers with it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::{Counts, EndpointCount, Left};
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
            packets: self.packets.saturating_add(other.packets),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }
}

impl From<EndpointCount> for Total {
    fn from(count: EndpointCount) -> Self {
        let EndpointCount { opened, active, packets, bytes, .. } = count;
        Self { connections: opened, active, packets, bytes }
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
    /// New connections a second, since the newest look that is at least a second old, or the one before it; `None` where there is
    /// none.
    pub rate: Option<f64>,
    /// Its endpoints at the last look, by address.
    pub endpoints: Arc<[EndpointCount]>,
    /// Its connections at the looks of [`Totals::marks`].
    marks: [Option<u64>; 2],
}

/// A rate is over no less: whoever asks a moment after somebody else gets the same …
const SHORTEST: Duration = Duration::from_secs(1);
/// … and told only where it is over no more.
const RECENT: Duration = Duration::from_secs(30);

/// Totals of all service ports since the process began to look.
#[derive(Debug, Default)]
pub struct Totals {
    ports: HashMap<Port, Seen>,
    /// When those looks were that rates may be counted from: the last but one of them, and the last. They are a second apart, or
    /// more.
    marks: [Option<Instant>; 2],
}

impl Totals {
    /// Takes in what is counted at `at` of every service port. Those that are gone are given, and forgotten.
    pub fn look(&mut self, at: Instant, now: impl IntoIterator<Item = Counts>) -> Vec<Port> {
        let age = |mark: Instant| at.saturating_duration_since(mark);
        let marks = self.marks;
        // This look is the next mark as soon as the last is old enough to be counted from.
        let is_mark = marks[1].is_none_or(|mark| age(mark) >= SHORTEST);
        if is_mark {
            self.marks = [marks[1], Some(at)];
        }
        let mut before = std::mem::take(&mut self.ports);
        for Counts { port, here: mut counts, left } in now {
            counts.sort_unstable_by_key(|count| count.endpoint);
            let Seen { total: old, endpoints: seen, marks: mut of_marks, .. } =
                before.remove(&port).unwrap_or_default();
            let mut total = match left {
                Left::Ever(left) => counts.iter().fold(left, |sum, count| sum.plus(Total::from(*count))),
                Left::Since(left) => counts.iter().chain(&left).fold(old, |sum, count| sum.plus(more(count, &seen))),
            };
            total.active = counts.iter().map(|count| count.active).sum();
            if is_mark {
                of_marks = [of_marks[1], Some(total.connections)];
            }
            let from = self.marks[0].map(age).zip(of_marks[0]);
            let from = from.filter(|(since, _)| (SHORTEST..=RECENT).contains(since));
            let rate = from.map(|(since, old)| total.connections.saturating_sub(old) as f64 / since.as_secs_f64());
            self.ports.insert(port, Seen { total, rate, endpoints: counts.into(), marks: of_marks });
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

/// What an endpoint got more than at the last look.
fn more(count: &EndpointCount, seen: &[EndpointCount]) -> Total {
    let old = seen.binary_search_by_key(&count.endpoint, |old| old.endpoint).ok().and_then(|at| seen.get(at));
    // Less than before: it had gone, and has come again.
    let more = |of: fn(&EndpointCount) -> u64| {
        let (now, old) = (of(count), old.map_or(0, of));
        if now >= old { now - old } else { now }
    };
    Total {
        connections: more(|count| count.opened),
        active: 0,
        packets: more(|count| count.packets),
        bytes: more(|count| count.bytes),
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
        Counts { port: port(name), here, left: Left::Since(left) }
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
    fn with_what_those_had_who_left_a_total_is_known() {
        let mut totals = Totals::default();
        let mut look = |here: Vec<EndpointCount>, connections: u64| {
            let left = Left::Ever(Total { connections, ..Total::default() });
            totals.look(Instant::now(), [Counts { port: port("web"), here, left }]);
            totals.of(&port("web")).unwrap().total.connections
        };
        let (a, b) = ("10.0.0.1:80", "10.0.0.2:80");
        assert_eq!(look(vec![count(a, 5, 0), count(b, 7, 0)], 0), 12);
        assert_eq!(
            look(vec![count(a, 5, 0), count(b, 9, 0)], 8),
            22,
            "it left with 8, came again, and has more than before"
        );
    }

    /// The rates that are told at looks so many milliseconds after the first, with so many connections.
    fn rates(looks: &[(u64, u64)]) -> Vec<Option<f64>> {
        let (mut totals, start) = (Totals::default(), Instant::now());
        let mut rate = |(after, opened): &(u64, u64)| {
            let counts = vec![count("10.0.0.1:80", *opened, 0)];
            totals.look(start + Duration::from_millis(*after), [told("web", counts, vec![])]);
            totals.of(&port("web")).unwrap().rate
        };
        looks.iter().map(&mut rate).collect()
    }

    #[test]
    fn a_rate_needs_two_looks_that_are_not_far_apart() {
        let looks = [(0, 1_000), (2_000, 1_050), (3_000, 1_050), (3_500, 1_060), (40_000, 1_070), (41_000, 1_080)];
        assert_eq!(rates(&looks), [None, Some(25.0), Some(0.0), Some(10.0 / 1.5), None, Some(10.0)]);
        assert_eq!(rates(&[(0, 5), (0, 5), (999, 15), (1_000, 15)]), [None, None, None, Some(10.0)]);
    }

    #[test]
    fn a_steady_rate_is_told_steadily_however_many_ask() {
        // Ten connections a second; looks in pairs a moment apart, and now and then.
        let looks: Vec<(u64, u64)> = (0..400_u64)
            .flat_map(|turn| [turn * 700, turn * 700 + 30 + turn % 7])
            .map(|after| (after, after / 100))
            .collect();
        let told = rates(&looks);
        assert_eq!(told[..2], [None, None]);
        let steady = |rate: &Option<f64>| rate.is_some_and(|rate| (9.0..=11.0).contains(&rate));
        assert!(told[4..].iter().all(steady), "{told:?}");
    }
}
