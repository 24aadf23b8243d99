//! A random history: a cluster, and what becomes of it step by step.

use anyhow::Result;

use super::cluster::Cluster;
use super::rng::Rng;
use super::{flows, node};
use crate::flows::{Case, Node, RESTART, Row, Step};

/// A random history: the node, and states of the cluster that follow one another.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// It is the same for the same seed.
    pub seed: u64,
    /// The node under test.
    pub node: Node,
    /// At least one.
    pub states: Vec<State>,
}

/// A state of the cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct State {
    /// What is different from the state before, for people.
    pub what: String,
    /// The proxy ends and begins anew before it sees this state.
    pub restart: bool,
    /// The objects.
    pub cluster: Cluster,
    /// What is asked of it.
    pub flows: Vec<Row>,
}

impl Scenario {
    /// Makes up the history of a seed: so many states, and so many flows in each.
    ///
    /// # Errors
    /// The generator makes something that the harness does not read: a fault of this module.
    pub fn new(seed: u64, states: usize, count: usize) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let node = node::node(&mut rng)?;
        let mut cluster = Cluster::new(&mut rng, &node);
        let flows = flows::flows(&mut rng, (0, count), &cluster, &Cluster::default(), &node)?;
        let first = State { what: "the beginning".to_owned(), restart: false, cluster: cluster.clone(), flows };
        let mut history = vec![first];
        while history.len() < states {
            let before = cluster.clone();
            let mut what = Vec::new();
            if history.len() > 2 && rng.chance(6) {
                let back = 2 + rng.below(2.min(history.len() - 2));
                cluster = history[history.len() - back].cluster.clone();
                what.push(format!("as it was {} steps ago", back - 1));
            } else {
                let changes = *rng.pick(&[1, 1, 1, 1, 1, 1, 2, 2, 3, 12]);
                what.extend((0..changes).map(|_| cluster.change(&mut rng)));
            }
            let restart = rng.chance(8);
            let flows = flows::flows(&mut rng, (history.len(), count), &cluster, &before, &node)?;
            history.push(State { what: what.join("; "), restart, cluster: cluster.clone(), flows });
        }
        Ok(Self { seed, node, states: history })
    }

    /// The same as a case of the flow table; what becomes of its rows is still open.
    ///
    /// # Errors
    /// As [`Cluster::manifests`].
    pub fn case(&self) -> Result<Case> {
        let step = |state: &State| {
            let marker = if state.restart { format!("{RESTART}\n") } else { String::new() };
            Ok(Step { manifests: marker + &state.cluster.manifests()?, rows: state.flows.clone() })
        };
        let steps = self.states.iter().map(step).collect::<Result<_>>()?;
        Ok(Case { name: format!("seed {}", self.seed), node: self.node.clone(), steps })
    }
}
