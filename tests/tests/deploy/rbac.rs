//! The ClusterRole has the requests that the binary makes, and no other.

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Command, Stdio};

use kubeferry_tests::apiserver::ApiServer;
use kubeferry_tests::binary;
use kubeferry_tests::client::{Running, until};
use kubeferry_tests::netns::Netns;
use serde_json::Value;

use super::objects;

/// Group, resource, verb.
type Right = (String, String, String);

const OBJECTS: &str = "
apiVersion: v1
kind: Node
metadata: {name: n1}
spec: {podCIDRs: [10.244.1.0/24]}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec: {type: ClusterIP, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], ports: [{port: 80}]}
---
# Left out, and reported.
apiVersion: v1
kind: Service
metadata: {name: twin, namespace: default}
spec: {type: ClusterIP, clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10], ipFamilies: [IPv4], ports: [{port: 80}]}
";

/// The right that an API server asks for.
fn right((method, path, watch): &(String, String, bool)) -> Right {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (group, rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("", rest),
        ["apis", group, _version, rest @ ..] => (*group, rest),
        _ => panic!("{method} {path} asks for no object"),
    };
    let rest = match rest {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    let [resource, name @ ..] = rest else { panic!("{method} {path} names no resource") };
    let verb = match (method.as_str(), name.is_empty()) {
        ("GET", _) if *watch => "watch",
        ("GET", true) => "list",
        ("GET", false) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        ("DELETE", true) => "deletecollection",
        ("DELETE", false) => "delete",
        other => panic!("{other:?}"),
    };
    (group.into(), (*resource).into(), verb.into())
}

/// What the binary asks for until its rows are in the kernel, and while objects change.
fn asked(streaming_lists: bool) -> BTreeSet<Right> {
    let namespace = Netns::new("rights").unwrap();
    let link = ["link add eth0 type veth peer name unplugged", "link set eth0 up", "addr add 192.0.2.1/32 dev eth0"];
    namespace.ip(&link).unwrap();
    let server = namespace.run(ApiServer::start).unwrap().unwrap();
    server.allow_streaming_lists(streaming_lists);
    server.apply(OBJECTS).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut command = Command::new(binary::path().unwrap());
    command.args(["run", "--node-name", "n1", "--server", &server.url()]);
    command.stderr(File::create(&log).unwrap()).stdin(Stdio::null());
    let running = Running::start_command(&mut command, &namespace).unwrap();
    let has = |what: &str| {
        let listed = namespace.nft(&["list", "map", "inet", "kubeferry", "frontends4"], "");
        listed.is_ok_and(|text| text.contains(what)).then_some(())
    };
    let or_log = |result: anyhow::Result<()>| {
        result.unwrap_or_else(|error| panic!("{error:#}; its log:\n{}", std::fs::read_to_string(&log).unwrap()));
    };
    or_log(until("the Service in the kernel", || has("10.96.0.10")));
    // Watches go on after a break, and from a new list after a long one.
    server.fault(kubeferry_tests::apiserver::Fault::Gone410);
    server.fault(kubeferry_tests::apiserver::Fault::CutConnections);
    server.apply(&OBJECTS.replace("10.96.0.10", "10.96.0.11")).unwrap();
    or_log(until("the other address in the kernel", || has("10.96.0.11")));
    running.stop().unwrap();
    server.received().iter().map(right).collect()
}

/// The rights of the ClusterRole.
fn granted() -> BTreeSet<Right> {
    let role = objects("overlays/nftables")[&("ClusterRole".to_owned(), "kubeferry".to_owned())].clone();
    let words = |rule: &Value, field: &str| -> Vec<String> {
        rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut granted = BTreeSet::new();
    for rule in role["rules"].as_array().unwrap() {
        for group in words(rule, "apiGroups") {
            for resource in words(rule, "resources") {
                for verb in words(rule, "verbs") {
                    assert!(granted.insert((group.clone(), resource.clone(), verb)), "{rule} says it again");
                }
            }
        }
    }
    granted
}

#[test]
fn the_role_has_what_the_binary_asks_for_and_no_more() {
    let asked: BTreeSet<Right> = asked(true).into_iter().chain(asked(false)).collect();
    let granted = granted();
    let missing: Vec<_> = asked.difference(&granted).collect();
    let more: Vec<_> = granted.difference(&asked).collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "asked for and not granted: {missing:?}; granted for nothing: {more:?}"
    );
}

#[test]
fn requests_are_understood_as_rights() {
    let of = |method: &str, path: &str, watch| {
        let (group, resource, verb) = right(&(method.into(), path.into(), watch));
        format!("{group} {resource} {verb}")
    };
    assert_eq!(of("GET", "/api/v1/services", true), " services watch");
    assert_eq!(of("GET", "/api/v1/nodes/n1", false), " nodes get");
    assert_eq!(of("POST", "/apis/events.k8s.io/v1/namespaces/default/events", false), "events.k8s.io events create");
    assert_eq!(of("PATCH", "/apis/events.k8s.io/v1/namespaces/a/events/b", false), "events.k8s.io events patch");
    assert_eq!(of("GET", "/apis/discovery.k8s.io/v1/endpointslices", false), "discovery.k8s.io endpointslices list");
}
