//! A random cluster's objects, and random changes of them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::pools::FAMILIES;
use super::rng::Rng;
use super::service::{SCHEDULERS, WITHOUT_HASH};
use super::{broken, node, service, slice};
use crate::flows::Node;

/// How many Services there may be by number: few, so that one comes back under a name that another had.
const NUMBERS: usize = 8;

/// Objects by kind and name, in an order that is always the same.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Cluster {
    objects: BTreeMap<String, Value>,
    /// The node's own scheduler hashes.
    hashes: bool,
    /// How many objects there have been that cannot be decoded.
    broken: usize,
}

impl Cluster {
    /// Makes one up.
    pub(super) fn new(rng: &mut Rng, node: &Node) -> Self {
        let hashed =
            |name: &String| SCHEDULERS.iter().position(|known| known == name).is_some_and(|at| at >= WITHOUT_HASH);
        let hashes = node.scheduler.as_ref().is_some_and(hashed);
        let mut cluster = Self { objects: BTreeMap::new(), hashes, broken: 0 };
        cluster.put(node::object(rng, node));
        if rng.chance(80) {
            cluster.put(service_cidr(rng));
        }
        for _ in 0..2 + rng.below(6) {
            cluster.service(rng);
        }
        if rng.chance(20) {
            cluster.broken(rng);
        }
        cluster
    }

    /// Every object.
    pub fn objects(&self) -> impl Iterator<Item = &Value> {
        self.objects.values()
    }

    /// Every object with its kind and name.
    pub(super) fn entries(&self) -> &BTreeMap<String, Value> {
        &self.objects
    }

    /// The same, to be taken away from.
    pub(super) fn entries_mut(&mut self) -> &mut BTreeMap<String, Value> {
        &mut self.objects
    }

    /// Every Service.
    pub(super) fn services(&self) -> impl Iterator<Item = &Value> {
        self.objects.values().filter(|object| object["kind"] == "Service" && !broken::is_one(object))
    }

    /// Changes something; what, for people.
    pub(super) fn change(&mut self, rng: &mut Rng) -> String {
        let of_kind = |kind: &str| -> Vec<String> {
            let found = self.objects.iter().filter(|(_, object)| object["kind"] == kind && !broken::is_one(object));
            found.map(|(key, _)| key.clone()).collect()
        };
        let (services, slices) = (of_kind("Service"), of_kind("EndpointSlice"));
        let what = rng.below(100);
        if what < 38 && !slices.is_empty() {
            let key = rng.pick(&slices);
            let part = self.objects.get_mut(key).map_or("nothing", |object| slice::change(rng, object));
            format!("{key}: {part}")
        } else if what < 66 && !services.is_empty() {
            let key = rng.pick(&services);
            let part = self.objects.get_mut(key).map_or("nothing", |object| service::change(rng, object));
            self.settle(key);
            format!("{key}: {part}")
        } else if what < 73 && !services.is_empty() {
            let key = rng.pick(&services);
            self.objects.remove(key);
            format!("{key} goes")
        } else if what < 79 && !slices.is_empty() {
            let key = rng.pick(&slices);
            self.objects.remove(key);
            format!("{key} goes")
        } else if what < 86 {
            let family = rng.pick(&FAMILIES);
            let (of, number) = (rng.below(NUMBERS), rng.below(4));
            let key = self.put(slice::slice(rng, of, family, number));
            format!("{key} is put")
        } else if what < 92 {
            let node = of_kind("Node");
            let part = node.first().and_then(|key| self.objects.get_mut(key)).map(|object| node::change(rng, object));
            format!("Node: {}", part.unwrap_or("nothing"))
        } else if what < 95 {
            match of_kind("ServiceCIDR").first().filter(|_| rng.chance(50)) {
                Some(key) => {
                    self.objects.remove(key);
                    format!("{key} goes")
                }
                None => format!("{} is put", self.put(service_cidr(rng))),
            }
        } else if what < 97 {
            format!("{} is put, and cannot be decoded", self.broken(rng))
        } else {
            format!("{} is put with slices", self.service(rng))
        }
    }

    /// Makes up an object that cannot be decoded.
    fn broken(&mut self, rng: &mut Rng) -> String {
        self.broken += 1;
        let of = rng.below(NUMBERS);
        self.put(broken::object(rng, self.broken, of))
    }

    /// Makes up a Service and its slices; takes the place of one of the same name.
    fn service(&mut self, rng: &mut Rng) -> String {
        let number = rng.below(NUMBERS);
        let key = self.put(service::service(rng, number));
        self.settle(&key);
        for family in &FAMILIES {
            for slice in 0..*rng.pick(&[0, 1, 1, 2, 2, 3]) {
                self.put(slice::slice(rng, number, family, slice));
            }
        }
        key
    }

    fn settle(&mut self, key: &str) {
        if let Some(object) = self.objects.get_mut(key) {
            service::settle(object, self.hashes);
        }
    }

    fn put(&mut self, object: Value) -> String {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
        self.objects.insert(key.clone(), object);
        key
    }

    /// The manifests.
    ///
    /// # Errors
    /// An object cannot be written as YAML: a fault of this module.
    pub fn manifests(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for object in self.objects() {
            text += &format!("---\n{}", serde_yaml_ng::to_string(object)?);
        }
        Ok(text)
    }
}

fn service_cidr(rng: &mut Rng) -> Value {
    let cidrs = [
        &["10.96.0.0/16", "fd00:10:96::/64"][..],
        &["10.96.0.0/16", "fd00:10:96::/64"],
        &["10.96.0.0/24"],
        &["fd00:10:96::/112", "10.96.0.0/16"],
        &["10.96.0.0/40", "fd00:10:96::/64"],
    ];
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": if rng.chance(80) { "kubernetes" } else { "more" }},
        "spec": {"cidrs": rng.pick(&cidrs)},
    })
}
