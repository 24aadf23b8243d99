//! Random nodes: how the proxy is set, and what the Node's object says.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::pools::{NODES, ZONES};
use super::rng::Rng;
use crate::flows::Node;

/// Makes up the settings.
pub(super) fn node(rng: &mut Rng) -> Result<Node> {
    let mut node = json!({
        "name": NODES[0],
        "addresses": {"eth0": ["192.0.2.1", "2001:db8:2::1"], "eth1": ["192.0.2.2", "2001:db8:2::2"]},
        "pod-cidrs": ["10.244.1.0/24", "fd00:10:244:1::/64"],
        "masquerade-all": rng.chance(15),
        "nodeport-addresses": rng.pick(&[
            vec!["primary"],
            vec!["0.0.0.0/0", "::/0"],
            vec!["192.0.2.2/32", "2001:db8:2::2/128"],
            vec!["192.0.2.0/24"],
            vec!["203.0.113.0/24", "2001:db8:2::1/128"],
        ]),
        // A prime that leaves room in small maps.
        "maglev-table-size": 101,
    });
    if rng.chance(30) {
        node["scheduler"] = json!(rng.pick(&["rr", "wrr", "sh", "dh", "mh"]));
    }
    let detectors: [Value; 5] = [
        json!({"cluster-cidr": ["10.244.0.0/16", "fd00:10:244::/48"]}),
        json!({"cluster-cidr": ["10.244.0.0/16"]}),
        json!({"detect-local-mode": "NodeCIDR"}),
        json!({"detect-local-mode": "InterfaceNamePrefix", "pod-interface-name-prefix": "pods"}),
        json!({}),
    ];
    for (key, value) in rng.pick(&detectors).as_object().into_iter().flatten() {
        node[key] = value.clone();
    }
    serde_json::from_value(node).context("the node of a random cluster")
}

/// Makes up what its object says: zone and addresses.
pub(super) fn object(rng: &mut Rng, node: &Node) -> Value {
    let mut object = node.object();
    change(rng, &mut object);
    set_zone(rng, &mut object);
    object
}

/// Changes one thing of the object.
pub(super) fn change(rng: &mut Rng, object: &mut Value) -> &'static str {
    if rng.chance(60) {
        set_zone(rng, object);
        return "the zone";
    }
    let addresses = [
        &["192.0.2.1", "2001:db8:2::1"][..],
        &["192.0.2.1", "2001:db8:2::1"],
        &["2001:db8:2::2", "192.0.2.2"],
        &["192.0.2.2"],
        &["192.0.2.1", "192.0.2.2", "2001:db8:2::1"],
        &[],
    ];
    let entry = |ip: &&str| json!({"type": "InternalIP", "address": ip});
    object["status"]["addresses"] = rng.pick(&addresses).iter().map(entry).collect();
    "the addresses"
}

fn set_zone(rng: &mut Rng, object: &mut Value) {
    let zones = [json!(ZONES[0]), json!(ZONES[0]), json!(ZONES[1]), json!(""), Value::Null];
    match rng.pick(&zones) {
        Value::Null => object["metadata"]["labels"] = json!({}),
        zone => object["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone}),
    }
}
