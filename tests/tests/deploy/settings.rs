//! What the DaemonSet starts is understood by the binary: its arguments, and the configuration that it mounts.

use std::fs;

use kubeferry::args::{self, Command, RunArgs};
use kubeferry::settings::{BackendName, DetectLocal, Settings};
use serde_json::Value;

use super::{KUSTOMIZATIONS, objects_with, pod};

/// What kubeadm writes into its ConfigMap for kube-proxy.
const KUBEADM: &str = include_str!("../../../proxy/tests-data/config/good/kubeadm.yaml");

/// The arguments of a container, as kubelet hands them over, with the mounted files below `folder`.
fn read(container: &Value, folder: &std::path::Path) -> RunArgs {
    let mounts = container["volumeMounts"].as_array().unwrap();
    let config = mounts.iter().find(|mount| mount["name"] == "config").unwrap()["mountPath"].as_str().unwrap();
    let words = container["args"].as_array().unwrap().iter().map(|word| {
        let word = word.as_str().unwrap().replace("$(NODE_NAME)", "worker-1");
        assert!(!word.contains("$("), "{word}");
        word.replace(config, folder.to_str().unwrap())
    });
    let words: Vec<String> = ["kubeferry".to_owned()].into_iter().chain(words).collect();
    match args::parse(&words).unwrap_or_else(|error| panic!("{words:?}: {error}")).command {
        Command::Run(args) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn containers_are_started_with_settings_that_the_binary_knows() {
    for name in KUSTOMIZATIONS {
        for components in [&[][..], &["monitoring", "node-by-node", "pod-sockets"]] {
            let objects = objects_with(name, components);
            let folder = tempfile::tempdir().unwrap();
            // kubeadm's ConfigMap is not ours.
            let file = objects.get(&("ConfigMap".to_owned(), "kubeferry".to_owned()));
            match file {
                Some(map) => {
                    fs::write(folder.path().join("config.yaml"), map["data"]["config.yaml"].as_str().unwrap()).unwrap();
                }
                None => fs::write(folder.path().join("config.conf"), KUBEADM).unwrap(),
            }
            let pod = pod(&objects);
            let run = read(&pod["containers"][0], folder.path());
            let loaded = Settings::load(&run.common, &run.serve).unwrap();
            let settings = loaded.settings;
            let ebpf = name.ends_with("ebpf");
            if file.is_some() {
                // The component is one for eBPF.
                let sockets = !ebpf && components.contains(&"pod-sockets");
                let expected: &[&str] =
                    if sockets { &["--end-pod-sockets has no effect without --backend ebpf"] } else { &[] };
                assert_eq!(loaded.warnings, expected, "{name}: our own file is honoured whole");
            }
            assert_eq!(&*settings.node_name, "worker-1");
            assert_eq!(settings.backend, if ebpf { BackendName::Ebpf } else { BackendName::Nftables }, "{name}");
            let pods = vec!["10.244.0.0/16".parse().unwrap()];
            assert_eq!(settings.datapath.detect_local, DetectLocal::ClusterCidr(pods));
            // Probes come to it; metrics are nobody's until the file says so.
            assert_eq!(settings.healthz, Some("0.0.0.0:10256".parse().unwrap()));
            assert_eq!(settings.metrics, Some("127.0.0.1:10249".parse().unwrap()));
            // What one datapath leaves there, the other takes away.
            assert_eq!(settings.ebpf.bpffs_root, std::path::Path::new("/host/bpf"), "{name}");
            let init = read(&pod["initContainers"][0], folder.path());
            let init = Settings::load(&init.common, &init.serve).unwrap().settings;
            assert!(init.node.init_only && !settings.node.init_only);
            assert_eq!((init.backend, &init.datapath), (settings.backend, &settings.datapath));
        }
    }
}
