//! `deploy/`: the manifests are what the API server takes, ask for the rights that the binary needs and no other, start it with
//! settings that it knows, and speak of metrics that it has.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod kustomize;
mod manifests;
mod metrics;
mod rbac;
mod recipes;
mod rules;
mod settings;

use std::path::{Path, PathBuf};

use kustomize::Objects;
use serde_json::Value;

/// What somebody applies.
const KUSTOMIZATIONS: [&str; 6] =
    ["overlays/nftables", "overlays/ebpf", "kubeadm/nftables", "kubeadm/ebpf", "kind/nftables", "kind/ebpf"];
/// What somebody adds to one of those.
const COMPONENTS: [&str; 6] =
    ["ebpf", "kubeadm", "monitoring", "monitoring-as-kube-proxy", "node-by-node", "pod-sockets"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().unwrap()
}

/// The objects of a kustomization of `deploy/`.
fn objects(name: &str) -> Objects {
    kustomize::build(&folder().join(name)).unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

/// The objects of a kustomization with more components, as an operator writes it.
fn objects_with(name: &str, components: &[&str]) -> Objects {
    let place = tempfile::Builder::new().prefix("kubeferry-test-").tempdir().unwrap();
    let path = place.path().canonicalize().unwrap();
    // kustomize takes no absolute paths.
    let up = "../".repeat(path.components().count() - 1);
    let deploy = format!("{up}{}", folder().strip_prefix("/").unwrap().display());
    let list: String = components.iter().map(|name| format!("  - {deploy}/components/{name}\n")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {deploy}/{name}\ncomponents:\n{list}"
    );
    std::fs::write(path.join("kustomization.yaml"), text).unwrap();
    kustomize::build(&path).unwrap_or_else(|error| panic!("{name} with {components:?}: {error:#}"))
}

fn daemon_set(objects: &Objects) -> &Value {
    &objects[&("DaemonSet".to_owned(), "kubeferry".to_owned())]
}

fn pod(objects: &Objects) -> &Value {
    &daemon_set(objects)["spec"]["template"]["spec"]
}
