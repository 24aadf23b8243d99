//! By count: lc, wlc, sed and nq, step by step against their definition, with long and short connections.

use super::counted::{By, World, dice};
use super::web::{Connection, Web, number};

/// How one of these schedulers chooses, as ipvsadm(8) has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The fewest active connections for its weight: lc (which knows no weights) and wlc.
    Least,
    /// The shortest expected delay: (active connections + 1) / weight.
    Shortest,
    /// The first idle one, if there is one; otherwise as [`Kind::Shortest`].
    NeverQueue,
}

/// What is to happen. Ties go to the first after the last chosen one, in the order of addresses.
#[derive(Clone, Debug)]
struct Model {
    kind: Kind,
    weights: Vec<u64>,
    active: Vec<u64>,
    /// The one after the last chosen one.
    next: usize,
}

impl Model {
    fn new(kind: Kind, weights: &[u64]) -> Self {
        Self { kind, weights: weights.to_vec(), active: vec![0; weights.len()], next: 0 }
    }

    /// What a connection more costs an endpoint, without its weight.
    fn cost(&self, at: usize) -> u64 {
        self.active[at] + u64::from(self.kind != Kind::Least)
    }

    fn choose(&self) -> usize {
        let count = self.weights.len();
        let turn = || (0..count).map(|step| (self.next + step) % count);
        if self.kind == Kind::NeverQueue
            && let Some(idle) = turn().find(|at| self.active[*at] == 0)
        {
            return idle;
        }
        // Of equals, the first.
        turn().min_by_key(|at| Fraction(self.cost(*at), self.weights[*at])).unwrap()
    }

    fn open(&mut self, at: usize) {
        self.active[at] += 1;
        self.next = at + 1;
    }
}

/// A number over a number above zero.
#[derive(Debug)]
struct Fraction(u64, u64);

impl Ord for Fraction {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0 * other.1).cmp(&(other.0 * self.1))
    }
}

impl PartialOrd for Fraction {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Fraction {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Fraction {}

#[test]
fn the_model_is_the_definition() {
    let sequence = |kind, weights: &[u64], count: usize| -> Vec<usize> {
        let mut model = Model::new(kind, weights);
        let mut open = || {
            let at = model.choose();
            model.open(at);
            at
        };
        (0..count).map(|_| open()).collect()
    };
    assert_eq!(sequence(Kind::Least, &[1, 1, 1], 7), [0, 1, 2, 0, 1, 2, 0], "lc: all alike is in turn");
    // Loads in thirds: 0 0 0, 1/1 0 0 …
    assert_eq!(sequence(Kind::Least, &[1, 3], 8), [0, 1, 1, 1, 0, 1, 1, 1], "wlc: by weight");
    // Delays: 1/1 against 1/4, 2/4, 3/4, 4/4 (a tie, and 0 is next in turn).
    assert_eq!(sequence(Kind::Shortest, &[1, 4], 6), [1, 1, 1, 0, 1, 1], "sed: the strong one first");
    // Both idle: in turn; then delays 2/1 against 2/4, 3/4, 4/4 …
    assert_eq!(sequence(Kind::NeverQueue, &[1, 4], 6), [0, 1, 1, 1, 1, 1], "nq: nobody idles");
}

const STEPS: u64 = 36;

/// Long and short connections by one way in one family; each has to get the endpoint that the definition says.
fn follow(world: &World, by: By, v6: bool, kind: Kind, weights: &[u64]) {
    let mut model = Model::new(kind, weights);
    let mut roll = dice(STEPS + u64::from(v6));
    let mut open: Vec<(u64, Connection)> = Vec::new();
    for step in 0..STEPS {
        let (over, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(|(until, _)| *until <= step);
        open = rest;
        if !over.is_empty() {
            for (_, connection) in over {
                model.active[usize::from(number(connection.endpoint)) - 1] -= 1;
                connection.close();
            }
            world.until_open(model.active.iter().sum());
        }
        let connection = world.open(by, v6);
        let chosen = usize::from(number(connection.endpoint)) - 1;
        if step == 0 {
            // Whose turn it is nobody knows yet.
            let fair = (0..weights.len()).any(|next| Model { next, ..model.clone() }.choose() == chosen);
            assert!(fair, "{model:?} cannot choose {chosen}");
        } else {
            assert_eq!(chosen, model.choose(), "{by:?}, v6 {v6}, step {step}: {model:?}");
        }
        model.open(chosen);
        let last = if step % 3 == 0 { 12 + roll(STEPS) } else { 1 + roll(4) };
        open.push((step + last, connection));
    }
    world.until_active(v6, &model.active);
    drop(open);
    world.until_active(v6, &vec![0; weights.len()]);
}

/// All schedulers with their weights, by one way.
fn follow_all(world: &World, by: By) {
    let plain = [1, 1, 1, 1];
    for (scheduler, kind, weights, counts) in [
        ("lc", Kind::Least, [4, 1, 2, 1], plain),
        ("wlc", Kind::Least, [4, 1, 2, 3], [4, 1, 2, 3]),
        ("sed", Kind::Shortest, [2, 1, 4, 3], [2, 1, 4, 3]),
        ("nq", Kind::NeverQueue, [1, 2, 5, 1], [1, 2, 5, 1]),
        ("sed", Kind::Shortest, [1; 4], plain),
    ] {
        world.change_now(&Web::new(scheduler, &weights));
        for v6 in [false, true] {
            follow(world, by, v6, kind, &counts);
        }
    }
    assert_eq!(world.recounted(), 0, "{by:?}: a count was wrong");
}

#[test]
fn packets_get_whom_the_definition_says() {
    follow_all(&World::start(&Web::new("random", &[1; 4]), &["--socket-lb", "off", "--xdp", "off"]), By::Packets);
}

#[test]
fn sockets_get_whom_the_definition_says() {
    follow_all(&World::start(&Web::new("random", &[1; 4]), &[]), By::Socket);
}

#[test]
fn frames_at_xdp_get_whom_the_definition_says() {
    follow_all(&World::start_with_xdp(&Web::new("random", &[1; 4])), By::Xdp);
}
