//! Clusters made up by chance, as objects: small pools of addresses and ports, so that Services meet and collide.

use serde_json::{Value, json};

use super::rng::Rng;

/// Of each family: its name, and the prefixes of its ClusterIPs, local pods, remote pods, external addresses and nodes.
const FAMILIES: [(&str, [&str; 5]); 2] = [
    ("IPv4", ["10.96.0.", "10.244.1.", "10.244.2.", "198.51.100.", "192.0.2."]),
    ("IPv6", ["fd00:10:96::", "fd00:10:244:1::", "fd00:10:244:2::", "2001:db8:51::", "2001:db8:2::"]),
];

/// One Service with its slices.
#[derive(Clone, PartialEq, Debug)]
pub struct Group {
    number: usize,
    service: Value,
    slices: Vec<Value>,
}

impl Group {
    /// Makes up a Service, and its slices.
    pub fn new(rng: &mut Rng, number: usize) -> Self {
        let service = service(rng, number);
        let slices = slices(rng, &service);
        Self { number, service, slices }
    }

    /// The same Service with other slices, or another Service of the same name with the same slices, or both.
    pub fn changed(&self, rng: &mut Rng) -> Self {
        let mut changed = self.clone();
        if rng.chance(40) {
            changed.service = service(rng, self.number);
        }
        if rng.chance(70) {
            changed.slices = slices(rng, &changed.service);
        }
        changed
    }

    /// The objects.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        std::iter::once(&self.service).chain(&self.slices)
    }

    /// Whether a client stays with its endpoint.
    pub fn has_affinity(&self) -> bool {
        self.service["spec"]["sessionAffinity"] == "ClientIP"
    }

    /// `namespace/name`, with which the name of its service ports begins.
    pub fn name(&self) -> String {
        let metadata = &self.service["metadata"];
        format!("{}/{}", metadata["namespace"].as_str().unwrap_or(""), metadata["name"].as_str().unwrap_or(""))
    }

    /// The addresses and ports at which it wants to be reached: protocol, address, port.
    pub fn frontends(&self) -> Vec<(String, String, u64)> {
        let spec = &self.service["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let mut addresses = [list(&spec["clusterIPs"]), list(&spec["externalIPs"])].concat();
        addresses.extend(
            list(&self.service["status"]["loadBalancer"]["ingress"]).iter().map(|ingress| ingress["ip"].clone()),
        );
        let mut frontends = Vec::new();
        for port in list(&spec["ports"]) {
            let protocol = text(&port["protocol"]).to_lowercase();
            let number = port["port"].as_u64().unwrap_or_default();
            frontends.extend(addresses.iter().map(|ip| (protocol.clone(), text(ip), number)));
            if let Some(node_port) = port["nodePort"].as_u64() {
                for ip in ["192.0.2.1", "192.0.2.2", "2001:db8:2::1", "2001:db8:2::2"] {
                    frontends.push((protocol.clone(), ip.to_string(), node_port));
                }
            }
        }
        frontends
    }
}

fn service(rng: &mut Rng, number: usize) -> Value {
    let families = *rng.pick(&[&FAMILIES[..], &FAMILIES[..], &FAMILIES[..1], &FAMILIES[1..]]);
    let address = |at: usize, numbers: &[&usize]| -> Vec<String> {
        families.iter().flat_map(|(_, prefixes)| numbers.iter().map(move |n| format!("{}{n}", prefixes[at]))).collect()
    };
    let cluster_ips = address(0, &[&(10 + number)]);
    let mut ports = Vec::new();
    for (name, protocol, port) in
        rng.some(&[("a", "TCP", 80), ("b", "UDP", 80), ("c", "SCTP", 80), ("d", "TCP", 81)], 50)
    {
        let mut entry = json!({"name": name, "protocol": protocol, "port": port});
        if rng.chance(50) {
            entry["nodePort"] = json!(30080 + rng.below(3));
        }
        ports.push(entry);
    }
    if ports.is_empty() {
        ports.push(json!({"name": "a", "protocol": "TCP", "port": 80}));
    }
    let external = [address(3, &rng.some(&[1, 2, 3], 15)), address(4, &rng.some(&[2], 10))].concat();
    let balancers = [address(3, &rng.some(&[1, 2, 3], 25)), address(0, &rng.some(&[10, 11], 5))].concat();
    let policy = |rng: &mut Rng| if rng.chance(40) { "Local" } else { "Cluster" };
    let mut spec = json!({
        "clusterIP": cluster_ips[0],
        "clusterIPs": cluster_ips,
        "ipFamilies": families.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        "type": if !balancers.is_empty() { "LoadBalancer" } else { "NodePort" },
        "externalIPs": external,
        "internalTrafficPolicy": policy(rng),
        "externalTrafficPolicy": policy(rng),
        "ports": ports,
    });
    if rng.chance(25) {
        spec["sessionAffinity"] = json!("ClientIP");
    }
    if rng.chance(30) {
        let pool = [
            "203.0.113.0/24",
            "10.244.0.0/16",
            "192.0.2.0/24",
            "2001:db8:113::/64",
            "fd00:10:244::/48",
            "2001:db8:2::/64",
            "::/0",
        ];
        spec["loadBalancerSourceRanges"] = json!(rng.some(&pool, 30));
    }
    let mut metadata = json!({"name": format!("s{number}"), "namespace": "random"});
    if rng.chance(70) {
        metadata["creationTimestamp"] = json!(format!("202{}-01-01T00:00:00Z", rng.below(5)));
    }
    if rng.chance(60) {
        metadata["annotations"] = scheduling(rng, spec["sessionAffinity"] == "ClientIP");
    }
    let mode = |rng: &mut Rng| *rng.pick(&["VIP", "VIP", "VIP", "Proxy"]);
    let ingress: Vec<_> = balancers.iter().map(|ip| json!({"ip": ip, "ipMode": mode(rng)})).collect();
    let status = json!({"loadBalancer": {"ingress": ingress}});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status})
}

