//! A disagreement made small: what it does not need is left out, as long as the same executor goes on disagreeing. States
//! first, then rows, objects, fields of objects, and settings of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::agree::{Agreement, Counts, Run, everything};
use super::scenario::Scenario;
use crate::executors::Disagreement;
use crate::executors::live::WORLDS;
use crate::flows::Step;

/// The world that an executor looks at.
fn world(executor: &str) -> &'static str {
    match executor {
        "nft-rows" | "packets" => WORLDS[0],
        "tc-rows" | "ebpf" | "test-run" => WORLDS[1],
        "xdp-rows" | "xdp" | "test-run-xdp" => WORLDS[2],
        _ => WORLDS[3],
    }
}

/// The smallest history found, within this time, in which an executor that disagrees goes on doing so; with what disagrees.
/// `spoil` as in [`Run`].
///
/// # Errors
/// The harness itself fails.
pub fn shrink(
    scenario: &Scenario,
    found: &Agreement,
    patience: Duration,
    spoil: &dyn Fn(&mut Step),
) -> Result<(Scenario, Vec<Disagreement>)> {
    let executors: BTreeSet<_> = found.disagreements.iter().map(|found| found.executor).collect();
    let first = found.disagreements.first().map_or("", |found| found.executor);
    let mut shrinker = Shrinker {
        world: world(first),
        executors,
        end: Instant::now() + patience,
        best: Scenario { states: scenario.states[..found.steps].to_vec(), ..scenario.clone() },
        disagreements: found.disagreements.clone(),
        spoil,
    };
    shrinker.run()?;
    Ok((shrinker.best, shrinker.disagreements))
}

struct Shrinker<'a> {
    world: &'static str,
    executors: BTreeSet<&'static str>,
    end: Instant,
    best: Scenario,
    disagreements: Vec<Disagreement>,
    spoil: &'a dyn Fn(&mut Step),
}

impl Shrinker<'_> {
    fn run(&mut self) -> Result<()> {
        // With everything looked at in each step, it may show earlier.
        self.attempt(&self.best.clone())?;
        loop {
            let before = self.best.clone();
            self.states()?;
            self.rows()?;
            self.objects()?;
            self.fields()?;
            self.settings()?;
            if self.best == before || Instant::now() >= self.end {
                return Ok(());
            }
        }
    }

    /// Takes a smaller history if it still disagrees.
    fn attempt(&mut self, smaller: &Scenario) -> Result<bool> {
        if Instant::now() >= self.end || smaller.states.is_empty() {
            return Ok(false);
        }
        let goes_on = || Instant::now() < self.end;
        let how = Run { worlds: &[self.world], look: everything, goes_on: &goes_on, spoil: self.spoil };
        let agreement = smaller.run(&how, &mut Counts::default())?;
        let same = agreement.disagreements.iter().any(|found| self.executors.contains(found.executor));
        if same {
            self.best = Scenario { states: smaller.states[..agreement.steps].to_vec(), ..smaller.clone() };
            self.disagreements = agreement.disagreements;
        }
        Ok(same)
    }

    /// Leaves out runs of states, halves first.
    fn states(&mut self) -> Result<()> {
        let last = self.best.states.len() - 1;
        if last > 0 {
            let alone = Scenario { states: vec![self.best.states[last].clone()], ..self.best.clone() };
            self.attempt(&alone)?;
        }
        let mut length = self.best.states.len() / 2;
        while length > 0 {
            let mut at = 0;
            while at + length < self.best.states.len() {
                let mut smaller = self.best.clone();
                smaller.states.drain(at..at + length);
                if !self.attempt(&smaller)? {
                    at += length;
                }
            }
            length /= 2;
        }
        for at in 0..self.best.states.len() {
            if self.best.states.get(at).is_some_and(|state| state.restart) {
                let mut smaller = self.best.clone();
                smaller.states[at].restart = false;
                self.attempt(&smaller)?;
            }
        }
        Ok(())
    }

    /// Asks only about what disagrees, then about less. A flow table has one row at least.
    fn rows(&mut self) -> Result<()> {
        let shown: String = self.disagreements.iter().map(|found| format!("{}\n", found.what)).collect();
        let mut smaller = self.best.clone();
        let last = smaller.states.len() - 1;
        for (number, state) in smaller.states.iter_mut().enumerate() {
            let named =
                |place: &str| number == last && shown.lines().any(|line| line.starts_with(&format!("{place}: ")));
            let first = state.flows.first().cloned();
            state.flows.retain(|row| named(&row.place));
            if state.flows.is_empty() {
                state.flows.extend(first);
            }
        }
        self.attempt(&smaller)?;
        for state in 0..self.best.states.len() {
            let mut length = self.best.states[state].flows.len() / 2;
            while length > 0 {
                let mut at = 0;
                while self
                    .best
                    .states
                    .get(state)
                    .is_some_and(|state| at + length <= state.flows.len().saturating_sub(1))
                {
                    let mut smaller = self.best.clone();
                    smaller.states[state].flows.drain(at..at + length);
                    if !self.attempt(&smaller)? {
                        at += length;
                    }
                }
                length /= 2;
            }
        }
        Ok(())
    }

    /// Leaves out objects, in all states.
    fn objects(&mut self) -> Result<()> {
        let names: BTreeSet<String> =
            self.best.states.iter().flat_map(|state| state.cluster.entries().keys().cloned()).collect();
        for name in names.iter().filter(|name| !name.starts_with("Node ")) {
            let mut smaller = self.best.clone();
            for state in &mut smaller.states {
                state.cluster.entries_mut().remove(name);
            }
            self.attempt(&smaller)?;
        }
        // In single states.
        for at in 0..self.best.states.len() {
            for name in &names {
                let Some(state) = self.best.states.get(at) else { break };
                if self.best.states.len() > 1
                    && !name.starts_with("Node ")
                    && state.cluster.entries().contains_key(name)
                {
                    let mut smaller = self.best.clone();
                    smaller.states[at].cluster.entries_mut().remove(name);
                    self.attempt(&smaller)?;
                }
            }
        }
        Ok(())
    }

    /// Leaves out fields and entries of lists, wherever the same is in all states.
    fn fields(&mut self) -> Result<()> {
        let mut tried = BTreeSet::new();
        while Instant::now() < self.end {
            let mut all = BTreeMap::new();
            for state in &self.best.states {
                for (name, object) in state.cluster.entries() {
                    places(object, &mut Vec::new(), &mut |path, value| {
                        all.insert((name.clone(), path.to_vec(), value.to_string()), value.clone());
                    });
                }
            }
            let Some((place, value)) = all.into_iter().find(|(place, _)| !tried.contains(place)) else { break };
            let mut smaller = self.best.clone();
            for state in &mut smaller.states {
                if let Some(object) = state.cluster.entries_mut().get_mut(&place.0) {
                    remove(object, &place.1, &value);
                }
            }
            tried.insert(place);
            self.attempt(&smaller)?;
        }
        Ok(())
    }

    fn settings(&mut self) -> Result<()> {
        type Change = fn(&mut crate::flows::Node);
        let changes: [Change; 6] = [
            |node| node.masquerade_all = false,
            |node| node.nodeport_addresses = vec!["primary".to_owned()],
            |node| node.scheduler = None,
            |node| node.maglev_table_size = None,
            |node| {
                node.detect_local_mode = None;
                node.pod_interface_name_prefix = None;
            },
            |node| node.cluster_cidr.clear(),
        ];
        for change in changes {
            let mut smaller = self.best.clone();
            change(&mut smaller.node);
            if smaller != self.best {
                self.attempt(&smaller)?;
            }
        }
        Ok(())
    }
}

