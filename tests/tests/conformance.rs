//! Flows that kube-proxy's own tests state, through every executor.

use std::path::PathBuf;

use kubeferry_tests::{conformance, executors};

#[test]
fn kube_proxys_own_flows_hold() {
    let ours = concat!(env!("CARGO_MANIFEST_DIR"), "/conformance/cases.json");
    let path = std::env::var_os("KUBEFERRY_CONFORMANCE").map_or_else(|| PathBuf::from(ours), PathBuf::from);
    let cases = conformance::read(&path).unwrap();
    let mut lines = Vec::new();
    for case in &cases {
        match executors::run(case) {
            Ok(disagreements) => lines.extend(disagreements.iter().map(ToString::to_string)),
            Err(error) => lines.push(format!("{}: {error:#}", case.name)),
        }
    }
    let (count, flows) =
        (cases.len(), cases.iter().flat_map(|case| &case.steps).map(|step| step.rows.len()).sum::<usize>());
    println!("{count} cases, {flows} flows");
    assert!(lines.is_empty(), "{} disagreements\n{}", lines.len(), lines.join("\n"));
}
