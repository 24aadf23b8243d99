//! Whose turn it is where more Events wait than may be posted: the namespaces come one after the other, and of one namespace who waits
//! longest. What is wrong in one, however much, keeps nobody from being told of what is wrong in another.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::limiter::{AGAIN, BURST, Key};

/// Who is not reported again for so long waits no more. What stays wrong is reported every 10 s, or every `syncPeriod`.
const WAITS: Duration = Duration::from_secs(60);
/// How often those are looked for.
const CLEANED: Duration = Duration::from_secs(10);
/// Of those who wait, no more than this are remembered in all; but of each namespace as many as may be posted at once.
const REMEMBERED: usize = 10_000;

/// Who waits.
#[derive(Debug)]
pub(super) struct Turns {
    namespaces: HashMap<Arc<str>, Namespace>,
    /// How many wait, of all namespaces.
    waiting: usize,
    /// The last number of a place or a turn.
    last: u64,
    cleaned: Instant,
}

#[derive(Debug)]
struct Namespace {
    /// The number of its last turn; 0: it has had none.
    turn: u64,
    /// When it was.
    at: Instant,
    /// Who waits, in the order in which they came, and when they were last reported.
    waiting: BTreeMap<u64, (Key, Instant)>,
    /// Their places in that order.
    places: HashMap<Key, u64>,
}

impl Turns {
    /// Nobody waits.
    pub(super) fn new(now: Instant) -> Self {
        Self { namespaces: HashMap::new(), waiting: 0, last: 0, cleaned: now }
    }

    /// How many of those who wait come before this one; [`BURST`]: so many or more.
    pub(super) fn before(&self, key: &Key) -> u32 {
        let (name, most) = (key.0.namespace(), BURST as usize);
        let own = self.namespaces.get(name);
        let of_own = own.map_or(0, |own| match own.places.get(key) {
            Some(place) => own.waiting.range(..place).take(most).count(),
            None => own.waiting.len(),
        });
        let turn = (own.map_or(0, |own| own.turn), name);
        let mut before = of_own;
        for (other, of) in self.namespaces.iter().filter(|(other, _)| ***other != *name) {
            if before >= most {
                break;
            }
            // One in each round, up to the round in which this one comes.
            let rounds = of_own + usize::from((of.turn, &**other) < turn);
            before += of.waiting.len().min(rounds);
        }
        u32::try_from(before).map_or(BURST, |before| before.min(BURST))
    }

    /// This one waits from now on, if it has not before; where there is no room, it is not remembered.
    pub(super) fn waits(&mut self, now: Instant, key: &Key) {
        let waiting = self.waiting;
        self.last += 1;
        let place = self.last;
        let namespace = self.namespace(now, key);
        if let Some((_, reported)) = namespace.places.get(key).and_then(|place| namespace.waiting.get_mut(place)) {
            *reported = now;
        } else if waiting < REMEMBERED || namespace.waiting.len() < BURST as usize {
            namespace.waiting.insert(place, (key.clone(), now));
            namespace.places.insert(key.clone(), place);
            self.waiting += 1;
        }
    }

    /// This one has had its turn.
    pub(super) fn had(&mut self, now: Instant, key: &Key) {
        self.last += 1;
        let turn = self.last;
        let namespace = self.namespace(now, key);
        (namespace.turn, namespace.at) = (turn, now);
        if let Some(place) = namespace.places.remove(key) {
            namespace.waiting.remove(&place);
            self.waiting -= 1;
        }
    }

    /// Forgets who waits no more, once in a while.
    pub(super) fn clean(&mut self, now: Instant) {
        if now - self.cleaned < CLEANED {
            return;
        }
        self.cleaned = now;
        self.waiting = 0;
        self.namespaces.retain(|_, namespace| {
            namespace.waiting.retain(|_, (_, reported)| now - *reported < WAITS);
            let Namespace { waiting, places, .. } = namespace;
            places.retain(|_, place| waiting.contains_key(place));
            self.waiting += waiting.len();
            !waiting.is_empty() || now - namespace.at < AGAIN
        });
    }

    fn namespace(&mut self, now: Instant, key: &Key) -> &mut Namespace {
        let new = || Namespace { turn: 0, at: now, waiting: BTreeMap::new(), places: HashMap::new() };
        self.namespaces.entry(key.0.namespace().into()).or_insert_with(new)
    }
}
