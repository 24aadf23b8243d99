//! `node.yaml`: which node we are, where its addresses and pods are, and how the proxy is set.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

/// The interface that leads to everything which is not the node or one of its pods.
pub const UPLINK: &str = "eth0";
/// The interface that leads to the node's pods, where nothing else is said.
pub const PODS: &str = "pods0";

/// The node under test and the proxy's settings.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Node {
    /// The Node's name.
    pub name: String,
    /// The node's own addresses by interface; [`UPLINK`] must be among them.
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    /// The addresses in the Node's status, the primary ones; without it the first of each family on [`UPLINK`].
    #[serde(default)]
    pub primary: Vec<IpAddr>,
    /// Label `topology.kubernetes.io/zone`.
    #[serde(default)]
    pub zone: Option<String>,
    /// `spec.podCIDRs`.
    #[serde(default)]
    pub pod_cidrs: Vec<IpNet>,
    /// Local pods that are reached by another interface than [`PODS`].
    #[serde(default)]
    pub pods: BTreeMap<String, Vec<IpAddr>>,
    /// `--cluster-cidr`.
    #[serde(default)]
    pub cluster_cidr: Vec<IpNet>,
    /// `--detect-local-mode`.
    #[serde(default)]
    pub detect_local_mode: Option<String>,
    /// `--pod-bridge-interface`.
    #[serde(default)]
    pub pod_bridge_interface: Option<String>,
    /// `--pod-interface-name-prefix`.
    #[serde(default)]
    pub pod_interface_name_prefix: Option<String>,
    /// `--masquerade-all`.
    #[serde(default)]
    pub masquerade_all: bool,
    /// `--nodeport-addresses`: `primary` or CIDRs.
    #[serde(default)]
    pub nodeport_addresses: Vec<String>,
    /// `--scheduler`.
    #[serde(default)]
    pub scheduler: Option<String>,
    /// `--maglev-table-size`.
    #[serde(default)]
    pub maglev_table_size: Option<u32>,
    /// What stands in the file given with `--config`, beside its kind and version.
    #[serde(default)]
    pub config: Option<BTreeMap<String, Value>>,
}

impl Node {
    /// Reads `node.yaml`.
    ///
    /// # Errors
    /// Not YAML, an unknown field, a wrong address (with line and column), or no addresses on [`UPLINK`].
    pub fn parse(text: &str) -> Result<Self> {
        let node: Self = serde_yaml_ng::from_str(text).context("node.yaml")?;
        ensure!(node.addresses.contains_key(UPLINK), "node.yaml: the node needs addresses on {UPLINK}, its uplink");
        Ok(node)
    }

