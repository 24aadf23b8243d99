//! A server that cannot be reached, or refuses: what is said, and that it is got over.

use std::process::Output;

use kubeferry_tests::apiserver::{ApiServer, Fault, Resource};

use crate::node::{Node, service};

/// The one line, after what it has logged, that a command that failed has said last.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{output:?}");
    let said: Vec<_> = text.lines().skip_while(|line| !line.starts_with("kubeferry: ")).collect();
    assert_eq!(said.len(), 1, "not one line:\n{text}");
    said.concat()
}

fn logged(node: &Node, words: &[&str]) {
    let has_all = || node.log().lines().any(|line| words.iter().all(|word| line.contains(word))).then_some(());
    node.until(&format!("a line of the log with {words:?}"), has_all);
}

#[test]
fn an_unreachable_server_is_named_and_tried_again() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.server.fault(Fault::Down);
    let url = node.server.url();
    let plan = complaint(&node.output(node.command("plan").args(["--server", &url])));
    assert!(plan.contains("cannot reach the API server"), "{plan}");
    let once = complaint(&node.output(node.command("run").args(["--once", "--server", &url])));
    assert!(once.contains("cannot reach the API server"), "{once}");
    node.run();
    logged(&node, &["cannot reach the API server"]);
    assert!(!node.has_table());
    node.server.fault(Fault::Up);
    node.expect("the server is there now", &["10.96.0.1:80"]);
}

#[test]
fn once_brings_the_rows_into_force_and_ends() {
    let node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let once = node.output(node.command("run").args(["--once", "--server", &node.server.url()]));
    assert!(once.status.success(), "{once:?}");
    node.expect("once", &["10.96.0.1:80"]);
}

#[test]
fn an_unknown_token_is_said_to_be() {
    let mut node = Node::with_tls();
    let kubeconfig = node.server.kubeconfig_with_token("wrong").unwrap().display().to_string();
    let plan = complaint(&node.output(node.command("plan").args(["--kubeconfig", &kubeconfig])));
    assert!(plan.contains("401") && plan.contains("token"), "{plan}");
    let once = complaint(&node.output(node.command("run").args(["--once", "--kubeconfig", &kubeconfig])));
    assert!(once.contains("401") && once.contains("token"), "{once}");
    node.start(&["--kubeconfig", &kubeconfig]);
    logged(&node, &["401", "token"]);
    assert!(!node.has_table());
}

#[test]
fn missing_rights_are_named_and_waited_for() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.server.fault_on(Resource::EndpointSlice, Fault::Status(403, usize::MAX));
    let url = node.server.url();
    let plan = complaint(&node.output(node.command("plan").args(["--server", &url])));
    assert!(["403", "endpointslices", "system:node-proxier"].iter().all(|word| plan.contains(word)), "{plan}");
    node.run();
    logged(&node, &["403", "endpointslices", "system:node-proxier"]);
    assert!(!node.has_table());
    node.server.no_faults();
    node.expect("the right has been given", &["10.96.0.1:80"]);
}

#[test]
fn a_server_of_another_authority_is_not_believed() {
    let node = Node::with_tls();
    let other = node.namespace.run(ApiServer::start_tls).unwrap().unwrap();
    let (kubeconfig, url) = (node.server.kubeconfig(), other.url());
    let mut command = node.command("plan");
    command.arg("--kubeconfig").arg(kubeconfig).args(["--server", &url]);
    let plan = complaint(&node.output(&mut command));
    assert!(plan.contains("certificate"), "{plan}");
    assert!(other.requests().is_empty());
}
