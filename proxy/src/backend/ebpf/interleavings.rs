//! Every order in which a program and the writes can meet. A program reads in steps: the frontend's row, then a slot of its
//! list. Between them any number of writes may be made, of one change or of several, and the process may end and another
//! begin; only one thing cannot: that somebody has waited for the programs ([`Fence`](super::fence::Fence)) while it ran.
//!
//! The writes are those of `diff.rs`, in its order, each whole as the kernel makes it. All pairs and triples of a few small
//! states are tried, with every place where a process may end.

use std::collections::BTreeSet;

use kubeferry_ebpf_common::frontend::draw;
use kubeferry_ebpf_common::{Address, FrontendKey, Slot, TCP};

use super::diff::{InForce, Room, Writes};
use super::laws::{Maps, Write};
use super::rows::{FrontendRow, ServiceRows, Wanted};

/// So few slots that they are soon used again.
const ROOM: Room = Room { frontends: 4, slots: 9, backends: 16, addresses: 4, source_ranges: 4, members: 4 };

/// Two frontends, each nowhere or at one of two services; and the services' lists.
type State = ([Option<u64>; 2], [&'static [u8]; 2]);

/// Endpoints of the first service are 1 to 3, of the second 11 to 13.
const STATES: [State; 9] = [
    ([None, None], [&[], &[]]),
    ([Some(0), None], [&[1], &[]]),
    ([Some(0), None], [&[2], &[]]),
    ([Some(0), Some(0)], [&[1, 2], &[]]),
    ([Some(0), Some(1)], [&[1], &[11]]),
    ([Some(0), Some(1)], [&[2, 3], &[11, 12]]),
    ([Some(1), Some(0)], [&[1], &[12]]),
    ([None, Some(1)], [&[], &[11, 12, 13]]),
    ([Some(1), Some(1)], [&[], &[13]]),
];

fn key(number: usize) -> FrontendKey {
    let address = Address::v4(number as u32 + 1);
    FrontendKey { address, port: 80, protocol: TCP, kind: FrontendKey::ADDRESS }
}

fn endpoint(number: u8) -> Address {
    Address::v4(u32::from(number) << 8)
}

/// What the diff is asked for: everything.
fn wanted(state: &State) -> Wanted {
    let mut wanted = Wanted::default();
    for (number, service) in state.0.iter().enumerate() {
        let row = service.map(|service| FrontendRow { service: service + 1, flags: 0, affinity: 0 });
        wanted.frontends.insert(key(number), row);
        let Some(service) = *service else { continue };
        let slot = |number: &u8| Slot { address: endpoint(*number), port: 8080, weight: 1, ..Slot::default() };
        let list: Vec<Slot> = state.1[service as usize].iter().map(slot).collect();
        let lists = [list.clone(), list.into_iter().take(1).collect()];
        let rows = ServiceRows { lists, draw: draw::LEAST, ..ServiceRows::default() };
        wanted.services.insert(service + 1, rows);
    }
    wanted
}

/// What a frontend may answer in a state: nobody, or one of these of a list.
fn answers(state: &State, number: usize) -> [Vec<Address>; 2] {
    let list = state.0[number].map_or(&[][..], |service| state.1[service as usize]);
    let all: Vec<Address> = list.iter().map(|number| endpoint(*number)).collect();
    [all.clone(), all.into_iter().take(1).collect()]
}

/// The maps after every write, and the states that may have been in force then, whole or in part.
struct History {
    in_force: InForce,
    maps: Maps,
    moments: Vec<(Maps, Vec<State>)>,
    /// Between which moments the programs were waited for: a program that began before has ended after.
    fences: Vec<usize>,
    /// What may be in force now.
    states: Vec<State>,
}

impl History {
    fn new() -> Self {
        let (in_force, maps, states) = (InForce::new(&ROOM), Maps::new(&ROOM), vec![STATES[0]]);
        let moments = vec![(maps.clone(), states.clone())];
        Self { in_force, maps, moments, fences: Vec::new(), states }
    }

    /// A moment as a time: later than 0.
    fn now(&self) -> u64 {
        self.moments.len() as u64 * 2
    }

    /// Waits for the programs.
    fn wait(&mut self) -> u64 {
        self.fences.push(self.moments.len());
        self.now() + 1
    }

    /// Goes to a state, or ends after so many writes. How many there were.
    fn follow(&mut self, to: State, ends_after: Option<usize>) -> usize {
        let mut writes = Writes::default();
        let before = self.in_force.clone();
        let refused = self.in_force.follow(&wanted(&to), &ROOM, self.now(), &mut writes);
        if !refused.is_empty() && before.waits() {
            // As the reconciler does.
            self.in_force = before;
            let ended = self.wait();
            self.in_force.release(ended, |_| true);
            writes = Writes::default();
            self.in_force.follow(&wanted(&to), &ROOM, self.now(), &mut writes);
        }
        self.in_force.drop_unused(&mut writes);
        let all: Vec<Write> = writes.phases().iter().flat_map(Write::of).collect();
        self.states.push(to);
        for write in all.iter().take(ends_after.unwrap_or(usize::MAX)) {
            self.maps.make(*write);
            self.moments.push((self.maps.clone(), self.states.clone()));
        }
        let now = self.now();
        self.in_force.written(now);
        if ends_after.is_none() {
            self.states = vec![to];
        }
        all.len()
    }

    /// Another process begins: it reads the maps, and waits for the programs.
    fn begin(&mut self, waits: bool) {
        self.in_force = self.maps.found().in_force(&ROOM, self.now());
        if waits {
            self.wait();
        }
    }

    /// What a program reads that meets a frontend at any moment, and a slot at that one or any later one.
    fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        for (first, (maps, states)) in self.moments.iter().enumerate() {
            // A fence before the moment of this number lets no program through that met an earlier one.
            let end = self.fences.iter().find(|fence| **fence > first).copied().unwrap_or(self.moments.len());
            for number in 0..2 {
                let Some(row) = maps.frontends.get(&key(number)) else { continue };
                let lists = [(row.cluster_first, row.cluster_count), (row.local_first, row.local_count)];
                for (second, (later, _)) in self.moments[..end].iter().enumerate().skip(first) {
                    for (list, (from, count)) in lists.iter().enumerate() {
                        let slots = &later.slots[*from as usize..(from + count) as usize];
                        let read: Vec<Address> = slots.iter().map(|slot| slot.address).collect();
                        if !states.iter().any(|state| answers(state, number)[list] == read) {
                            violations.push(format!(
                                "frontend {number}, met at moment {first} of {states:?}, reads {read:?} at {second}"
                            ));
                        }
                        if slots.iter().any(|slot| slot.backend == 0) {
                            violations.push(format!("frontend {number}: a slot that is counted nowhere"));
                        }
                    }
                }
            }
        }
        violations
    }

    fn assert_right(&self, what: &str) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{what}: {}", violations.join("\n"));
    }

    /// Whether a slot had more than one endpoint in its time.
    fn uses_again(&self) -> bool {
        let had = |at: usize| {
            let all: BTreeSet<Address> = self.moments.iter().map(|(maps, _)| maps.slots[at].address).collect();
            all.len() > 2
        };
        (0..ROOM.slots).any(had)
    }
}

