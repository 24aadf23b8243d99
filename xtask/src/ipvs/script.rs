//! The arrivals that are put to IPVS: which scheduler, which weights, what happens one after the other.

/// What happens next. Connections have the numbers in which they were opened, endpoints those of IPVS's list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// A connection comes from this address of the client and stays open.
    Open { source: u8 },
    /// A connection is closed by both sides.
    Close(usize),
    /// A connection is reset by the client.
    Reset(usize),
    /// Time goes by until IPVS has forgotten what was reset.
    Rest,
    /// An endpoint's weight changes.
    Weight { endpoint: usize, weight: u32 },
}

/// One virtual service with its endpoints, and what happens to it.
#[derive(Clone, Debug)]
pub struct Case {
    pub scheduler: &'static str,
    pub weights: Vec<u32>,
    /// The script's name.
    pub script: &'static str,
    pub steps: Vec<Step>,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Open { source } => write!(f, "open@{source}"),
            Self::Close(number) => write!(f, "close:{number}"),
            Self::Reset(number) => write!(f, "reset:{number}"),
            Self::Rest => f.write_str("rest"),
            Self::Weight { endpoint, weight } => write!(f, "weight:{endpoint}={weight}"),
        }
    }
}

const OPEN: Step = Step::Open { source: 1 };

/// Schedulers that go by turn, by the number of connections, by a hash.
const TURN: [&str; 2] = ["rr", "wrr"];
const LEAST: [&str; 4] = ["lc", "wlc", "sed", "nq"];
const HASH: [&str; 3] = ["sh", "dh", "mh"];
const WEIGHTS: [&[u32]; 6] = [&[1, 1, 1], &[3, 2, 1], &[1, 5, 2, 2], &[4, 8, 6], &[0, 2, 1], &[7, 1]];

/// Every case, in the order in which they are run.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |scheduler, weights: &[u32], script, steps| {
        cases.push(Case { scheduler, weights: weights.to_vec(), script, steps });
    };
    for scheduler in TURN.into_iter().chain(LEAST) {
        for weights in WEIGHTS {
            add(scheduler, weights, "held", vec![OPEN; 30]);
            add(scheduler, weights, "short", (0..24).flat_map(|number| [OPEN, Step::Close(number)]).collect());
            add(scheduler, weights, "mixed", mixed(60));
        }
        add(scheduler, &[2, 1, 3], "drained", drained());
    }
    for scheduler in LEAST {
        add(scheduler, &[2, 1, 1], "reset", reset());
    }
    for scheduler in ["lc", "wlc"] {
        add(scheduler, &[2, 2], "past", past());
    }
    for scheduler in HASH {
        for weights in [&[1, 1, 1][..], &[3, 2, 1]] {
            let sources = (1..=40).chain(1..=40).map(|source| Step::Open { source });
            add(scheduler, weights, "sources", sources.collect());
        }
    }
    cases
}

/// Connections that stay for long and short times, in no order: always the same one.
fn mixed(opened: usize) -> Vec<Step> {
    let (mut steps, mut open) = (Vec::new(), Vec::new());
    let mut state: usize = 20_261;
    let mut draw = move |below: usize| {
        // The constants of Numerical Recipes; the low bits go round too soon.
        state = (state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)) & 0xffff_ffff;
        (state >> 16) % below
    };
    for number in 0..opened {
        steps.push(OPEN);
        open.push(number);
        while !open.is_empty() && draw(5) < 2 {
            steps.push(Step::Close(open.swap_remove(draw(open.len()))));
        }
    }
    steps
}

/// An endpoint's weight goes to 0 while it has connections, and comes back.
fn drained() -> Vec<Step> {
    let mut steps = vec![OPEN; 8];
    steps.push(Step::Weight { endpoint: 2, weight: 0 });
    steps.extend([OPEN; 8]);
    steps.extend([Step::Close(1), Step::Close(4), Step::Weight { endpoint: 2, weight: 4 }]);
    steps.extend([OPEN; 12]);
    steps
}

/// An endpoint keeps one connection, and many short ones go elsewhere until they weigh as much.
fn past() -> Vec<Step> {
    let short = (1..=260).flat_map(|number| [OPEN, Step::Close(number)]);
    std::iter::once(OPEN).chain(short).collect()
}

/// Connections that are reset count as inactive for a while, and then no more.
fn reset() -> Vec<Step> {
    let mut steps = vec![OPEN; 6];
    steps.extend([0, 2, 3].map(Step::Reset));
    steps.extend([OPEN; 4]);
    steps.push(Step::Rest);
    steps.extend([OPEN; 6]);
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_end_once_and_after_they_began() {
        for case in cases() {
            let (mut opened, mut open) = (0, std::collections::BTreeSet::new());
            for step in &case.steps {
                match step {
                    Step::Open { .. } => {
                        open.insert(opened);
                        opened += 1;
                    }
                    Step::Close(number) | Step::Reset(number) => {
                        assert!(open.remove(number), "{} of {} {}", step, case.scheduler, case.script);
                    }
                    Step::Weight { endpoint, .. } => assert!(*endpoint < case.weights.len()),
                    Step::Rest => {}
                }
            }
        }
    }
}
