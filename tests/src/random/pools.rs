//! What random objects choose from: small pools of addresses and names, so that Services meet and collide.

use serde_json::{Value, json};

use super::rng::Rng;

/// The addresses of a family, each without its last number.
#[derive(Debug)]
pub(super) struct Family {
    /// As Kubernetes calls it.
    pub name: &'static str,
    pub cluster_ips: &'static str,
    /// Pods of the node under test.
    pub local: &'static str,
    /// Pods of another node.
    pub remote: &'static str,
    pub external: &'static str,
    /// Of the node under test.
    pub node: &'static str,
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        cluster_ips: "10.96.0.",
        local: "10.244.1.",
        remote: "10.244.2.",
        external: "198.51.100.",
        node: "192.0.2.",
    },
    Family {
        name: "IPv6",
        cluster_ips: "fd00:10:96::",
        local: "fd00:10:244:1::",
        remote: "fd00:10:244:2::",
        external: "2001:db8:51::",
        node: "2001:db8:2::",
    },
];

/// The node under test, and another.
pub(super) const NODES: [&str; 2] = ["worker-1", "worker-2"];
pub(super) const ZONES: [&str; 2] = ["a", "b"];
/// Every object's that has one.
pub(super) const NAMESPACE: &str = "random";
/// Names and protocols of ports; two share a name, one has none.
pub(super) const PORTS: [(&str, &str); 6] =
    [("a", "TCP"), ("b", "UDP"), ("c", "SCTP"), ("d", "TCP"), ("a", "UDP"), ("", "TCP")];

/// Texts that stand where an address should, and are none that a Service or an endpoint may have.
pub(super) const NO_ADDRESSES: [&str; 9] =
    ["", "  ", "none", "10.96.0.300", "127.0.0.1", "::1", "224.0.0.7", "0.0.0.0", "10.96.0.10\" } ; flush ruleset #"];

/// A creation time; some share it.
pub(super) fn created(rng: &mut Rng) -> Value {
    json!(format!("202{}-01-01T00:00:00Z", rng.below(5)))
}

/// The same address as people write it.
pub(super) fn written(rng: &mut Rng, address: String) -> String {
    match address.rsplit_once('.') {
        Some((start, last)) if rng.chance(5) => format!("{start}.0{last}"),
        _ => address,
    }
}
