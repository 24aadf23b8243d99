//! Kubernetes objects: as manifests, as the API server's answers, and their annotations.

use std::collections::BTreeMap;

use serde_json::json;

use super::pipeline::{NODE, follow};
use crate::state::convert::annotations::{HASH_KEY, SCHEDULER, SLOW_START, WEIGHTS};
use crate::state::event::{Event, Kind};
use crate::watch::fuzzing as watch;

/// Bytes as text, if they are.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Documents of a file of manifests, read as YAML and as JSON, and followed to rows.
pub fn manifests(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    for file in ["x.yaml", "x.json"] {
        if let Some(events) = watch::documents(file, text, NODE) {
            follow(events);
        }
    }
}

/// The first byte says of what kind the list is.
pub fn api_list(bytes: &[u8]) {
    let Some((kind, json)) = kind(bytes) else { return };
    if let Some(events) = watch::list(kind, json) {
        follow(events);
    }
}

/// The first byte says of what kind the objects are; each line is an event.
pub fn api_watch(bytes: &[u8]) {
    let Some((kind, lines)) = kind(bytes) else { return };
    let events = watch::lines(kind, lines);
    // What goes and comes again is not followed here, but by the laws of histories.
    follow(events.into_iter().filter(|event| !matches!(event, Event::Listed(_))).collect());
}

fn kind(bytes: &[u8]) -> Option<(Kind, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];
    Some((kinds[usize::from(*first) % kinds.len()], rest))
}

/// Each line is an annotation of ours: scheduler, hash key, weights, slow start; of a Service with a few endpoints.
pub fn annotations(bytes: &[u8]) {
    let Some(text) = text(bytes) else { return };
    let names = [SCHEDULER, HASH_KEY, WEIGHTS, SLOW_START];
    let annotations: BTreeMap<&str, &str> = names.into_iter().zip(text.lines()).collect();
    let service = json!({
        "metadata": {"name": "web", "namespace": "default", "annotations": annotations},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    });
    let endpoint = |ip: &str, node: &str, zone: &str| {
        let pod = json!({"kind": "Pod", "name": format!("web-{ip}"), "namespace": "default"});
        json!({"addresses": [ip], "nodeName": node, "zone": zone, "targetRef": pod, "conditions": {"ready": true}})
    };
    let slice = json!({
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            endpoint("10.244.0.1", NODE, "a"),
            endpoint("10.244.0.2", NODE, "b"),
            endpoint("10.244.1.1", "worker-2", "a"),
        ],
        "ports": [{"port": 8080}],
    });
    let events = [(Kind::Service, service), (Kind::EndpointSlice, slice)];
    follow(events.into_iter().flat_map(|(kind, object)| watch::object(kind, object)).collect());
}
