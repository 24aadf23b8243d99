//! Events: what is posted of what, how often, and that nobody needs them.

use std::net::TcpListener;

use kubeferry_tests::apiserver::{Fault, Resource, Verb};
use serde_json::{Value, json};

use crate::node::{Node, service, service_with};

/// The Events that the server has, with this reason.
fn events(node: &Node, reason: &str) -> Vec<Value> {
    let events = node.server.objects(Resource::Event);
    events.into_iter().filter(|event| event["reason"] == reason).collect()
}

/// Waits for an Event with this reason.
fn event(node: &Node, reason: &str) -> Value {
    node.until(&format!("an Event with the reason {reason}"), || events(node, reason).pop())
}

/// The Event without what differs from run to run.
fn fixed(mut event: Value) -> Value {
    let name = event["metadata"]["name"].take();
    let regarding = event["regarding"]["name"].as_str().unwrap().to_owned();
    assert!(name.as_str().unwrap().starts_with(&format!("{regarding}.")), "{name}");
    assert!(event["eventTime"].take().as_str().unwrap().starts_with("20"));
    for filled_in in ["uid", "creationTimestamp", "resourceVersion", "name"] {
        event["metadata"].as_object_mut().unwrap().remove(filled_in);
    }
    event.as_object_mut().unwrap().remove("eventTime");
    event
}

fn posted(node: &Node) -> usize {
    node.server.count(Verb::Write, Resource::Event)
}

/// Has the proxy sync so many times.
fn sync(node: &Node, times: u8) {
    let mut wanted: Vec<_> = node.frontends().iter().map(ToString::to_string).collect();
    for number in 1..=times {
        let ip = format!("10.96.9.{number}");
        node.server.apply(&service(&format!("more{number}"), &ip, &["10.244.1.9"])).unwrap();
        wanted.push(format!("{ip}:80"));
        node.expect("one more", &wanted.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn the_start_is_told_of_the_node() {
    let mut node = Node::new();
    node.run();
    let starting = fixed(event(&node, "Starting"));
    assert_eq!(
        starting,
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"namespace": "default"},
            "regarding": {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"},
            "type": "Normal", "reason": "Starting", "action": "StartKubeProxy",
            "note": format!("Kubeferry {} serves this Node by nftables", env!("CARGO_PKG_VERSION")),
            "reportingController": "kubeferry", "reportingInstance": "kubeferry-n1"})
    );
    node.until("the metric", || node.metric("kubeferry_events_total{result=\"posted\"}").filter(|n| *n == 1.0));
}

#[test]
fn what_is_wrong_with_a_service_is_told_of_it_once() {
    let mut node = Node::new();
    let bad = service_with("bad", "10.96.0.7", "")
        .replace("{type: ClusterIP", "{externalIPs: ['169.254.169.254', 300], type: ClusterIP")
        .replace(", 300]", "]");
    node.server.apply(&bad).unwrap();
    node.run();
    node.expect("the rest of it is served", &["10.96.0.7:80"]);
    let ignored = event(&node, "Ignored");
    let uid = node.server.objects(Resource::Service)[0]["metadata"]["uid"].clone();
    assert_eq!(
        fixed(ignored),
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"namespace": "default"},
            "regarding": {"apiVersion": "v1", "kind": "Service", "namespace": "default", "name": "bad", "uid": uid},
            "type": "Warning", "reason": "Ignored", "action": "Read",
            "note": "externalIP 169.254.169.254 ignored: link-local addresses are not allowed",
            "reportingController": "kubeferry", "reportingInstance": "kubeferry-n1"})
    );
    sync(&node, 5);
    assert_eq!(events(&node, "Ignored").len(), 1, "not for each sync");
    assert_eq!(posted(&node), 2, "nor anything else: {:?}", node.server.objects(Resource::Event));
}

