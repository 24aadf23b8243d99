//! What can be made to go wrong.

use std::time::Duration;

use super::resource::Resource;
use super::state::Verb;

/// A way to go wrong. What is for a number of requests hits lists and watches alike, the next that come; what is open goes
/// on unless [`Fault::CutConnections`] ends it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Every open connection is closed, in the middle of whatever it carries.
    CutConnections,
    /// The history is forgotten and every open watch is told so by an ERROR event with code 410; lists and watches that
    /// ask to go on from before are refused with 410.
    Gone410,
    /// This many requests are refused with this code, as an API server words it.
    Status(u16, usize),
    /// This many requests are answered with something that is no JSON, with code 200.
    Garbage(usize),
    /// This many requests are answered in full length announced but half length sent; then the connection is closed. A
    /// watch gets half of its first event.
    HalfJson(usize),
    /// Of this many watches the first event is half there, as a line; what comes after it is whole.
    HalfLine(usize),
    /// This many lists have no objects.
    EmptyList(usize),
    /// This many lists lack the first half of their objects, by namespace and name.
    PartOfList(usize),
    /// This many lists tell of this version, which is over: see [`ApiServer::version`](super::ApiServer::version).
    OldList(u64, usize),
    /// This many watches end before they tell anything.
    ShortWatch(usize),
    /// From now on answers come in pieces of 256 bytes with this delay before each; zero ends it.
    Slow(Duration),
    /// Connections are refused and the open ones closed.
    Down,
    /// Connections are accepted again, at the same port.
    Up,
}

/// How one request goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrong {
    Status(u16),
    Garbage,
    HalfJson,
    HalfLine,
    EmptyList,
    PartOfList,
    OldList(u64),
    ShortWatch,
}

impl Wrong {
    /// Whether requests of this sort can go wrong so.
    fn hits(self, verb: Verb) -> bool {
        match self {
            Self::Status(_) | Self::Garbage | Self::HalfJson => true,
            Self::EmptyList | Self::PartOfList | Self::OldList(_) => verb == Verb::List,
            Self::ShortWatch | Self::HalfLine => verb == Verb::Watch,
        }
    }
}

/// The faults that wait for requests.
#[derive(Debug, Default)]
pub(super) struct Faults {
    waiting: Vec<(Option<Resource>, Wrong, usize)>,
}

impl Faults {
    /// Adds a fault for requests about `resource`, or all; ignores those that are not about requests.
    pub fn add(&mut self, resource: Option<Resource>, fault: Fault) {
        let (wrong, times) = match fault {
            Fault::Status(code, times) => (Wrong::Status(code), times),
            Fault::Garbage(times) => (Wrong::Garbage, times),
            Fault::HalfJson(times) => (Wrong::HalfJson, times),
            Fault::HalfLine(times) => (Wrong::HalfLine, times),
            Fault::EmptyList(times) => (Wrong::EmptyList, times),
            Fault::PartOfList(times) => (Wrong::PartOfList, times),
            Fault::OldList(version, times) => (Wrong::OldList(version), times),
            Fault::ShortWatch(times) => (Wrong::ShortWatch, times),
            Fault::CutConnections | Fault::Gone410 | Fault::Slow(_) | Fault::Down | Fault::Up => return,
        };
        self.waiting.push((resource, wrong, times));
    }

    /// What goes wrong with a request, which is counted.
    pub fn take(&mut self, resource: Resource, verb: Verb) -> Option<Wrong> {
        self.waiting.retain(|(_, _, times)| *times > 0);
        let hits = |only: &Option<Resource>| only.map_or(resource != Resource::Event, |only| only == resource);
        let (_, wrong, times) = self.waiting.iter_mut().find(|(only, wrong, _)| hits(only) && wrong.hits(verb))?;
        *times -= 1;
        Some(*wrong)
    }

    /// Requests that are still to go wrong.
    pub fn left(&self) -> usize {
        self.waiting.iter().fold(0, |sum, (_, _, times)| sum.saturating_add(*times))
    }

    /// From now on nothing goes wrong.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}
