//! The scripted server itself, asked with plain requests: the other tests stand on it.

use std::time::Duration;

use kubeferry::status::get;
use kubeferry_tests::apiserver::{ApiServer, Fault, Resource, Verb};
use serde_json::Value;

use crate::node::{service, service_with};

const SERVICES: &str = "/api/v1/services";

/// Code and body of an answer; the body of a watch still has its chunks' lengths between.
fn ask(server: &ApiServer, path: &str) -> (u16, String) {
    let response = get(&format!("{}{path}", server.url()), Duration::from_secs(30)).unwrap();
    (response.code, response.body)
}

fn document(server: &ApiServer, path: &str) -> Value {
    let (code, body) = ask(server, path);
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

/// Types and names of a watch's events, bookmarks without.
fn events(body: &str) -> Vec<String> {
    let parsed = body.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(Value::is_object);
    let told = |event: Value| format!("{} {}", event["type"].as_str().unwrap(), event["object"]["metadata"]["name"]);
    parsed.map(told).filter(|told| !told.starts_with("BOOKMARK")).map(|told| told.replace('"', "")).collect()
}

fn version(list: &Value) -> String {
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[test]
fn lists_come_in_pages_of_one_version() {
    let server = ApiServer::start().unwrap();
    for (name, ip) in [("a", "10.96.0.1"), ("b", "10.96.0.2"), ("c", "10.96.0.3")] {
        server.apply(&service(name, ip, &[])).unwrap();
    }
    let first = document(&server, &format!("{SERVICES}?limit=2"));
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!((&first["kind"], &first["items"][0]["kind"]), (&"ServiceList".into(), &Value::Null));
    // Changes after the first page do not show in the next.
    server.apply(&service("d", "10.96.0.4", &[])).unwrap();
    server.delete(Resource::Service, "default", "c").unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let next = document(&server, &format!("{SERVICES}?limit=2&continue={}", token.replace('/', "%2F")));
    assert_eq!((names(&next), version(&next)), (vec!["c"], version(&first)));
    assert_eq!(names(&document(&server, SERVICES)), ["a", "b", "d"]);
    server.compact();
    assert_eq!(ask(&server, &format!("{SERVICES}?limit=2&continue={token}")).0, 410);
    assert_eq!(server.count(Verb::List, Resource::Service), 4);
    assert_eq!(server.requests()[0].query["limit"], "2");
}

#[test]
fn a_watch_tells_what_enters_and_leaves_its_selection() {
    let server = ApiServer::start().unwrap();
    let from = version(&document(&server, SERVICES));
    server.apply(&service("a", "10.96.0.1", &[])).unwrap();
    server.apply(&service_with("b", "10.96.0.2", ", labels: {x: y}")).unwrap();
    server.apply(&service_with("c", "None", "")).unwrap();
    server.apply(&service_with("b", "10.96.0.2", "")).unwrap();
    server.apply(&service_with("a", "10.96.0.1", ", labels: {z: y}")).unwrap();
    server.apply(&service_with("a", "10.96.0.1", ", labels: {x: y}")).unwrap();
    let selected = "labelSelector=%21x&fieldSelector=spec.clusterIP%21%3DNone";
    let path = format!("{SERVICES}?watch=1&timeoutSeconds=1&resourceVersion={from}&{selected}");
    assert_eq!(events(&ask(&server, &path).1), ["ADDED a", "ADDED b", "MODIFIED a", "DELETED a"]);
    let initial = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("{SERVICES}?{initial}&timeoutSeconds=1");
    let (_, body) = ask(&server, &path);
    assert_eq!(events(&body), ["ADDED a", "ADDED b", "ADDED c"]);
    assert!(body.contains(r#""k8s.io/initial-events-end":"true""#), "{body}");
    server.allow_streaming_lists(false);
    assert_eq!(ask(&server, &path).0, 422);
}

#[test]
fn versions_that_are_gone_are_refused_as_asked() {
    let server = ApiServer::start().unwrap();
    let from = version(&document(&server, SERVICES));
    server.apply(&service("a", "10.96.0.1", &[])).unwrap();
    server.compact();
    let path = format!("{SERVICES}?watch=1&timeoutSeconds=1&resourceVersion={from}");
    let (code, body) = ask(&server, &path);
    assert_eq!((code, body.contains(r#""reason":"Expired""#)), (410, true), "{body}");
    server.tell_gone_inside(true);
    let (code, body) = ask(&server, &path);
    assert_eq!((code, body.contains(r#""type":"ERROR""#), body.contains(r#""code":410"#)), (200, true, true), "{body}");
    let now = version(&document(&server, SERVICES));
    let (code, body) = ask(&server, &format!("{SERVICES}?watch=1&timeoutSeconds=1&resourceVersion={now}"));
    assert_eq!((code, body.contains("ERROR")), (200, false), "{body}");
}

#[test]
fn faults_hit_as_many_requests_as_asked() {
    let server = ApiServer::start().unwrap();
    server.fault_on(Resource::Node, Fault::Status(429, 1));
    server.fault(Fault::Status(500, 1));
    assert_eq!(ask(&server, SERVICES).0, 500);
    assert_eq!(ask(&server, "/api/v1/nodes").0, 429);
    assert_eq!((ask(&server, SERVICES).0, server.faults_left()), (200, 0));
    server.fault(Fault::Garbage(1));
    assert!(ask(&server, SERVICES).1.contains("<html>"));
    server.fault(Fault::HalfJson(1));
    assert!(serde_json::from_str::<Value>(&ask(&server, SERVICES).1).is_err());
    server.serve_kind(Resource::ServiceCidr, false);
    assert_eq!(ask(&server, "/apis/networking.k8s.io/v1/servicecidrs").0, 404);
    let url = format!("{}{SERVICES}", server.url());
    server.fault(Fault::Down);
    get(&url, Duration::from_secs(30)).unwrap_err();
    server.fault(Fault::Up);
    assert_eq!(ask(&server, SERVICES).0, 200);
}