/// Schedulers that both datapaths have. With affinity a client keeps an endpoint that no hash tells of.
fn scheduling(rng: &mut Rng, affinity: bool) -> Value {
    let schedulers = ["random", "rr", "wrr", "sh", "dh", "mh"];
    let mut annotations =
        json!({"kubeferry.dev/scheduler": rng.pick(if affinity { &schedulers[..3] } else { &schedulers })});
    if rng.chance(30) {
        let keys = ["source-address", "source-address-and-port"];
        annotations["kubeferry.dev/hash-key"] = json!(rng.pick(&keys));
    }
    if rng.chance(50) {
        // None much lighter than others: packets must find it within a few tries.
        let weights =
            ["node/worker-2=2", "node/worker-1=2,10.244.2.1=0", "10.244.1.2=2,fd00:10:244:1::4=2", "node/worker-2=0"];
        annotations["kubeferry.dev/weights"] = json!(rng.pick(&weights));
    }
    annotations
}

fn slices(rng: &mut Rng, service: &Value) -> Vec<Value> {
    let mut slices = Vec::new();
    let name = &service["metadata"]["name"];
    for (family, prefixes) in &FAMILIES {
        for number in 0..rng.below(3) {
            let mut ports = Vec::new();
            for (name, protocol) in rng.some(&[("a", "TCP"), ("b", "UDP"), ("c", "SCTP"), ("d", "TCP")], 85) {
                ports.push(json!({"name": name, "protocol": protocol, "port": rng.pick(&[80, 8080])}));
            }
            let pool: Vec<_> = (1..=6).map(|n| (prefixes[1 + n % 2], n)).chain([(prefixes[4], 1)]).collect();
            let chosen = rng.some(&pool, 30);
            let endpoints: Vec<_> = chosen.into_iter().map(|(prefix, n)| endpoint(rng, prefix, *n)).collect();
            slices.push(json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-{}-{number}", name.as_str().unwrap_or_default(), family.to_lowercase()),
                    "namespace": "random",
                    "labels": {"kubernetes.io/service-name": name},
                },
                "addressType": family,
                "ports": ports,
                "endpoints": endpoints,
            }));
        }
    }
    slices
}

fn endpoint(rng: &mut Rng, prefix: &str, number: usize) -> Value {
    let remote = FAMILIES.iter().any(|(_, prefixes)| prefixes[2] == prefix);
    let mut endpoint = json!({
        "addresses": [format!("{prefix}{number}")],
        "nodeName": if remote { "worker-2" } else { "worker-1" },
    });
    let states = [json!({}), json!({"ready": true}), json!({"ready": true}), json!({"ready": false})];
    let leaving = [
        json!({"ready": false, "serving": true, "terminating": true}),
        json!({"ready": false, "serving": false, "terminating": true}),
    ];
    endpoint["conditions"] = if rng.chance(25) { rng.pick(&leaving).clone() } else { rng.pick(&states).clone() };
    if rng.chance(40) {
        endpoint["hints"] = json!({"forZones": [{"name": rng.pick(&["a", "b"])}]});
        if rng.chance(30) {
            endpoint["hints"]["forNodes"] = json!([{"name": rng.pick(&["worker-1", "worker-2"])}]);
        }
    }
    endpoint
}
