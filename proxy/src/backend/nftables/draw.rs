//! How a slot of a list is drawn, and which endpoint each slot is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use crate::desired::target::{Frontend, ServicePortName, Target};
use crate::scheduler::slots::slots;
use crate::scheduler::{HashKey, Scheduler};
use crate::state::objects::{Family, Protocol};

use super::chains::{Chain, KNOWN_OFFSET, LOCAL_OFFSET, List};
use super::rows::{Key, Part, Rows, Value};

/// How a pick chain draws a slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Draw {
    /// Any, with the same probability: `numgen random`.
    Random,
    /// By a hash of the packet: `jhash`.
    Hash(Hashed),
    /// The next one of the service port's turn: `numgen inc`. The kernel keeps where the turn is in the expression itself,
    /// so two services that shared a chain would take one turn: each service port has chains of its own, and all of its
    /// frontends go to the same.
    Turn(Turn),
}

/// What of a packet is hashed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Hashed {
    /// The source address.
    Source,
    /// The source address and port.
    SourceAndPort,
    /// The destination address.
    Destination,
}

/// Whose turn it is: a service port's. Its two lists take turns of their own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Turn {
    /// The family.
    pub family: Family,
    /// The protocol of the service port.
    pub protocol: Protocol,
    /// A digest of the service port's name.
    pub identity: u64,
}

impl Turn {
    /// The turn of a service port. Two with one identity (one chance in 2^64) would share their endpoints, so it is a hash
    /// (SipHash) for which nobody can find a Service whose identity is another's, as they could for FNV-1a. It need not
    /// be the same in another build: turns begin anew then.
    pub fn of(service_port: &ServicePortName, family: Family) -> Self {
        let mut hasher = DefaultHasher::new();
        service_port.hash(&mut hasher);
        let digest = hasher.finish();
        // Two numbers of a key: see `client_number` for the greatest that a key can hold.
        let half = |bits: u64| u64::from((bits as u32).min(u32::MAX - 1));
        Self { family, protocol: service_port.protocol, identity: half(digest >> 32) << 32 | half(digest) }
    }

    /// The identity as the two numbers that keys hold.
    pub fn numbers(&self) -> [u32; 2] {
        [(self.identity >> 32) as u32, self.identity as u32]
    }

    /// The turns, by list, that are taken in the chain of this name or where it goes. A row of `frontend` has the name.
    pub fn taken(name: &str, frontend: &Frontend) -> BTreeSet<(Self, List)> {
        let mut taken = BTreeSet::new();
        let mut names: Vec<_> = name.contains("-turn-").then(|| name.to_owned()).into_iter().collect();
        while let Some(name) = names.pop() {
            let of = |list, word| {
                let digits = name.get(2..)?.strip_prefix(word)?.split('-').next()?;
                let identity = u64::from_str_radix(digits, 16).ok()?;
                Some((Self { family: frontend.family(), protocol: frontend.protocol(), identity }, list))
            };
            taken.extend(of(List::Cluster, "-cluster-turn-").or_else(|| of(List::Local, "-local-turn-")));
            names.extend(Chain::goes_to(&name));
        }
        taken
    }

    /// The list that a slot is in.
    pub fn list(slot: u32) -> List {
        if slot < LOCAL_OFFSET { List::Cluster } else { List::Local }
    }

    /// The keys of the rows of one of its lists, first and last.
    pub fn rows(&self, list: List) -> [Key; 2] {
        let (first, last) = match list {
            List::Cluster => (0, LOCAL_OFFSET - 1),
            List::Local => (LOCAL_OFFSET, u32::MAX),
        };
        [Key::Turn(*self, first), Key::Turn(*self, last)]
    }
}

impl fmt::Display for Draw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random => f.write_str("random"),
            Self::Hash(Hashed::Source) => f.write_str("hash-source"),
            Self::Hash(Hashed::SourceAndPort) => f.write_str("hash-source-port"),
            Self::Hash(Hashed::Destination) => f.write_str("hash-destination"),
            Self::Turn(turn) => write!(f, "turn-{:016x}", turn.identity),
        }
    }
}

/// The slots of one list of a target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drawn {
    /// How one is drawn.
    pub draw: Draw,
    /// The endpoint of each slot.
    endpoints: Vec<SocketAddr>,
    /// Whether it is the same which slot an endpoint has.
    any_order: bool,
}

impl Drawn {
    /// The slots of a list; `None` if there is no endpoint in it (or more than the slots' numbers allow).
    pub fn new(target: &Target, list: List) -> Option<Self> {
        let lists = &target.endpoints;
        let (endpoints, weights) = match list {
            List::Cluster => (&lists.cluster, &lists.cluster_weights),
            List::Local => (&lists.local, &lists.local_weights),
        };
        let slots = slots(&target.schedule, endpoints, weights);
        let mut by_slot: Vec<_> =
            slots.into_iter().filter_map(|index| endpoints.get(index as usize).copied()).collect();
        // One endpoint needs no choice, and no 1,009 rows.
        if by_slot.iter().all(|endpoint| Some(endpoint) == by_slot.first()) {
            by_slot.truncate(1);
        }
        if by_slot.is_empty() || by_slot.len() >= KNOWN_OFFSET as usize {
            return None;
        }
        let draw = match target.schedule.scheduler {
            _ if by_slot.len() == 1 => Draw::Random,
            // Those that count connections are refused, or replaced, before they come here.
            Scheduler::Random | Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq => Draw::Random,
            Scheduler::Rr | Scheduler::Wrr => Draw::Turn(Turn::of(&target.name, target.family)),
            Scheduler::Sh | Scheduler::Mh => Draw::Hash(match target.schedule.hash_key {
                HashKey::Source => Hashed::Source,
                HashKey::SourceAndPort => Hashed::SourceAndPort,
            }),
            Scheduler::Dh => Draw::Hash(Hashed::Destination),
        };
        let any_order = draw == Draw::Random || target.schedule.scheduler == Scheduler::Rr;
        Some(Self { draw, endpoints: by_slot, any_order })
    }

    /// How many slots there are, at least 1.
    pub fn slots(&self) -> u32 {
        u32::try_from(self.endpoints.len()).unwrap_or(LOCAL_OFFSET)
    }

    /// The endpoints by slot. Where the order has no meaning, those that have a slot in `applied` keep it, so that one
    /// endpoint more or less changes one or two rows and not all of them. `key` makes the key of a slot's row.
    pub fn placed(&self, key: impl Fn(u32) -> Key, applied: &Rows) -> Vec<SocketAddr> {
        if !self.any_order {
            return self.endpoints.clone();
        }
        let mut placed: Vec<Option<SocketAddr>> = vec![None; self.endpoints.len()];
        let mut waiting: BTreeMap<SocketAddr, usize> = BTreeMap::new();
        self.endpoints.iter().for_each(|endpoint| *waiting.entry(*endpoint).or_default() += 1);
        let slot_of = |key: Key| match key {
            Key::Of(_, Part::Endpoint(slot)) | Key::Turn(_, slot) => slot,
            _ => 0,
        };
        for (found, value) in applied.range(key(0)..key(self.slots())) {
            if let Value::Endpoint(endpoint) = value
                && let Some(count) = waiting.get_mut(endpoint).filter(|count| **count > 0)
            {
                *count -= 1;
                placed[(slot_of(*found) - slot_of(key(0))) as usize] = Some(*endpoint);
            }
        }
        let mut waiting = waiting.into_iter().flat_map(|(endpoint, count)| std::iter::repeat_n(endpoint, count));
        placed.into_iter().filter_map(|endpoint| endpoint.or_else(|| waiting.next())).collect()
    }
}