    /// Every address that the node holds, loopback aside.
    pub fn all_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.values().flatten().copied()
    }

    /// Whether a packet from this address starts on the node itself.
    pub fn holds(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.all_addresses().any(|address| address == ip)
    }

    /// The Node object that the API server would show.
    pub fn object(&self) -> Value {
        let on_uplink = &self.addresses[UPLINK];
        let first = |v4: bool| on_uplink.iter().copied().find(|ip| ip.is_ipv4() == v4);
        let primary: Vec<_> = if self.primary.is_empty() {
            [true, false].into_iter().filter_map(first).collect()
        } else {
            self.primary.clone()
        };
        let status: Vec<_> =
            primary.iter().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
        let labels = self.zone.as_ref().map(|zone| json!({"topology.kubernetes.io/zone": zone}));
        let mut spec = json!({});
        if let Some(first) = self.pod_cidrs.first() {
            spec = json!({"podCIDR": first, "podCIDRs": self.pod_cidrs});
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self.name, "labels": labels.unwrap_or_else(|| json!({}))},
            "spec": spec,
            "status": {"addresses": status},
        })
    }

    /// The settings as flags of `kubeferry` (without the source, the node's addresses and `--config`). Beside a file only
    /// those that count there: [`Node::config_file`] has the others.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec!["--node-name".into(), self.name.clone()];
        let mut add = |flag: &str, value: &str| flags.extend([flag.to_string(), value.to_string()]);
        if let Some(scheduler) = &self.scheduler {
            add("--scheduler", scheduler);
        }
        if let Some(size) = self.maglev_table_size {
            add("--maglev-table-size", &size.to_string());
        }
        if self.config.is_some() {
            return flags;
        }
        if !self.cluster_cidr.is_empty() {
            add("--cluster-cidr", &self.cluster_cidrs());
        }
        for (flag, value) in [
            ("--detect-local-mode", &self.detect_local_mode),
            ("--pod-bridge-interface", &self.pod_bridge_interface),
            ("--pod-interface-name-prefix", &self.pod_interface_name_prefix),
        ] {
            if let Some(value) = value {
                add(flag, value);
            }
        }
        if !self.nodeport_addresses.is_empty() {
            add("--nodeport-addresses", &self.nodeport_addresses.join(","));
        }
        if self.masquerade_all {
            flags.push("--masquerade-all".into());
        }
        flags
    }

    fn cluster_cidrs(&self) -> String {
        self.cluster_cidr.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    /// The text of the file for `--config`, where `config` asks for one (JSON, which is YAML too), with the settings that
    /// are flags without it; `masquerade-all` is another field in each mode and stands in `config` itself.
    pub fn config_file(&self) -> Option<String> {
        let mut fields = self.config.clone()?;
        assert!(!self.masquerade_all, "masquerade-all beside config: set it in the block of the mode");
        fields.entry("clusterCIDR".into()).or_insert_with(|| json!(self.cluster_cidrs()));
        let detect_local = json!({
            "bridgeInterface": self.pod_bridge_interface,
            "interfaceNamePrefix": self.pod_interface_name_prefix,
        });
        fields.entry("detectLocalMode".into()).or_insert_with(|| json!(self.detect_local_mode));
        fields.entry("detectLocal".into()).or_insert(detect_local);
        if !self.nodeport_addresses.is_empty() {
            fields.entry("nodePortAddresses".into()).or_insert_with(|| json!(self.nodeport_addresses));
        }
        fields.insert("apiVersion".into(), json!("kubeproxy.config.k8s.io/v1alpha1"));
        fields.insert("kind".into(), json!("KubeProxyConfiguration"));
        Some(json!(fields).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_object_follow_the_file() {
        let text = "name: n1\naddresses: {eth0: [192.0.2.1, 192.0.2.2, '2001:db8::1']}\nzone: a\n\
                    cluster-cidr: [10.0.0.0/8]\nnodeport-addresses: [primary]\n";
        let node = Node::parse(&format!("{text}masquerade-all: true")).unwrap();
        let flags = "--node-name n1 --cluster-cidr 10.0.0.0/8 --nodeport-addresses primary --masquerade-all";
        assert_eq!(node.flags().join(" "), flags);
        let object = node.object();
        assert_eq!(object["status"]["addresses"][1]["address"], "2001:db8::1");
        assert_eq!(object["metadata"]["labels"]["topology.kubernetes.io/zone"], "a");
        let with_file = Node::parse(&format!("{text}config: {{nftables: {{masqueradeBit: 5}}}}")).unwrap();
        assert_eq!(with_file.flags().join(" "), "--node-name n1");
        let file: Value = serde_json::from_str(&with_file.config_file().unwrap()).unwrap();
        assert_eq!((&file["nftables"]["masqueradeBit"], &file["clusterCIDR"]), (&json!(5), &json!("10.0.0.0/8")));
        assert_eq!(file["nodePortAddresses"], json!(["primary"]));
        assert!(node.holds("192.0.2.2".parse().unwrap()) && node.holds("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn an_unknown_field_is_named() {
        let error = format!("{:#}", Node::parse("name: n1\naddresses: {eth0: []}\nzones: a").unwrap_err());
        assert!(error.contains("zones"), "{error}");
    }
}
