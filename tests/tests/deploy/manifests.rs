//! Every object is one that the API server takes whole: no field is unknown, nothing points to what is not there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{COMPONENTS, KUSTOMIZATIONS, Objects, daemon_set, folder, kustomize, objects, objects_with, pod};

/// The custom resources, as far as we use them; each is what the operator's types say.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: Value,
    spec: PodMonitorSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PodMonitorSpec {
    job_label: String,
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PodMetricsEndpoint {
    path: String,
    interval: String,
    relabelings: Vec<Relabeling>,
    #[serde(rename = "metricRelabelings", default, skip_serializing_if = "Vec::is_empty")]
    metric_relabelings: Vec<Relabeling>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Relabeling {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    source_labels: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PrometheusRule {
    api_version: String,
    kind: String,
    metadata: Value,
    pub spec: PrometheusRuleSpec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrometheusRuleSpec {
    pub groups: Vec<Group>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    name: String,
    pub rules: Vec<Rule>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub alert: String,
    pub expr: String,
    r#for: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

/// kind's own file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KindCluster {
    kind: String,
    api_version: String,
    networking: KindNetworking,
    nodes: Vec<BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct KindNetworking {
    kube_proxy_mode: String,
}

/// Reads a value as its type and writes it again: a field that the type does not have is lost on the way.
pub fn round_trip<T: Serialize + DeserializeOwned>(value: &Value) -> Result<(), String> {
    let read: T = serde_json::from_value(value.clone()).map_err(|error| format!("{error}: {value:#}"))?;
    let written = serde_json::to_value(read).map_err(|error| error.to_string())?;
    if written == *value { Ok(()) } else { Err(format!("as its type has it: {written:#}\nas it is: {value:#}")) }
}

fn check_types(objects: &Objects) -> Result<(), String> {
    for ((kind, _), object) in objects {
        match kind.as_str() {
            "ServiceAccount" => round_trip::<ServiceAccount>(object)?,
            "ClusterRole" => round_trip::<ClusterRole>(object)?,
            "ClusterRoleBinding" => round_trip::<ClusterRoleBinding>(object)?,
            "ConfigMap" => round_trip::<ConfigMap>(object)?,
            "DaemonSet" => round_trip::<DaemonSet>(object)?,
            "PodMonitor" => round_trip::<PodMonitor>(object)?,
            "PrometheusRule" => round_trip::<PrometheusRule>(object)?,
            other => return Err(format!("a kind that nobody checks: {other}")),
        }
    }
    Ok(())
}

/// Names that point to something.
fn check_references(objects: &Objects, outside: &[&str]) {
    let pod = pod(objects);
    let has = |kind: &str, name: &str| objects.contains_key(&(kind.into(), name.into())) || outside.contains(&name);
    assert!(has("ServiceAccount", pod["serviceAccountName"].as_str().unwrap()));
    let binding = &objects[&("ClusterRoleBinding".to_owned(), "kubeferry".to_owned())];
    assert!(has("ClusterRole", binding["roleRef"]["name"].as_str().unwrap()));
    assert_eq!(binding["subjects"][0]["name"], pod["serviceAccountName"]);
    let namespaces: BTreeSet<_> = objects.values().filter_map(|o| o["metadata"]["namespace"].as_str()).collect();
    assert_eq!(namespaces, BTreeSet::from(["kube-system"]), "where system-node-critical is allowed");
    let set = daemon_set(objects);
    assert_eq!(set["spec"]["selector"]["matchLabels"], set["spec"]["template"]["metadata"]["labels"]);

    let volumes = list(pod, "volumes");
    let names: BTreeSet<_> = volumes.iter().map(|volume| volume["name"].as_str().unwrap()).collect();
    for volume in &volumes {
        if let Some(name) = volume.pointer("/configMap/name").and_then(Value::as_str) {
            assert!(has("ConfigMap", name), "ConfigMap {name}");
        }
    }
    let containers = [list(pod, "initContainers"), list(pod, "containers")].concat();
    let mounted: BTreeSet<_> = containers
        .iter()
        .flat_map(|c| list(c, "volumeMounts"))
        .map(|m| m["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(mounted, names.iter().map(|name| (*name).to_owned()).collect(), "volumes that are mounted");
    for variable in containers.iter().flat_map(|container| list(container, "env")) {
        if let Some(reference) = variable.pointer("/valueFrom/configMapKeyRef") {
            let map = &objects[&("ConfigMap".to_owned(), reference["name"].as_str().unwrap().to_owned())];
            assert!(map["data"].get(reference["key"].as_str().unwrap()).is_some(), "{reference}");
        }
    }
}

fn list(value: &Value, field: &str) -> Vec<Value> {
    value[field].as_array().cloned().unwrap_or_default()
}

#[test]
fn every_object_is_one_of_its_type_and_points_to_what_is_there() {
    for name in KUSTOMIZATIONS {
        // kubeadm made this ConfigMap for kube-proxy.
        let outside: &[&str] = if name.starts_with("kubeadm") { &["kube-proxy"] } else { &[] };
        let all = ["monitoring", "monitoring-as-kube-proxy", "node-by-node", "pod-sockets"];
        for objects in [objects(name), objects_with(name, &all)] {
            check_types(&objects).unwrap_or_else(|error| panic!("{name}: {error}"));
            check_references(&objects, outside);
        }
    }
    let kind = fs::read_to_string(folder().join("kind/cluster.yaml")).unwrap();
    round_trip::<KindCluster>(&kustomize::documents(&kind).unwrap()[0]).unwrap();
}

#[test]
fn a_field_that_no_type_has_is_refused() {
    let mut objects = objects("overlays/nftables");
    let set = objects.get_mut(&("DaemonSet".to_owned(), "kubeferry".to_owned())).unwrap();
    set["spec"]["template"]["spec"]["hostNetwrok"] = json!(true);
    assert!(check_types(&objects).unwrap_err().contains("hostNetwrok"));
}

#[test]
fn every_kustomization_of_the_folder_is_looked_at() {
    let mut found = BTreeSet::new();
    let mut places = vec![folder()];
    while let Some(place) = places.pop() {
        for path in fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                places.push(path);
            } else if path.ends_with("kustomization.yaml") {
                let name = path.parent().unwrap().strip_prefix(folder()).unwrap();
                found.insert(name.display().to_string());
            }
        }
    }
    let components = COMPONENTS.iter().map(|name| format!("components/{name}"));
    let known = KUSTOMIZATIONS.iter().map(|name| (*name).to_owned()).chain(components).chain(["base".into()]);
    assert_eq!(found, known.collect());
}

/// What `kubectl rollout` does, and who may run where.
#[test]
fn an_update_keeps_a_proxy_on_every_node() {
    for name in KUSTOMIZATIONS {
        let objects = objects(name);
        let update = &daemon_set(&objects)["spec"]["updateStrategy"];
        assert_eq!(
            *update,
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}})
        );
        let pod = pod(&objects);
        assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
        assert_eq!(pod["priorityClassName"], "system-node-critical");
        assert_eq!(pod["hostNetwork"], true);
        for container in [list(pod, "initContainers"), list(pod, "containers")].concat() {
            // In the host's network a declared port is a port of the node: old and new pod could not be there together.
            assert_eq!(container.get("ports"), None);
        }
        let container = &pod["containers"][0];
        assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/livez", "port": 10256}));
        assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/healthz", "port": 10256}));
    }
}

/// Programs are for one kind of CPU, and maps are memory of the container that made them.
#[test]
fn nodes_have_the_cpu_of_the_image_and_containers_room_for_their_datapath() {
    for name in KUSTOMIZATIONS {
        let objects = objects(name);
        let pod = pod(&objects);
        let amd64 = json!({"kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
        assert_eq!(pod["nodeSelector"], amd64, "{name}");
        let (request, limit) = if name.ends_with("ebpf") { ("300Mi", "1Gi") } else { ("64Mi", "512Mi") };
        let resources = json!({"requests": {"cpu": "50m", "memory": request}, "limits": {"memory": limit}});
        assert_eq!(pod["containers"][0]["resources"], resources, "{name}");
    }
}

/// What one scrape takes must be what the other takes, but for the job and for metrics of ours.
#[test]
fn kube_proxys_job_is_scraped_as_ours() {
    let objects = objects_with("overlays/nftables", &["monitoring", "monitoring-as-kube-proxy"]);
    let monitor = |name: &str| &objects[&("PodMonitor".to_owned(), name.to_owned())]["spec"];
    let mut wanted = monitor("kubeferry").clone();
    let endpoint = &mut wanted["podMetricsEndpoints"][0];
    endpoint["relabelings"].as_array_mut().unwrap().push(json!({"targetLabel": "job", "replacement": "kube-proxy"}));
    endpoint["metricRelabelings"] = json!([{"sourceLabels": ["__name__"], "regex": "kubeferry_.*", "action": "drop"}]);
    assert_eq!(*monitor("kubeferry-as-kube-proxy"), wanted);
}

#[test]
fn rights_are_the_least_that_the_datapath_needs() {
    for name in KUSTOMIZATIONS {
        let objects = objects(name);
        let pod = pod(&objects);
        let ebpf = name.ends_with("ebpf");
        let rights = if ebpf { json!(["NET_ADMIN", "BPF", "PERFMON"]) } else { json!(["NET_ADMIN"]) };
        assert_eq!(
            pod["containers"],
            json!([pod["containers"][0]]),
            "one container goes on, all others are there at the start alone"
        );
        assert_eq!(
            pod["containers"][0]["securityContext"],
            json!({
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                "seccompProfile": {"type": "RuntimeDefault"},
                "capabilities": {"drop": ["ALL"], "add": rights},
            }),
            "{name}"
        );
        assert_eq!(
            pod["initContainers"][0]["securityContext"],
            json!({"privileged": true, "readOnlyRootFilesystem": true})
        );
        assert!(pod["initContainers"][0]["args"].as_array().unwrap().contains(&json!("--init-only")));
        let hosts: Vec<_> = list(pod, "volumes").iter().filter_map(|v| v.pointer("/hostPath/path").cloned()).collect();
        // With nftables, too: what eBPF left would go on there.
        let bpffs = json!("/sys/fs/bpf");
        assert_eq!(hosts, if ebpf { vec![bpffs, json!("/sys/fs/cgroup")] } else { vec![bpffs] });
        let more = objects_with(name, &["pod-sockets"]);
        let (more, rights) = (self::pod(&more), &pod["containers"][0]["securityContext"]["capabilities"]["add"]);
        assert_eq!(more["hostPID"], true);
        let added =
            &list(&more["containers"][0]["securityContext"]["capabilities"], "add")[rights.as_array().unwrap().len()..];
        assert_eq!(added, [json!("SYS_ADMIN"), json!("SYS_PTRACE")]);
        for absent in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert_eq!(pod.get(absent), None);
        }
    }
}
