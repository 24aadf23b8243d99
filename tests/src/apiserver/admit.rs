//! What an API server makes of an object that comes over HTTP: what it allots, what it keeps, what it refuses.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::answer::not_found;
use super::resource::{Resource, Target};
use super::store::{Key, Store};

/// The networks that ClusterIPs are allotted from: 10.96.0.0/16 and fd00:10:96::/112.
const NETWORKS: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(10, 96, 0, 0), Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0));
/// The first port that is allotted.
const FIRST_NODE_PORT: u64 = 30_000;

/// The object to store for a POST, PUT or PATCH; every PATCH is taken for a merge.
///
/// # Errors
/// Code and message of the refusal.
pub(super) fn admit(store: &Store, method: &str, target: &Target, body: Value) -> Result<Value, (u16, String)> {
    let resource = target.resource;
    let written = |field: &str| body["metadata"][field].as_str().map(str::to_owned);
    let name = target.name.clone().or_else(|| written("name")).filter(|_| body.is_object());
    let Some(name) = name else { return Err((422, "the object has no name".into())) };
    let namespace = target.namespace.clone().or_else(|| written("namespace"));
    let before = store.get(&Key::new(resource, namespace.as_deref().unwrap_or("default"), &name));
    let mut object = match (method, before) {
        ("POST", Some(_)) => return Err((409, format!("{} \"{name}\" already exists", resource.plural()))),
        ("POST", None) => body,
        (_, None) => return Err((404, not_found(target))),
        ("PATCH", Some(before)) => merged(Value::clone(before), body),
        (_, Some(before)) => {
            let version = &body["metadata"]["resourceVersion"];
            if version.is_string() && *version != before["metadata"]["resourceVersion"] {
                return Err((
                    409,
                    "the object has been modified; please apply your changes to the latest version".into(),
                ));
            }
            body
        }
    };
    object["kind"] = resource.kind().into();
    match before {
        Some(before) if target.is_status => {
            let status = object["status"].take();
            object = Value::clone(before);
            object["status"] = status;
        }
        Some(before) if before.get("status").is_some() => object["status"] = before["status"].clone(),
        Some(_) => {}
        None if resource == Resource::Service => object["status"] = json!({"loadBalancer": {}}),
        None => {}
    }
    if let Some(namespace) = namespace {
        object["metadata"]["namespace"] = namespace.into();
    }
    if resource == Resource::Service && object["spec"]["type"] != "ExternalName" {
        allot_addresses(store, before.map(|before| &before["spec"]), &mut object["spec"]);
        allot_node_ports(store, before.map(|before| &before["spec"]), &mut object["spec"]);
    }
    Ok(object)
}

/// A JSON merge patch (RFC 7386).
fn merged(mut object: Value, patch: Value) -> Value {
    let Value::Object(patch) = patch else { return patch };
    if !object.is_object() {
        object = json!({});
    }
    if let Some(fields) = object.as_object_mut() {
        for (field, value) in patch {
            match (value.is_null(), fields.remove(&field)) {
                (true, _) => {}
                (false, old) => drop(fields.insert(field, merged(old.unwrap_or_default(), value))),
            }
        }
    }
    object
}

fn allot_addresses(store: &Store, before: Option<&Value>, spec: &mut Value) {
    for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if spec[field].is_null() {
            spec[field] = before.map(|before| before[field].clone()).unwrap_or_default();
        }
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
    if spec["ipFamilies"].is_null() {
        let both = spec["ipFamilyPolicy"] != "SingleStack";
        spec["ipFamilies"] = if both { json!(["IPv4", "IPv6"]) } else { json!(["IPv4"]) };
    }
    if spec["clusterIPs"].is_null() {
        spec["clusterIPs"] = match spec["clusterIP"].as_str() {
            Some(given) => json!([given]),
            None => {
                let families = spec["ipFamilies"].as_array().into_iter().flatten();
                families.map(|family| free_address(store, family == "IPv6")).collect()
            }
        };
    }
    spec["clusterIP"] = spec["clusterIPs"][0].clone();
}

