//! The command `cargo xtask soak` itself, by runs that are far too short to find a leak: clients ask, everything changes, the
//! proxy is started anew, and what is not level at the end is told.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::path::Path;
use std::process::{Command, Output};

use kubeferry_tests::binary;
use serde_json::Value;

/// Runs it with this binary as the proxy.
fn soak(backend: &str, changes: u64, proxy: &Path, json: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_soak"));
    command.args(["--backend", backend, "--seed", "1", "--grace", "2000"]);
    command.args(["--seconds", "5", "--at-least", &changes.to_string(), "--quiet", "13", "--json"]).arg(json);
    command.env("KUBEFERRY_BIN", proxy).output().unwrap()
}

fn is_level(backend: &str) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("samples.json");
    let output = soak(backend, 20, binary::path().unwrap(), &json);
    let (told, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}\n{complaint}");
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    for client in report["clients"].as_array().unwrap() {
        assert!(client[1]["answered"].as_u64() > Some(0) && client[1]["failed"] == 0, "{client}");
    }
    let did = report["did"].as_object().unwrap();
    assert!(did.keys().any(|what| what.starts_with("proxy ")) && did.len() > 4, "{did:?}");
    let samples = report["samples"].as_array().unwrap();
    assert!(["baseline", "churn", "quiet"].iter().all(|phase| samples.iter().any(|sample| sample["phase"] == *phase)));
    // It is in the table for people, too.
    for level in report["levels"].as_array().unwrap() {
        assert!(told.contains(level["name"].as_str().unwrap()), "{told}");
    }
}

#[test]
fn a_short_run_is_level_on_nftables() {
    is_level("nftables");
}

#[test]
fn a_short_run_is_level_on_ebpf() {
    is_level("ebpf");
}

#[test]
fn what_is_not_level_is_named() {
    let folder = tempfile::tempdir().unwrap();
    // Leaves an interface on the node at every start.
    let proxy = folder.path().join("kubeferry");
    let script =
        "#!/bin/sh\n[ \"$1\" != run ] || ip link add leak$$ type veth peer name kael$$\nexec \"$REAL\" \"$@\"\n";
    std::fs::write(&proxy, script.replace("$REAL", &binary::path().unwrap().display().to_string())).unwrap();
    assert!(Command::new("chmod").arg("+x").arg(&proxy).status().unwrap().success());
    let output = soak("nftables", 1, &proxy, &folder.path().join("samples.json"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("not level: interfaces: "), "{complaint}");
}