/// What belongs to every object and stays.
const KEPT: [&[&str]; 6] =
    [&["apiVersion"], &["kind"], &["metadata"], &["metadata", "name"], &["metadata", "namespace"], &["addressType"]];

/// Every field and entry of an object: where, and what is there.
fn places(value: &Value, path: &mut Vec<String>, tell: &mut dyn FnMut(&[String], &Value)) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, child)| (key.clone(), child)).collect(),
        Value::Array(entries) => entries.iter().map(|child| ("[]".to_owned(), child)).collect(),
        _ => return,
    };
    for (key, child) in children {
        path.push(key);
        if !KEPT.iter().any(|kept| kept.iter().eq(path.iter())) {
            tell(path, child);
        }
        places(child, path, tell);
        path.pop();
    }
}

/// Removes the field at a path, or the entries of a list there, where they are this value.
fn remove(value: &mut Value, path: &[String], gone: &Value) {
    let [key, rest @ ..] = path else { return };
    match value {
        Value::Array(entries) if rest.is_empty() => entries.retain(|entry| entry != gone),
        Value::Array(entries) => entries.iter_mut().for_each(|entry| remove(entry, rest, gone)),
        Value::Object(fields) if rest.is_empty() => {
            let same = fields.get(key) == Some(gone);
            if same {
                fields.remove(key);
            }
        }
        Value::Object(fields) => {
            if let Some(child) = fields.get_mut(key) {
                remove(child, rest, gone);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_entries_are_found_and_removed() {
        let mut object = json!({"kind": "Service", "spec": {"ports": [{"port": 1}, {"port": 2}], "type": "NodePort"}});
        let mut found = Vec::new();
        places(&object, &mut Vec::new(), &mut |path, value| found.push(format!("{} {value}", path.join("."))));
        let expected = ["spec.ports.[].port 1", "spec.type \"NodePort\"", "spec.ports.[] {\"port\":2}"];
        assert!(expected.iter().all(|place| found.iter().any(|found| found == place)), "{found:?}");
        assert!(!found.iter().any(|place| place.starts_with("kind")));
        let path = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
        remove(&mut object, &path("spec.ports.[]"), &json!({"port": 2}));
        remove(&mut object, &path("spec.type"), &json!("ClusterIP"));
        assert_eq!(object["spec"], json!({"ports": [{"port": 1}], "type": "NodePort"}));
        remove(&mut object, &path("spec.type"), &json!("NodePort"));
        assert_eq!(object["spec"], json!({"ports": [{"port": 1}]}));
    }
}