fn free_address(store: &Store, is_ipv6: bool) -> Value {
    let services = store.all(Resource::Service);
    let used: BTreeSet<_> = services
        .flat_map(|service| service["spec"]["clusterIPs"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let address = |number: u32| match is_ipv6 {
        true => IpAddr::V6(Ipv6Addr::from_bits(NETWORKS.1.to_bits() | u128::from(number))),
        false => IpAddr::V4(Ipv4Addr::from_bits(NETWORKS.0.to_bits() | number)),
    };
    (1..1 << 16).map(|number| address(number).to_string()).find(|text| !used.contains(text.as_str())).into()
}

fn allot_node_ports(store: &Store, before: Option<&Value>, spec: &mut Value) {
    if !["NodePort", "LoadBalancer"].map(Value::from).contains(&spec["type"]) {
        return;
    }
    let services = store.all(Resource::Service).map(|service| &service["spec"]);
    let mut used: BTreeSet<_> =
        services.chain([&*spec]).flat_map(ports).map(|port| number(&port["nodePort"])).collect();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if port["nodePort"].is_null() {
            let is_same = |old: &&Value| old["port"] == port["port"] && old["protocol"] == port["protocol"];
            let old = before
                .into_iter()
                .flat_map(ports)
                .find(is_same)
                .map(|old| number(&old["nodePort"]))
                .filter(|old| *old > 0);
            let free = (FIRST_NODE_PORT..).find(|free| !used.contains(free)).unwrap_or_default();
            let allotted = old.unwrap_or(free);
            used.insert(allotted);
            port["nodePort"] = allotted.into();
        }
    }
}

fn ports(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["ports"].as_array().into_iter().flatten()
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(store: &mut Store, method: &str, path: &str, body: Value) -> Result<Value, u16> {
        let target = Target::of_path(path).unwrap();
        let object = admit(store, method, &target, body).map_err(|(code, _)| code)?;
        Ok(Value::clone(&store.apply(object).unwrap()))
    }

    #[test]
    fn addresses_and_node_ports_are_allotted_and_kept() {
        const ALL: &str = "/api/v1/namespaces/ns/services";
        let mut store = Store::new();
        let service = |name: &str, more: Value| {
            let spec = json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]});
            json!({"metadata": {"name": name}, "spec": merged(spec, more)})
        };
        let a = write(&mut store, "POST", ALL, service("a", json!({}))).unwrap();
        assert_eq!((&a["spec"]["clusterIPs"], &a["spec"]["clusterIP"]), (&json!(["10.96.0.1"]), &json!("10.96.0.1")));
        let both = json!({"ipFamilyPolicy": "PreferDualStack", "type": "LoadBalancer"});
        let b = write(&mut store, "POST", ALL, service("b", both)).unwrap();
        assert_eq!(b["spec"]["clusterIPs"], json!(["10.96.0.2", "fd00:10:96::1"]));
        let allotted =
            |service: &Value| ports(&service["spec"]).map(|port| number(&port["nodePort"])).collect::<Vec<_>>();
        assert_eq!((allotted(&a), allotted(&b)), (vec![30_000, 30_001], vec![30_002, 30_003]));
        assert_eq!((&b["metadata"]["namespace"], &b["status"]), (&json!("ns"), &json!({"loadBalancer": {}})));
        // What was allotted stays, also through an update that does not speak of it.
        let kept = write(&mut store, "PUT", &format!("{ALL}/b"), service("b", json!({}))).unwrap();
        assert_eq!((&kept["spec"]["clusterIPs"], allotted(&kept)), (&b["spec"]["clusterIPs"], allotted(&b)));
        assert_eq!(write(&mut store, "POST", ALL, service("b", json!({}))), Err(409));
        assert_eq!(write(&mut store, "PUT", &format!("{ALL}/c"), service("c", json!({}))), Err(404));
        let stale = json!({"metadata": {"name": "b", "resourceVersion": "1"}, "spec": {}});
        assert_eq!(write(&mut store, "PUT", &format!("{ALL}/b"), stale), Err(409));
    }

    #[test]
    fn the_status_is_written_apart_and_patches_merge() {
        const ONE: &str = "/api/v1/namespaces/ns/services/a";
        let mut store = Store::new();
        let service = json!({"metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}, "spec": {"clusterIP": "None"}, "status": 1});
        let made = write(&mut store, "POST", "/api/v1/namespaces/ns/services", service).unwrap();
        assert_eq!((&made["spec"]["clusterIPs"], &made["status"]), (&json!(["None"]), &json!({"loadBalancer": {}})));
        let ingress = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
        let patch = json!({"status": ingress, "spec": {"externalIPs": ["192.0.2.8"]}});
        let told = write(&mut store, "PATCH", &format!("{ONE}/status"), patch).unwrap();
        assert_eq!((&told["status"], &told["spec"]), (&ingress, &made["spec"]));
        let changed =
            write(&mut store, "PATCH", ONE, json!({"metadata": {"labels": {"x": null, "z": "3"}}, "status": 2}))
                .unwrap();
        assert_eq!((&changed["metadata"]["labels"], &changed["status"]), (&json!({"y": "2", "z": "3"}), &ingress));
    }

    #[test]
    fn a_namespace_goes_with_all_that_is_in_it() {
        let mut store = Store::new();
        write(&mut store, "POST", "/api/v1/namespaces", json!({"metadata": {"name": "a"}})).unwrap();
        for namespace in ["a", "b"] {
            let path = format!("/api/v1/namespaces/{namespace}/services");
            write(&mut store, "POST", &path, json!({"metadata": {"name": "s"}, "spec": {}})).unwrap();
        }
        assert!(store.delete(&Key::new(Resource::Namespace, "", "a"), false));
        let left: Vec<_> = store.all(Resource::Service).map(|service| &service["metadata"]["namespace"]).collect();
        assert_eq!(left, ["b"]);
    }
}
