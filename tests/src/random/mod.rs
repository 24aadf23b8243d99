//! Random clusters: a model and packets that disagree on one of them are a bug, which is shown as a small case.

mod cluster;
mod rng;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use cluster::Group;
pub use rng::Rng;

use crate::executors::{Disagreement, Source, answers, run};
use crate::flows::{Case, Expect, Node, PODS, Row, Step, UPLINK, with_node};

/// Flows asked about in each state.
const FLOWS: usize = 60;

/// A random cluster: the node, and states that follow one another.
#[derive(Clone, Debug)]
pub struct Scenario {
    seed: u64,
    node: Node,
    service_cidr: bool,
    states: Vec<Vec<Group>>,
}

impl Scenario {
    /// Makes up the cluster of a seed: the same for the same seed.
    ///
    /// # Errors
    /// The generator makes something that the harness does not read: a fault of this file.
    pub fn new(seed: u64) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let node = node(&mut rng)?;
        let service_cidr = rng.chance(80);
        let mut groups: Vec<_> = (0..1 + rng.below(6)).map(|number| Group::new(&mut rng, number)).collect();
        let mut states = vec![groups.clone()];
        for state in 1..3 {
            groups.retain(|_| rng.chance(85));
            groups = groups.iter().map(|group| group.changed(&mut rng)).collect();
            groups.push(Group::new(&mut rng, 6 + state));
            states.push(groups.clone());
        }
        Ok(Self { seed, node, service_cidr, states })
    }

    /// Asks the model about flows of every state, and everything else whether it agrees.
    ///
    /// # Errors
    /// The harness itself fails.
    pub fn run(&self) -> Result<Vec<Disagreement>> {
        let mut case = Case { name: format!("seed {}", self.seed), node: self.node.clone(), steps: Vec::new() };
        let source = Source::new(&case)?;
        let mut rng = Rng::new(self.seed);
        for groups in &self.states {
            let mut step = Step { manifests: self.manifests(groups)?, rows: Vec::new() };
            source.write(&step)?;
            step.rows = flows(&mut rng, groups, &self.node)?;
            let told = answers(&source, &step)?;
            for (row, answer) in step.rows.iter_mut().zip(told) {
                let loyal = groups.iter().any(|group| {
                    group.has_affinity()
                        && answer
                            .service
                            .strip_prefix(&group.name())
                            .is_some_and(|rest| !rest.starts_with(char::is_numeric))
                });
                row.expect = answer.expectation(row, loyal);
            }
            case.steps.push(step);
        }
        run(&case)
    }

    /// The smallest scenario that still shows a disagreement: states and Services are left out one by one.
    ///
    /// # Errors
    /// The harness itself fails.
    pub fn shrunk(mut self) -> Result<Self> {
        loop {
            let mut smaller = Vec::new();
            for state in 0..self.states.len() {
                if self.states.len() > 1 {
                    let mut without = self.clone();
                    without.states.remove(state);
                    smaller.push(without);
                }
                for group in 0..self.states[state].len() {
                    let mut without = self.clone();
                    without.states[state].remove(group);
                    smaller.push(without);
                }
            }
            let mut found = None;
            for scenario in smaller {
                if !scenario.run()?.is_empty() {
                    found = Some(scenario);
                    break;
                }
            }
            match found {
                Some(scenario) => self = scenario,
                None => return Ok(self),
            }
        }
    }

    /// The node and the states, to read.
    ///
    /// # Errors
    /// An object cannot be written as YAML: a fault of this file.
    pub fn describe(&self) -> Result<String> {
        let mut text = format!("{:?}\n", self.node);
        for (number, groups) in self.states.iter().enumerate() {
            text += &format!("\n# state {}\n", number + 1);
            for object in groups.iter().flat_map(Group::objects) {
                text += &format!("{}---\n", serde_yaml_ng::to_string(object)?);
            }
        }
        Ok(text)
    }

    fn manifests(&self, groups: &[Group]) -> Result<String> {
        let mut objects: Vec<_> = groups.iter().flat_map(Group::objects).cloned().collect();
        if self.service_cidr {
            objects.push(json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": "kubernetes"},
                "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/64"]},
            }));
        }
        with_node(&self.node, &objects.iter().map(|object| format!("---\n{object}\n")).collect::<String>())
    }
}

fn node(rng: &mut Rng) -> Result<Node> {
    let mut node = json!({
        "name": "worker-1",
        "addresses": {"eth0": ["192.0.2.1", "2001:db8:2::1"], "eth1": ["192.0.2.2", "2001:db8:2::2"]},
        "pod-cidrs": ["10.244.1.0/24", "fd00:10:244:1::/64"],
        "masquerade-all": rng.chance(15),
        "nodeport-addresses": rng.pick(&[vec!["primary"], vec!["0.0.0.0/0", "::/0"], vec!["192.0.2.2/32", "2001:db8:2::2/128"]]),
    });
    if rng.chance(70) {
        node["zone"] = json!(rng.pick(&["a", "b"]));
    }
    let detectors: [Value; 4] = [
        json!({"cluster-cidr": ["10.244.0.0/16", "fd00:10:244::/48"]}),
        json!({"detect-local-mode": "NodeCIDR"}),
        json!({"detect-local-mode": "InterfaceNamePrefix", "pod-interface-name-prefix": "pods"}),
        json!({}),
    ];
    for (key, value) in rng.pick(&detectors).as_object().into_iter().flatten() {
        node[key] = value.clone();
    }
    serde_json::from_value(node).context("the node of a random cluster")
}

/// Flows to the frontends of a state and beside them.
fn flows(rng: &mut Rng, groups: &[Group], node: &Node) -> Result<Vec<Row>> {
    let mut destinations: Vec<_> = groups.iter().flat_map(Group::frontends).collect();
    for (protocol, ip, port) in destinations.clone() {
        if rng.chance(10) {
            destinations.push((protocol, ip.clone(), port + 7));
            destinations.push((rng.pick(&["tcp", "udp", "sctp"]).to_string(), ip, port));
        }
    }
    destinations
        .extend(["10.96.0.99", "fd00:10:96::99", "198.51.100.9"].map(|ip| ("tcp".to_string(), ip.to_string(), 80)));
    let v4 = [
        "10.244.1.7",
        "10.244.1.2",
        "10.244.1.4",
        "10.244.2.1",
        "203.0.113.9",
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.1",
    ];
    let v6 = [
        "fd00:10:244:1::7",
        "fd00:10:244:1::2",
        "fd00:10:244:1::4",
        "fd00:10:244:2::1",
        "2001:db8:113::9",
        "2001:db8:2::1",
        "2001:db8:2::2",
        "2001:db8:51::1",
    ];
    let mut rows = Vec::new();
    for number in 0..FLOWS {
        let (protocol, ip, port) = rng.pick(&destinations).clone();
        let ip: std::net::IpAddr = ip.parse()?;
        let from: std::net::IpAddr = rng.pick(if ip.is_ipv4() { &v4 } else { &v6 }).parse()?;
        let local_pod = ["10.244.1.", "fd00:10:244:1:"].iter().any(|prefix| from.to_string().starts_with(prefix));
        let iif = (!node.holds(from)).then(|| if local_pod { PODS } else { UPLINK }.to_string());
        rows.push(Row {
            place: format!("flow {number}"),
            from,
            from_port: None,
            iif,
            protocol: protocol.parse().map_err(anyhow::Error::msg)?,
            to: (ip, u16::try_from(port)?).into(),
            expect: Expect::None,
        });
    }
    Ok(rows)
}
