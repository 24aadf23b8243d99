//! The cluster's objects, as they are at a moment of the churn.

use serde_json::{Value, json};

/// The Node's name.
pub const NODE: &str = "worker-1";
/// The zones that the node is moved between.
pub const ZONES: [&str; 2] = ["zone-a", "zone-b"];
/// The ranges of pods, IPv4 and IPv6.
pub const POD_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];
/// The load balancer's addresses of `web`.
pub const LOAD_BALANCER_IPS: [&str; 2] = ["198.51.100.8", "2001:db8:7::8"];
/// The external address of `web`.
pub const EXTERNAL_IP: &str = "198.51.100.7";
/// How long a client with affinity may be away, in seconds.
pub const AFFINITY: u32 = 60;
/// Those who ask on the node, or by it, have these Services; all of them have the same endpoints.
pub const SERVICES: [Service; 4] = [
    Service { name: "web", number: 10, node_port: 30080 },
    Service { name: "local", number: 11, node_port: 30081 },
    Service { name: "loyal", number: 12, node_port: 30082 },
    Service { name: "zoned", number: 13, node_port: 30083 },
];

/// A Service whose endpoints come and go.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    number: u8,
    /// Its node port, for TCP and UDP.
    pub node_port: u16,
}

impl Service {
    /// The ClusterIPs.
    pub fn vips(self) -> [String; 2] {
        [format!("10.96.0.{}", self.number), format!("fd00:10:96::{}", self.number)]
    }

    fn object(self) -> Value {
        let mut object = service(self.name, self.vips(), self.node_port);
        match self.name {
            "web" => {
                object["spec"]["type"] = "LoadBalancer".into();
                object["spec"]["externalIPs"] = json!([EXTERNAL_IP]);
                object["status"] = json!({"loadBalancer": {"ingress": LOAD_BALANCER_IPS.map(|ip| json!({"ip": ip}))}});
            }
            "local" => object["spec"]["externalTrafficPolicy"] = "Local".into(),
            "loyal" => {
                object["spec"]["sessionAffinity"] = "ClientIP".into();
                object["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": AFFINITY}});
            }
            _ => object["spec"]["trafficDistribution"] = "PreferClose".into(),
        }
        object
    }
}

/// A Service that comes and goes, by its number.
pub fn extra(number: u8) -> Value {
    let vips = [format!("10.96.1.{number}"), format!("fd00:10:96::1:{number}")];
    service(&extra_name(number), vips, 30_100 + u16::from(number))
}

/// Its name.
pub fn extra_name(number: u8) -> String {
    format!("extra-{number}")
}

fn service(name: &str, vips: [String; 2], node_port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "clusterIP": vips[0],
            "clusterIPs": vips,
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [
                {"name": "tcp", "port": 80, "nodePort": node_port},
                {"name": "udp", "protocol": "UDP", "port": 80, "nodePort": node_port},
            ],
        },
    })
}

/// The Services that are always there, and the ranges of their addresses.
pub fn lasting() -> Vec<Value> {
    let ranges = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/108"]},
    });
    SERVICES.iter().map(|service| service.object()).chain([ranges]).collect()
}

/// The Node with labels.
pub fn node(zone: &str, turn: u64) -> Value {
    let address = |ip: &str| json!({"type": "InternalIP", "address": ip});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": zone, "example.com/turn": turn.to_string()}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
        "status": {"addresses": crate::network::NODE_IPS.map(address)},
    })
}

/// What an EndpointSlice says of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// IPv4 and IPv6.
    pub addresses: [String; 2],
    /// The Node that it is on.
    pub node: &'static str,
    /// Its condition `ready`.
    pub ready: bool,
    /// Its condition `serving`.
    pub serving: bool,
    /// Its condition `terminating`.
    pub terminating: bool,
    /// Which of [`ZONES`] it is hinted to, as an endpoint of `zoned`.
    pub zone: usize,
}

impl Endpoint {
    /// One that is ready, by the ends of its addresses.
    pub fn ready(v4: &str, v6: &str, node: &'static str, zone: usize) -> Self {
        let addresses = [format!("10.244.{v4}"), format!("fd00:10:244:{v6}")];
        Self { addresses, node, ready: true, serving: true, terminating: false, zone }
    }
}

/// The endpoints that are always there: `web1` and `web2` on the node, `remote` elsewhere.
pub fn steady() -> [Endpoint; 3] {
    [("1.1", "1::1", NODE, 0), ("1.2", "1::2", NODE, 1), ("2.1", "2::1", "worker-2", 0)]
        .map(|(v4, v6, node, zone)| Endpoint::ready(v4, v6, node, zone))
}

/// The EndpointSlices of a Service, one of each family, with these endpoints.
pub fn slices(service: &str, which: &str, endpoints: &[Endpoint]) -> [Value; 2] {
    [("IPv4", 0), ("IPv6", 1)].map(|(family, at)| {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|endpoint| {
                let Endpoint { ready, serving, terminating, .. } = *endpoint;
                let mut object = json!({
                    "addresses": [endpoint.addresses[at]],
                    "nodeName": endpoint.node,
                    "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                });
                if service == "zoned" {
                    object["hints"] = json!({"forZones": [{"name": ZONES[endpoint.zone]}]});
                }
                object
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-{which}-{}", family.to_lowercase()),
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": family,
            "ports": [{"name": "tcp", "port": 8080}, {"name": "udp", "protocol": "UDP", "port": 8080}],
            "endpoints": endpoints,
        })
    })
}
