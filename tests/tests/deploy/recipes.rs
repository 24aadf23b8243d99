//! What `deploy/README.md` has operators type: patches of kube-proxy's DaemonSet that leave every node one proxy, commands that the
//! binary takes, and components that are there.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::apps::v1::DaemonSet;
use kubeferry::args;
use serde_json::{Value, json};

use super::manifests::round_trip;
use super::{folder, objects, objects_with, pod};

/// The commands of its code blocks, each in one line but for what is quoted.
fn commands() -> Vec<String> {
    let text = fs::read_to_string(folder().join("README.md")).unwrap();
    let blocks = text.split("```\n").skip(1).step_by(2);
    let mut commands = Vec::new();
    for block in blocks {
        let mut command = String::new();
        for line in block.replace("\\\n", " ").lines() {
            command += line;
            if command.matches('\'').count().is_multiple_of(2) {
                commands.push(std::mem::take(&mut command));
            }
        }
        assert_eq!(command, "", "a quote without its end");
    }
    commands
}

/// The patches of kube-proxy's DaemonSet of a kind, in the order of the text.
fn patches(kind: &str) -> Vec<Value> {
    let start = format!("kubectl -n kube-system patch daemonset kube-proxy --type {kind} -p '");
    let found = commands().into_iter().filter_map(|command| {
        let patch = command.strip_prefix(&start)?.strip_suffix('\'')?.to_owned();
        Some(serde_json::from_str(&patch).unwrap_or_else(|error| panic!("{error}: {patch}")))
    });
    found.collect()
}

/// As kubeadm makes it, as far as it says where it runs.
fn kube_proxy() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": {"k8s-app": "kube-proxy"}},
        "spec": {
            "selector": {"matchLabels": {"k8s-app": "kube-proxy"}},
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": {"k8s-app": "kube-proxy"}},
                "spec": {
                    "containers": [{"name": "kube-proxy", "image": "registry.k8s.io/kube-proxy:v1.36.0"}],
                    "hostNetwork": true,
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "priorityClassName": "system-node-critical",
                    "serviceAccountName": "kube-proxy",
                    "tolerations": [{"operator": "Exists"}]
                }
            }
        }
    })
}

type Labels = BTreeMap<&'static str, &'static str>;

/// Whether a pod may run on a node with these labels: by its selector, and by what its affinity requires.
fn may_run(pod: &Value, labels: &Labels) -> bool {
    let selected = pod["nodeSelector"].as_object().into_iter().flatten();
    let selected = selected.into_iter().all(|(key, value)| labels.get(key.as_str()).copied() == value.as_str());
    let expression = |it: &Value| {
        let has = labels.get(it["key"].as_str().unwrap());
        let one_of = || it["values"].as_array().unwrap().iter().any(|value| value.as_str() == has.copied());
        match it["operator"].as_str().unwrap() {
            "In" => one_of(),
            "NotIn" => !one_of(),
            "Exists" => has.is_some(),
            "DoesNotExist" => has.is_none(),
            other => panic!("operator {other}"),
        }
    };
    let terms = pod.pointer("/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms");
    let required = terms.is_none_or(|terms| {
        let term = |term: &Value| term["matchExpressions"].as_array().unwrap().iter().all(expression);
        terms.as_array().unwrap().iter().any(term)
    });
    selected && required
}

fn node(arch: &'static str, more: &[(&'static str, &'static str)]) -> Labels {
    [("kubernetes.io/os", "linux"), ("kubernetes.io/arch", arch)].iter().chain(more).copied().collect()
}

/// Which of the two runs on such a node; neither or both is a mistake.
fn runs(kube_proxy: &Value, kubeferry: &Value, labels: &Labels) -> &'static str {
    match (may_run(&kube_proxy["spec"]["template"]["spec"], labels), may_run(kubeferry, labels)) {
        (true, false) => "kube-proxy",
        (false, true) => "kubeferry",
        both => panic!("kube-proxy and Kubeferry on {labels:?}: {both:?}"),
    }
}

#[test]
fn every_node_has_one_proxy_after_each_step_and_the_way_back_is_whole() {
    let (to, back) = (patches("merge"), patches("json"));
    let ([one, all], [back]) = (&to[..], &back[..]) else { panic!("{to:#?} {back:#?}") };
    let here = ("kubeferry.dev/proxy", "kubeferry");
    for name in ["kubeadm/nftables", "kubeadm/ebpf"] {
        let (by_node, whole) = (objects_with(name, &["node-by-node"]), objects(name));
        let mut set = kube_proxy();
        json_patch::merge(&mut set, one);
        round_trip::<DaemonSet>(&set).unwrap();
        assert_eq!(runs(&set, pod(&by_node), &node("amd64", &[])), "kube-proxy");
        assert_eq!(runs(&set, pod(&by_node), &node("amd64", &[here])), "kubeferry");
        assert_eq!(
            runs(&set, pod(&by_node), &node("arm64", &[here])),
            "kube-proxy",
            "the label was put on it by mistake"
        );
        // From there, or at once.
        for mut set in [set, kube_proxy()] {
            json_patch::merge(&mut set, all);
            round_trip::<DaemonSet>(&set).unwrap();
            for more in [&[][..], &[here]] {
                assert_eq!(runs(&set, pod(&whole), &node("amd64", more)), "kubeferry");
                assert_eq!(runs(&set, pod(&whole), &node("arm64", more)), "kube-proxy");
            }
            json_patch::patch(&mut set, &serde_json::from_value::<json_patch::Patch>(back.clone()).unwrap()).unwrap();
            assert_eq!(set, kube_proxy());
        }
    }
}

#[test]
fn commands_of_the_binary_are_understood() {
    let commands = commands();
    let ours: Vec<&str> = commands
        .iter()
        .filter(|command| !command.starts_with("skopeo"))
        .filter_map(|command| command.split_once("/usr/bin/kubeferry ").or_else(|| command.split_once("| kubeferry ")))
        .map(|(_, arguments)| arguments)
        .collect();
    assert!(ours.len() >= 3, "{commands:#?}");
    for arguments in ours {
        let words = std::iter::once("kubeferry").chain(arguments.split_whitespace());
        if let Err(error) = args::parse(words) {
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayVersion, "{arguments}: {error}");
        }
    }
    for place in
        commands.iter().flat_map(|command| command.split_whitespace()).filter(|word| word.starts_with("deploy/"))
    {
        assert!(folder().join("..").join(place).exists(), "{place}");
    }
}
