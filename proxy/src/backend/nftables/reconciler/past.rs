//! What rows and connections that are no more had counted. Grows with the endpoints that there are, not with those that have been:
//! the numbers of those who have left become one of their service port.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::SocketAddr;

use crate::backend::EndpointCount;
use crate::desired::Desired;
use crate::traffic::{Port, Total};

/// Service ports that are gone, and of one that have left endpoints, that are kept beside as many as there are.
const KEPT: usize = 64;

/// What somebody had got.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Past {
    pub(super) connections: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// Of a service port.
#[derive(Debug)]
pub(super) struct Book {
    endpoints: HashMap<SocketAddr, Past>,
    left: Past,
    /// With more endpoints than this, those who have left are looked for.
    room: usize,
}

/// Of every service port.
#[derive(Debug)]
pub(super) struct Books {
    ports: HashMap<Port, Book>,
    room: usize,
}

impl Default for Book {
    fn default() -> Self {
        Self { endpoints: HashMap::new(), left: Past::default(), room: KEPT }
    }
}

impl Default for Books {
    fn default() -> Self {
        Self { ports: HashMap::new(), room: KEPT }
    }
}

impl Past {
    /// So many connections.
    pub(super) fn connections(connections: u64) -> Self {
        Self { connections, ..Self::default() }
    }

    fn add(&mut self, other: Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    /// With what is counted now.
    pub(super) fn and(self, now: EndpointCount) -> EndpointCount {
        EndpointCount {
            opened: self.connections.saturating_add(now.opened),
            packets: self.packets.saturating_add(now.packets),
            bytes: self.bytes.saturating_add(now.bytes),
            ..now
        }
    }
}

impl Book {
    /// What an endpoint had got.
    pub(super) fn of(&self, endpoint: &SocketAddr) -> Past {
        self.endpoints.get(endpoint).copied().unwrap_or_default()
    }

    /// The numbers of endpoints that are not among these become one.
    pub(super) fn forget_but(&mut self, is_kept: impl Fn(&SocketAddr) -> bool) {
        for (_, past) in self.endpoints.extract_if(|endpoint, _| !is_kept(endpoint)) {
            self.left.add(past);
        }
        self.room = self.endpoints.len() * 2 + KEPT;
    }

    /// What those had got who have left.
    pub(super) fn left(&self) -> Total {
        let Past { connections, packets, bytes } = self.left;
        Total { connections, packets, bytes, ..Total::default() }
    }
}

impl Books {
    /// An endpoint of a service port had got this, too.
    pub(super) fn add(&mut self, desired: &Desired, port: &Port, endpoint: SocketAddr, past: Past) {
        if past == Past::default() {
            return;
        }
        if self.ports.len() >= self.room && !self.ports.contains_key(port) {
            self.ports.retain(|port, _| is_served(desired, port));
            self.room = self.ports.len() * 2 + KEPT;
        }
        let book = match self.ports.entry(port.clone()) {
            Entry::Occupied(book) => book.into_mut(),
            Entry::Vacant(none) => none.insert(Book::default()),
        };
        book.endpoints.entry(endpoint).or_default().add(past);
        if book.endpoints.len() > book.room {
            let target = desired.targets_of(&port.0.service).map(|(_, target, _)| target);
            let lists = target.filter(|target| (&target.name, target.family) == (&port.0, port.1));
            let endpoints: std::collections::BTreeSet<SocketAddr> = lists
                .flat_map(|target| target.endpoints.used().chain(target.endpoints.serving.iter().copied()))
                .collect();
            book.forget_but(|endpoint| endpoints.contains(endpoint));
        }
    }

    /// Takes that of a service port out.
    pub(super) fn take(&mut self, port: &Port) -> Book {
        self.ports.remove(port).unwrap_or_default()
    }

    /// Puts it back.
    pub(super) fn put(&mut self, port: Port, book: Book) {
        if !book.endpoints.is_empty() || book.left != Past::default() {
            self.ports.insert(port, book);
        }
    }
}

/// Whether there is such a service port.
pub(super) fn is_served(desired: &Desired, port: &Port) -> bool {
    desired.targets_of(&port.0.service).any(|(_, target, _)| (&target.name, target.family) == (&port.0, port.1))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::desired::node_view::NodeView;
    use crate::desired::target::ServicePortName;
    use crate::settings::DatapathSettings;
    use crate::state::objects::{Family, ObjectName, Protocol};

    fn port(name: &str) -> Port {
        let service = ObjectName::new("default", name);
        (ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }, Family::V4)
    }

    #[test]
    fn who_has_been_is_forgotten_and_the_sum_is_not() {
        let view = NodeView::new("here".into(), &DatapathSettings::default(), None, &[].into());
        let desired = Desired::new(view);
        let mut books = Books::default();
        for number in 0..10_000_u32 {
            let endpoint = SocketAddr::new(Ipv4Addr::from(number).into(), 80);
            books.add(&desired, &port("web"), endpoint, Past { connections: 1, packets: 2, bytes: 3 });
            assert!(books.ports.values().all(|book| book.endpoints.len() <= KEPT));
        }
        let mut book = books.take(&port("web"));
        book.forget_but(|_| false);
        let Total { connections, packets, bytes, .. } = book.left();
        assert_eq!((connections, packets, bytes), (10_000, 20_000, 30_000));
        for number in 0..10_000 {
            books.add(&desired, &port(&format!("gone-{number}")), ([10, 0, 0, 1], 80).into(), Past::connections(1));
            assert!(books.ports.len() <= KEPT);
        }
    }
}