#[test]
fn a_scheduler_that_this_datapath_cannot_do_is_told_logged_and_counted() {
    let mut node = Node::new();
    let annotated = |name: &str, ip: &str, scheduler: &str| {
        service_with(name, ip, &format!(", annotations: {{kubeferry.dev/scheduler: {scheduler}}}"))
    };
    node.server.apply(&annotated("least", "10.96.0.7", "lc")).unwrap();
    node.server.apply(&annotated("typo", "10.96.0.8", "roundrobin")).unwrap();
    node.server.apply(&annotated("fine", "10.96.0.9", "rr")).unwrap();
    node.run();
    node.until("two Events", || (events(&node, "SchedulerFallback").len() == 2).then_some(()));
    let mut told: Vec<_> = events(&node, "SchedulerFallback")
        .iter()
        .map(|event| (event["regarding"]["name"].to_string(), event["type"].to_string(), event["note"].to_string()))
        .collect();
    told.sort();
    let least = "\"annotation kubeferry.dev/scheduler ignored: lc asks how many connections each endpoint has, which only \
                 --backend ebpf counts; random, the node's, is used\"";
    assert_eq!(told[0], ("\"least\"".into(), "\"Warning\"".into(), least.into()));
    assert!(told[1].0 == "\"typo\"" && told[1].2.contains("roundrobin"), "{told:?}");
    assert_eq!(node.metric("kubeferry_scheduler_fallbacks"), Some(2.0));
    let log = node.log();
    assert!(log.lines().any(|line| line.contains("WARN") && line.contains("Service default/least")), "{log}");
    node.server.apply(&annotated("least", "10.96.0.7", "rr")).unwrap();
    node.until("the metric to fall", || node.metric("kubeferry_scheduler_fallbacks").filter(|n| *n == 1.0));
}

#[test]
fn who_loses_a_contested_frontend_is_told() {
    let mut node = Node::new();
    let with = |name: &str, ip: &str| {
        service_with(name, ip, "").replace("{type: ClusterIP", "{externalIPs: ['192.0.2.77'], type: ClusterIP")
    };
    // Both are of the same age: the name decides.
    node.server.apply(&with("aaa", "10.96.0.7")).unwrap();
    node.server.apply(&with("bbb", "10.96.0.8")).unwrap();
    node.run();
    let contested = event(&node, "FrontendContested");
    assert_eq!(contested["regarding"]["name"], "bbb");
    let note = contested["note"].as_str().unwrap();
    assert!(note.starts_with("tcp:192.0.2.77:80 is already served for default/aaa:http"), "{note}");
    assert_eq!(events(&node, "FrontendContested").len(), 1);
}

#[test]
fn a_server_that_takes_no_events_costs_a_line_of_the_log_and_nothing_else() {
    let mut node = Node::new();
    node.server.fault_on(Resource::Event, Fault::Status(403, usize::MAX));
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.server.apply(&service_with("bad", "10.96.0.7", "").replace("protocol: TCP", "protocol: QUIC")).unwrap();
    node.run();
    node.expect("services are served", &["10.96.0.1:80"]);
    node.until("a failure to be counted", || {
        node.metric("kubeferry_events_total{result=\"failed\"}").filter(|n| *n >= 1.0)
    });
    sync(&node, 5);
    let complaints = |node: &Node| node.log().lines().filter(|line| line.contains("cannot post Events")).count();
    assert_eq!(complaints(&node), 1, "{}", node.log());
    assert!(node.log().contains("create events in the API group events.k8s.io"), "{}", node.log());
    assert!(posted(&node) <= 2, "it is not asked for each sync");
    assert!(node.get("http://127.0.0.1:10256/healthz").is_some_and(|answer| answer.code == 200));
    node.server.no_faults();
    // Both come in the end: the start, which is told once, and what is still wrong.
    assert_eq!(event(&node, "Starting")["regarding"]["name"], "n1");
    assert_eq!(event(&node, "Ignored")["regarding"]["name"], "bad");
    assert!(node.metric("kubeferry_events_total{result=\"posted\"}").unwrap() >= 2.0);
    assert_eq!(complaints(&node), 1);
}

