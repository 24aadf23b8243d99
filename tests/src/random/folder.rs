//! A history as a folder of the flow table.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::scenario::Scenario;
use crate::executors::live::Live;
use crate::flows::{Case, Node, RESTART};

/// Writes the folder `NAME` below another, ready for `tests/flows`; what becomes of its rows is what the model says.
///
/// # Errors
/// It cannot be written, or cannot be read again.
pub fn write(scenario: &Scenario, below: &Path, name: &str, why: &str) -> Result<PathBuf> {
    let folder = below.join(name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let put = |file: &str, text: &str| fs::write(folder.join(file), text).with_context(|| file.to_owned());
    put("node.yaml", &node_file(&scenario.node)?)?;
    let case = scenario.case()?;
    let model = Live::new(&case, &[])?;
    for ((number, state), step) in (1..).zip(&scenario.states).zip(&case.steps) {
        let infix = if number == 1 { String::new() } else { format!(".{number}") };
        let mut step = step.clone();
        model.expect(&mut step)?;
        let marker = if state.restart { format!("{RESTART}\n") } else { String::new() };
        let usual = |object: &&Value| object["kind"] != "Node" || **object != scenario.node.object();
        let mut manifests = String::new();
        for object in state.cluster.objects().filter(usual) {
            manifests += &format!("---\n{}", serde_yaml_ng::to_string(object)?);
        }
        put(&format!("cluster{infix}.yaml"), &format!("{marker}{manifests}"))?;
        let comment: String = why.lines().map(|line| format!("# {line}\n")).collect();
        let rows: String = step.rows.iter().map(|row| format!("{row}\n")).collect();
        put(&format!("flows{infix}.txt"), &format!("{}{rows}", if number == 1 { comment } else { String::new() }))?;
    }
    Case::read(&folder)?;
    Ok(folder)
}

/// `node.yaml`.
fn node_file(node: &Node) -> Result<String> {
    let mut fields = json!({"name": node.name, "addresses": node.addresses, "pod-cidrs": node.pod_cidrs});
    let mut put = |field: &str, value: Value| {
        if value != Value::Null && value != json!([]) && value != json!(false) {
            fields[field] = value;
        }
    };
    put("masquerade-all", json!(node.masquerade_all));
    put("nodeport-addresses", json!(node.nodeport_addresses));
    put("maglev-table-size", json!(node.maglev_table_size));
    put("scheduler", json!(node.scheduler));
    put("cluster-cidr", json!(node.cluster_cidr));
    put("detect-local-mode", json!(node.detect_local_mode));
    put("pod-interface-name-prefix", json!(node.pod_interface_name_prefix));
    Ok(serde_yaml_ng::to_string(&fields)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flows::Expect;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let below = tempfile::tempdir().unwrap();
        for seed in 0..3 {
            let scenario = Scenario::new(seed, 4, 10).unwrap();
            let folder = write(&scenario, below.path(), &format!("s{seed}"), "why\nand what").unwrap();
            let (read, case) = (Case::read(&folder).unwrap(), scenario.case().unwrap());
            assert_eq!(read.node, scenario.node);
            assert_eq!(read.steps.len(), 4);
            for (read, written) in read.steps.iter().zip(&case.steps) {
                assert_eq!(read.restarts(), written.restarts());
                assert_eq!(read.rows.len(), written.rows.len());
                for (read, written) in read.rows.iter().zip(&written.rows) {
                    let mut wanted = written.clone();
                    (wanted.expect, wanted.place) = (read.expect.clone(), read.place.clone());
                    // A source port is written only where the row's answer is one endpoint.
                    if !matches!(&read.expect, Expect::Endpoints { endpoints, affinity: false, .. } if endpoints.len() == 1)
                    {
                        wanted.from_port = None;
                    }
                    assert_eq!(*read, wanted);
                }
            }
        }
    }
}
