//! Random Services, and random changes of one.

use serde_json::{Value, json};

use super::pools::{FAMILIES, Family, NAMESPACE, NO_ADDRESSES, PORTS, created, written};
use super::rng::Rng;

/// Fields that a step changes one of.
const FIELDS: [&str; 13] = [
    "type",
    "families",
    "clusterIPs",
    "ports",
    "externalIPs",
    "ingress",
    "internalTrafficPolicy",
    "externalTrafficPolicy",
    "sessionAffinity",
    "loadBalancerSourceRanges",
    "annotations",
    "labels",
    "creationTimestamp",
];

/// Schedulers that both datapaths have. With affinity a client keeps an endpoint that no hash tells of. (What counts
/// connections gives new ones to new endpoints for as long as others have more: no few tries find all.)
pub(super) const SCHEDULERS: [&str; 6] = ["random", "rr", "wrr", "sh", "dh", "mh"];
/// Those of them that do not hash.
pub(super) const WITHOUT_HASH: usize = 3;

/// Makes up the Service of this number.
pub(super) fn service(rng: &mut Rng, number: usize) -> Value {
    let mut service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": format!("s{number}"), "namespace": NAMESPACE},
        "spec": {},
        "status": {"loadBalancer": {}},
    });
    for field in FIELDS {
        set(rng, &mut service, number, field);
    }
    service
}

/// Changes one field.
pub(super) fn change(rng: &mut Rng, service: &mut Value) -> &'static str {
    let number = number(service);
    let field = *rng.pick(&FIELDS);
    set(rng, service, number, field);
    field
}

fn number(service: &Value) -> usize {
    service["metadata"]["name"].as_str().and_then(|name| name.get(1..)?.parse().ok()).unwrap_or_default()
}

/// The families that it has addresses of.
fn families(service: &Value) -> Vec<&'static Family> {
    let named = service["spec"]["ipFamilies"].as_array();
    let has = |family: &&Family| named.is_none_or(|names| names.iter().any(|name| name == family.name));
    FAMILIES.iter().filter(has).collect()
}

fn set(rng: &mut Rng, service: &mut Value, number: usize, field: &str) {
    let families = families(service);
    let addresses = |rng: &mut Rng, prefix: fn(&Family) -> &'static str, numbers: &[usize], percent: usize| {
        let mut chosen = Vec::new();
        for family in &families {
            for number in rng.some(numbers, percent) {
                chosen.push(written(rng, format!("{}{number}", prefix(family))));
            }
        }
        chosen
    };
    match field {
        "type" => {
            let types = ["ClusterIP", "NodePort", "NodePort", "LoadBalancer", "LoadBalancer", "LoadBalancer"];
            let kind = if rng.chance(3) { "ExternalName" } else { rng.pick(&types) };
            service["spec"]["type"] = json!(kind);
            if kind == "ExternalName" {
                service["spec"]["externalName"] = json!("elsewhere.example");
            }
        }
        "families" => {
            let both = ["IPv4", "IPv6"];
            let pick = rng.pick(&[&both[..], &both[..], &both[..1], &both[1..], &["IPv6", "IPv4"][..]]).to_vec();
            service["spec"]["ipFamilies"] = json!(pick);
            if rng.chance(5) {
                service["spec"]["ipFamilies"] = Value::Null;
            }
            cluster_ips(rng, service, number);
        }
        "clusterIPs" => cluster_ips(rng, service, number),
        "ports" => service["spec"]["ports"] = ports(rng),
        "externalIPs" => {
            let mut external = addresses(rng, |family| family.external, &[1, 2, 3], 15);
            external.extend(addresses(rng, |family| family.node, &[2], 10));
            external.extend(addresses(rng, |family| family.cluster_ips, &[10, 11], 4));
            if rng.chance(5) {
                external.push((*rng.pick(&NO_ADDRESSES)).to_owned());
            }
            service["spec"]["externalIPs"] = json!(external);
        }
        "ingress" => {
            let mut balancers = addresses(rng, |family| family.external, &[1, 2, 3], 25);
            balancers.extend(addresses(rng, |family| family.cluster_ips, &[10, 11], 5));
            balancers.extend(addresses(rng, |family| family.node, &[2], 3));
            let mut ingress: Vec<Value> = balancers
                .into_iter()
                .map(|ip| match *rng.pick(&["VIP", "VIP", "", "Proxy"]) {
                    "" => json!({"ip": ip}),
                    mode => json!({"ip": ip, "ipMode": mode}),
                })
                .collect();
            if rng.chance(5) {
                ingress.push(json!({"hostname": "balancer.example"}));
                ingress.push(json!({"ip": rng.pick(&NO_ADDRESSES)}));
            }
            service["status"]["loadBalancer"] = json!({"ingress": ingress});
        }
        "internalTrafficPolicy" | "externalTrafficPolicy" => {
            let policies = [json!("Cluster"), json!("Cluster"), json!("Local"), json!("Local"), Value::Null];
            service["spec"][field] = if rng.chance(2) { json!("Near") } else { rng.pick(&policies).clone() };
        }
        "sessionAffinity" => {
            service["spec"][field] = json!(if rng.chance(25) { "ClientIP" } else { "None" });
            // Nothing that ends while the steps go on.
            let timeout = *rng.pick(&[3_600, 10_800, 86_400, 0]);
            service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": timeout}});
        }
        "loadBalancerSourceRanges" => {
            let pool = [
                "203.0.113.0/24",
                " 203.0.113.000/025 ",
                "10.244.0.0/16",
                "192.0.2.0/24",
                "198.51.100.1/32",
                "2001:db8:113::/64",
                "fd00:10:244::/48",
                "2001:db8:2::/64",
                "2001:db8:51::1/128",
                "::/0",
                "10.0.0.0/40",
            ];
            let ranges = if rng.chance(30) { rng.some(&pool, 25) } else { Vec::new() };
            service["spec"][field] = json!(ranges);
        }
        "annotations" => service["metadata"][field] = annotations(rng),
        "labels" => {
            let other = json!({"service.kubernetes.io/service-proxy-name": "another"});
            service["metadata"][field] = if rng.chance(4) { other } else { json!({"app": "random"}) };
        }
        _ => service["metadata"][field] = if rng.chance(70) { created(rng) } else { Value::Null },
    }
}