fn triples() -> impl Iterator<Item = [State; 3]> {
    STATES.into_iter().flat_map(|a| STATES.into_iter().flat_map(move |b| STATES.map(move |c| [a, b, c])))
}

#[test]
fn a_program_meets_the_old_endpoints_or_the_new_ones_whenever_it_comes() {
    let mut again = 0;
    for states in triples() {
        // Somebody else (the sweep) waits for the programs never, between two changes, or as one is being written.
        for fence in 0..4 {
            let mut history = History::new();
            let mut ended = 0;
            for (number, state) in states.into_iter().enumerate() {
                if fence == 1 && number == 1 {
                    ended = history.wait();
                }
                history.in_force.release(ended, |_| true);
                let before = history.moments.len();
                history.follow(state, None);
                if fence == 2 + number {
                    // It began in the middle of the writes that were just made.
                    let middle = usize::midpoint(before, history.moments.len());
                    history.fences.push(middle);
                    ended = middle as u64 * 2 + 1;
                }
            }
            history.assert_right(&format!("{states:?}, fence {fence}"));
            again += usize::from(history.uses_again());
        }
    }
    assert!(again > 100, "slots are used again: {again}");
}

#[test]
fn nor_where_a_process_ends_at_any_write_and_another_begins() {
    let mut ends = 0;
    for [a, b, c] in triples() {
        let mut whole = History::new();
        whole.follow(a, None);
        let writes = whole.follow(b, None);
        for after in 0..=writes {
            let mut history = History::new();
            history.follow(a, None);
            history.follow(b, Some(after));
            history.begin(true);
            history.follow(c, None);
            history.assert_right(&format!("{a:?} {b:?} {c:?} ended after {after}"));
            assert_eq!(history.in_force.frontends, history.maps.frontends);
            ends += 1;
        }
    }
    assert!(ends > 1_000);
}

#[test]
fn a_slot_that_is_used_again_too_early_is_seen() {
    // The same, without waiting: what a failed write or an end has left is used again at once.
    let seen = triples().any(|[a, b, c]| {
        let mut history = History::new();
        history.follow(a, None);
        history.follow(b, None);
        history.begin(false);
        history.follow(c, None);
        !history.violations().is_empty()
    });
    assert!(seen);
}
