//! A case: a folder with `cluster.yaml`, `node.yaml` and `flows.txt`, and for later steps `cluster.2.yaml`, `flows.2.txt`
//! and so on: each `cluster.N.yaml` is the whole cluster then in force, applied to the same kernel.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::node::{Node, PODS, UPLINK};
use super::row::{Row, parse};
use crate::packets::Origin;

/// The first line of a step's manifests that says [`Step::restarts`].
pub const RESTART: &str = "# restart";

/// A flow-table case, ready to be run by every executor.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// The folder's name.
    pub name: String,
    /// The node and the settings.
    pub node: Node,
    /// States of the cluster, one after the other.
    pub steps: Vec<Step>,
}

/// One state of the cluster and the rows that hold in it.
#[derive(Clone, PartialEq, Debug)]
pub struct Step {
    /// The manifests, the Node's among them.
    pub manifests: String,
    /// The rows.
    pub rows: Vec<Row>,
}

impl Step {
    /// Whether a proxy that goes on from step to step ends before this one, and begins anew.
    pub fn restarts(&self) -> bool {
        self.manifests.lines().next() == Some(RESTART)
    }
}

impl Case {
    /// Reads the folder of a case.
    ///
    /// # Errors
    /// A file is missing, does not belong there, or does not parse; the message has file and line.
    pub fn read(folder: &Path) -> Result<Self> {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let node = Node::parse(&read(folder, "node.yaml")?).with_context(|| format!("case {name}"))?;
        let mut steps = Vec::new();
        let mut files = BTreeSet::from(["node.yaml".to_string()]);
        for number in 1.. {
            let infix = if number == 1 { String::new() } else { format!(".{number}") };
            let (cluster, flows) = (format!("cluster{infix}.yaml"), format!("flows{infix}.txt"));
            if number > 1 && !folder.join(&cluster).exists() && !folder.join(&flows).exists() {
                break;
            }
            let rows = parse(&flows, &read(folder, &flows)?).with_context(|| format!("case {name}"))?;
            let text = read(folder, &cluster)?;
            let manifests = with_node(&node, &text).with_context(|| format!("case {name}: {cluster}"))?;
            files.extend([cluster, flows]);
            steps.push(Step { manifests, rows });
        }
        for entry in fs::read_dir(folder)? {
            let file = entry?.file_name().to_string_lossy().into_owned();
            ensure!(files.contains(&file), "case {name}: {file} belongs to no step (cluster.yaml, cluster.2.yaml, …)");
        }
        let case = Self { name, node, steps };
        case.check()?;
        Ok(case)
    }

    /// The interfaces of the node, the uplink first: of its own addresses, of its pods, and those that rows name.
    pub fn interfaces(&self) -> Vec<String> {
        let named = self.rows().filter_map(|row| row.iif.clone());
        let mut names: BTreeSet<_> =
            self.node.addresses.keys().chain(self.node.pods.keys()).cloned().chain(named).collect();
        names.insert(PODS.into());
        names.remove(UPLINK);
        std::iter::once(UPLINK.to_string()).chain(names).collect()
    }

    /// The addresses that are reached by another interface than the uplink, with that interface.
    pub fn routes(&self) -> Result<Vec<(IpAddr, String)>> {
        let mut addresses: BTreeSet<IpAddr> = self.local_endpoints()?;
        addresses.extend(self.rows().map(|row| row.from));
        let place = |ip: IpAddr| (ip, self.place(ip, None));
        let routed = addresses.into_iter().filter(|ip| !self.node.holds(*ip)).map(place);
        Ok(routed.filter(|(_, interface)| interface != UPLINK).collect())
    }

    /// Where a row's packets start.
    pub fn origin(&self, row: &Row) -> Origin {
        if row.iif.is_none() && self.node.holds(row.from) {
            return Origin::Node;
        }
        Origin::Cable(self.place(row.from, row.iif.as_deref()))
    }

    /// The interface by which an address is reached: where a row or `pods` says so, else [`PODS`] for the node's pods (its
    /// local endpoints, and addresses of the cluster's or the node's pod ranges), else the uplink.
    fn place(&self, ip: IpAddr, iif: Option<&str>) -> String {
        let by_row = || self.rows().find(|row| row.from == ip && row.iif.is_some()).and_then(|row| row.iif.clone());
        let by_node =
            || self.node.pods.iter().find(|(_, ips)| ips.contains(&ip)).map(|(interface, _)| interface.clone());
        let named = iif.map(ToString::to_string).or_else(by_node).or_else(by_row);
        named.unwrap_or_else(|| {
            let ranges = self.node.cluster_cidr.iter().chain(&self.node.pod_cidrs);
            let remote = self.remote_endpoints().unwrap_or_default().contains(&ip);
            let local = self.local_endpoints().unwrap_or_default().contains(&ip);
            let pod = local || (!remote && ranges.into_iter().any(|range| range.contains(&ip)));
            if pod { PODS.into() } else { UPLINK.into() }
        })
    }

    fn rows(&self) -> impl Iterator<Item = &Row> {
        self.steps.iter().flat_map(|step| &step.rows)
    }

    fn local_endpoints(&self) -> Result<BTreeSet<IpAddr>> {
        self.endpoints(|node| node == Some(&self.node.name))
    }

    fn remote_endpoints(&self) -> Result<BTreeSet<IpAddr>> {
        self.endpoints(|node| node != Some(&self.node.name))
    }

    /// Addresses of the endpoints in all steps whose `nodeName` is as asked.
    fn endpoints(&self, on: impl Fn(Option<&str>) -> bool) -> Result<BTreeSet<IpAddr>> {
        let mut found = BTreeSet::new();
        for step in &self.steps {
            for object in documents(&step.manifests)? {
                for endpoint in object["endpoints"].as_array().into_iter().flatten() {
                    let first = endpoint["addresses"][0].as_str().and_then(|ip| ip.parse::<IpAddr>().ok());
                    found.extend(first.filter(|_| on(endpoint["nodeName"].as_str())));
                }
            }
        }
        Ok(found)
    }

    /// What no single file shows: rows that ask for the impossible.
    fn check(&self) -> Result<()> {
        for row in self.rows() {
            if row.iif.is_some() && self.node.holds(row.from) {
                bail!("case {}: {}: a packet from the node itself comes in by no interface", self.name, row.place);
            }
        }
        Ok(())
    }
}

/// The objects of a file of manifests, lists taken apart.
///
/// # Errors
/// Not YAML.
pub fn documents(manifests: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(manifests) {
        match Value::deserialize(document)? {
            Value::Null => {}
            Value::Object(mut list) if list.contains_key("items") => match list.remove("items") {
                Some(Value::Array(items)) => objects.extend(items),
                _ => bail!("`items` is no list"),
            },
            object => objects.push(object),
        }
    }
    Ok(objects)
}

/// The manifests with our Node among them, unless they have it already.
pub fn with_node(node: &Node, manifests: &str) -> Result<String> {
    let ours = |object: &Value| object["kind"] == "Node" && object["metadata"]["name"] == node.name.as_str();
    if documents(manifests)?.iter().any(ours) {
        return Ok(manifests.to_string());
    }
    Ok(format!("{}\n---\n{}\n", manifests.trim_end(), node.object()))
}

fn read(folder: &Path, file: &str) -> Result<String> {
    let path = folder.join(file);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