fn cluster_ips(rng: &mut Rng, service: &mut Value, number: usize) {
    let mut named: Vec<&Family> = families(service);
    if service["spec"]["ipFamilies"][0] == "IPv6" {
        named.reverse();
    }
    let number = if rng.chance(5) { 10 + rng.below(12) } else { 10 + number };
    let mut ips: Vec<String> = named.iter().map(|family| format!("{}{number}", family.cluster_ips)).collect();
    match rng.below(100) {
        // Headless, and what is wrong.
        0..3 => ips = vec!["None".to_owned()],
        3..5 => ips[0] = (*rng.pick(&NO_ADDRESSES)).to_owned(),
        5..6 => ips.reverse(),
        _ => {}
    }
    service["spec"]["clusterIP"] = json!(ips[0]);
    service["spec"]["clusterIPs"] = json!(ips);
}

fn ports(rng: &mut Rng) -> Value {
    let mut ports = Vec::new();
    for (name, protocol) in rng.some(&PORTS, 40) {
        let mut port = json!({"name": name, "protocol": protocol, "port": rng.pick(&[80, 80, 81])});
        if name.is_empty() {
            port = json!({"port": 82});
        }
        if rng.chance(50) {
            port["nodePort"] = json!(30080 + rng.below(3));
        }
        ports.push(port);
    }
    if rng.chance(4) {
        let wrong = [
            json!({"name": "e", "protocol": "ICMP", "port": 80}),
            json!({"name": "e", "port": 0}),
            json!({"name": "e", "port": 65_536}),
            json!({"name": "a", "protocol": "TCP", "port": 83}),
            json!({"name": "e", "port": 84, "nodePort": 70_000}),
            json!({"name": "a } ; flush ruleset", "port": 85}),
        ];
        ports.push(rng.pick(&wrong).clone());
    }
    if ports.is_empty() && rng.chance(90) {
        ports.push(json!({"name": "a", "protocol": "TCP", "port": 80}));
    }
    json!(ports)
}

fn annotations(rng: &mut Rng) -> Value {
    let mut annotations = json!({});
    if rng.chance(60) {
        annotations["kubeferry.dev/scheduler"] = json!(if rng.chance(3) { "fastest" } else { rng.pick(&SCHEDULERS) });
    }
    if rng.chance(20) {
        annotations["kubeferry.dev/hash-key"] = json!(rng.pick(&["source-address", "source-address-and-port"]));
    }
    if rng.chance(30) {
        // None much lighter than others: packets must find it within a few tries.
        let weights = [
            "node/worker-2=2",
            "node/worker-1=2,10.244.2.1=0",
            "10.244.1.2=2,fd00:10:244:1::4=2",
            "node/worker-2=0",
            "node/worker-1=0,node/worker-2=0",
            "zone/a=2",
            "pod/p1=0,pod/p2=2",
            "heavy",
        ];
        annotations["kubeferry.dev/weights"] = json!(rng.pick(&weights));
    }
    annotations
}

/// Where a client stays with its endpoint, no hash may choose it: what is known of the client is the datapath's alone.
pub(super) fn settle(service: &mut Value, hashes: bool) {
    let scheduler = &service["metadata"]["annotations"]["kubeferry.dev/scheduler"];
    let known = SCHEDULERS.iter().position(|name| scheduler == name);
    let is_hashed = known.map_or(hashes, |at| at >= WITHOUT_HASH);
    if service["spec"]["sessionAffinity"] == "ClientIP" && is_hashed {
        service["metadata"]["annotations"]["kubeferry.dev/scheduler"] = json!("rr");
    }
}
