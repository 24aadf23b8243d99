//! Random EndpointSlices, and random changes of one.

use serde_json::{Value, json};

use super::pools::{FAMILIES, Family, NAMESPACE, NO_ADDRESSES, NODES, PORTS, ZONES, written};
use super::rng::Rng;

/// Makes up a slice of the Service of this number.
pub(super) fn slice(rng: &mut Rng, service: usize, family: &Family, number: usize) -> Value {
    let name = format!("s{service}");
    let mut labels = json!({"kubernetes.io/service-name": name});
    match rng.below(100) {
        0..2 => labels["service.kubernetes.io/headless"] = json!(""),
        2..3 => labels = json!({}),
        _ => {}
    }
    let endpoints: Vec<_> = (0..rng.below(6)).map(|_| endpoint(rng, family)).collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-{}-{number}", family.name.to_lowercase()),
            "namespace": NAMESPACE,
            "labels": labels,
        },
        "addressType": if rng.chance(2) { "FQDN" } else { family.name },
        "ports": ports(rng),
        "endpoints": endpoints,
    })
}

/// Changes one thing of a slice.
pub(super) fn change(rng: &mut Rng, slice: &mut Value) -> &'static str {
    let is_v6 = slice["metadata"]["name"].as_str().is_some_and(|name| name.contains("ipv6"));
    let family = &FAMILIES[usize::from(is_v6)];
    let number = slice["endpoints"].as_array().map_or(0, Vec::len);
    match rng.below(10) {
        0 => {
            slice["ports"] = ports(rng);
            "ports"
        }
        1 => {
            // From one Service to another.
            slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!(format!("s{}", rng.below(6)));
            "the Service"
        }
        2..5 => {
            let new = endpoint(rng, family);
            if let Some(endpoints) = slice["endpoints"].as_array_mut() {
                endpoints.push(new);
            }
            "an endpoint more"
        }
        5..7 if number > 0 => {
            let gone = rng.below(number);
            slice["endpoints"].as_array_mut().map(|endpoints| endpoints.remove(gone));
            "an endpoint less"
        }
        7..9 if number > 0 => {
            let at = rng.below(number);
            slice["endpoints"][at]["conditions"] = conditions(rng);
            "conditions"
        }
        _ if number > 0 => {
            let at = rng.below(number);
            let address = slice["endpoints"][at]["addresses"].clone();
            slice["endpoints"][at] = endpoint(rng, family);
            if rng.chance(70) {
                slice["endpoints"][at]["addresses"] = address;
            }
            "an endpoint"
        }
        _ => {
            slice["endpoints"] = json!([endpoint(rng, family), endpoint(rng, family)]);
            "endpoints"
        }
    }
}

fn ports(rng: &mut Rng) -> Value {
    let mut ports = Vec::new();
    for (name, protocol) in rng.some(&PORTS, 88) {
        ports.push(json!({"name": name, "protocol": protocol, "port": rng.pick(&[80, 8080, 8081])}));
    }
    if rng.chance(5) {
        let wrong = [
            json!({"name": null, "port": 80}),
            json!({"name": "a", "port": null}),
            json!({"name": "a", "port": 0}),
            json!({"name": "a", "port": 70_000}),
            json!({"name": "a", "port": 8082}),
            json!({"port": 80}),
        ];
        let at = rng.below(ports.len() + 1);
        ports.insert(at, rng.pick(&wrong).clone());
    }
    if rng.chance(2) { Value::Null } else { json!(ports) }
}

fn conditions(rng: &mut Rng) -> Value {
    let one = |rng: &mut Rng| rng.pick(&[Value::Null, json!(true), json!(false)]).clone();
    match rng.below(100) {
        0..62 => json!({"ready": true}),
        62..70 => json!({}),
        70..76 => json!({"ready": false, "serving": true, "terminating": true}),
        76..80 => json!({"ready": false, "serving": false, "terminating": true}),
        80..88 => json!({"ready": false}),
        88..90 => Value::Null,
        _ => json!({"ready": one(rng), "serving": one(rng), "terminating": one(rng)}),
    }
}

fn endpoint(rng: &mut Rng, family: &Family) -> Value {
    let number = 1 + rng.below(6);
    let (prefix, node) = match rng.below(100) {
        0..6 => (family.node, NODES[0]),
        // Where Services answer, of which some are there: packets go on to the address as if it were a pod's.
        6..8 => (family.cluster_ips, NODES[1]),
        8..10 => (family.external, NODES[1]),
        10..52 => (family.local, NODES[0]),
        _ => (family.remote, NODES[1]),
    };
    let number = match prefix {
        _ if prefix == family.node => 1 + number % 2,
        _ if prefix == family.cluster_ips => 9 + number,
        _ => number,
    };
    let mut address = written(rng, format!("{prefix}{number}"));
    if rng.chance(2) {
        address = (*rng.pick(&NO_ADDRESSES)).to_owned();
    }
    let mut endpoint = json!({"addresses": [address], "nodeName": node, "conditions": conditions(rng)});
    if rng.chance(3) {
        endpoint["nodeName"] = Value::Null;
    }
    if rng.chance(30) {
        endpoint["targetRef"] = json!({"kind": "Pod", "namespace": NAMESPACE, "name": format!("p{number}")});
    }
    if rng.chance(50) {
        endpoint["zone"] = json!(rng.pick(&ZONES));
    }
    if rng.chance(60) {
        let zones: Vec<_> = rng.some(&ZONES, 60).into_iter().map(|zone| json!({"name": zone})).collect();
        endpoint["hints"] = json!({"forZones": zones});
        if rng.chance(60) {
            endpoint["hints"]["forNodes"] = json!([{"name": rng.pick(&NODES)}]);
        }
    }
    endpoint
}