#[test]
fn a_server_that_is_away_is_told_later() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.server.fault(Fault::Down);
    node.run();
    node.until("the complaint", || node.log().contains("cannot post Events").then_some(()));
    assert_eq!(node.ask("http://127.0.0.1:10256/livez").code, 200);
    node.server.fault(Fault::Up);
    node.expect("services do not wait for Events", &["10.96.0.1:80"]);
    assert_eq!(event(&node, "Starting")["regarding"]["name"], "n1");
}

#[test]
fn a_flood_of_faults_is_a_few_events() {
    let mut node = Node::new();
    for number in 0..60 {
        let bad = service_with(&format!("bad{number}"), &format!("10.96.1.{number}"), "");
        node.server.apply(&bad.replace("protocol: TCP", "protocol: QUIC")).unwrap();
    }
    node.run();
    let dropped = || node.metric("kubeferry_events_total{result=\"dropped\"}").filter(|n| *n >= 30.0);
    node.until("most to be dropped", dropped);
    // Twenty at once, and ten a minute.
    node.until("the first to be posted", || (posted(&node) >= 20).then_some(()));
    assert!(posted(&node) <= 30, "{}", posted(&node));
}

#[test]
fn a_flood_of_faults_of_one_namespace_keeps_no_event_from_another() {
    let mut node = Node::new();
    for number in 0..100 {
        let bad = service_with(&format!("bad{number}"), &format!("10.96.1.{number}"), "");
        let bad = bad.replace("namespace: default", "namespace: aaa");
        node.server.apply(&bad.replace("protocol: TCP", "protocol: QUIC")).unwrap();
    }
    node.run();
    node.until("the first to be posted", || (posted(&node) >= 20).then_some(()));
    let bad = service_with("other", "10.96.2.1", "").replace("namespace: default", "namespace: zzz");
    node.server.apply(&bad.replace("protocol: TCP", "protocol: QUIC")).unwrap();
    node.until("the Event of another namespace", || {
        events(&node, "Ignored").into_iter().find(|event| event["regarding"]["name"] == "other")
    });
}

#[test]
fn without_an_api_server_events_are_lines_of_the_log() {
    let mut node = Node::new();
    let folder = tempfile::tempdir().unwrap();
    let annotations = ", annotations: {kubeferry.dev/scheduler: lc}";
    std::fs::write(folder.path().join("s.yaml"), service_with("least", "10.96.0.7", annotations)).unwrap();
    node.start(&["--manifests", &folder.path().display().to_string()]);
    let line = |words: &[&str]| node.log().lines().any(|line| words.iter().all(|word| line.contains(word)));
    node.until("the lines", || {
        let start = line(&["event: Kubeferry", "regarding=Node", "Starting"]);
        (start && line(&["event: annotation", "regarding=Service default/least", "SchedulerFallback"])).then_some(())
    });
    assert!(node.server.requests().is_empty());
}

#[test]
fn an_address_that_cannot_be_bound_ends_the_process_with_an_event_on_request() {
    let addresses =
        [("127.0.0.1:10249", "FailedToStartMetricServer"), ("0.0.0.0:10256", "FailedToStartProxierHealthcheck")];
    for (address, reason) in addresses {
        let mut node = Node::new();
        let _taken = node.namespace.run(|| TcpListener::bind(address)).unwrap().unwrap();
        let url = node.server.url();
        node.start(&["--server", &url, "--bind-address-hard-fail"]);
        assert_eq!(node.ended().code(), Some(1), "{}", node.log());
        let failed =
            events(&node, reason).pop().unwrap_or_else(|| panic!("no Event {reason}; the log:\n{}", node.log()));
        assert_eq!((&failed["regarding"]["name"], &failed["type"]), (&json!("n1"), &json!("Warning")));
        assert_eq!(failed["action"], "StartKubeProxy");
        assert!(failed["note"].as_str().unwrap().contains(address), "{failed}");
    }
}
