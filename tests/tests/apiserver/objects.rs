//! What is served follows the objects, also those that only the scripted server can serve.

use kubeferry_tests::apiserver::{Resource, Verb};
use serde_json::Value;

use crate::node::{Node, service, service_with, socket};

const LISTED: [Resource; 2] = [Resource::Service, Resource::EndpointSlice];

#[test]
fn only_what_is_ours_is_asked_for() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.run();
    node.expect("all is listed", &["10.96.0.1:80"]);
    let requests = node.server.requests();
    let lists = |resource| requests.iter().find(move |request| request.resource == resource).unwrap();
    let services = &lists(Resource::Service).query;
    assert_eq!(services["labelSelector"], "!service.kubernetes.io/service-proxy-name");
    assert_eq!(services["fieldSelector"], "spec.clusterIP!=None");
    assert_eq!(lists(Resource::EndpointSlice).query["labelSelector"], "!service.kubernetes.io/headless");
    assert_eq!(lists(Resource::Node).query["fieldSelector"], "metadata.name=n1");
}

#[test]
fn a_cluster_ip_that_changes_takes_its_old_frontend_away() {
    // No API server allows it, but for a Service that was deleted and made anew while nobody watched.
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.run();
    node.expect("the first address", &["10.96.0.1:80"]);
    node.server.apply(&service_with("web", "10.96.0.9", "")).unwrap();
    node.expect("another address", &["10.96.0.9:80"]);
}

#[test]
fn a_malformed_object_is_reported_and_the_others_work() {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    let malformed = service("bad", "10.96.0.3", &["10.244.1.3"]).replace("port: 80,", "port: [eighty],");
    node.server.apply(&malformed).unwrap();
    node.run();
    node.expect("the well-formed", &["10.96.0.1:80"]);
    let ignored = |status: &Value| {
        let ignored = status["ignored"].as_array().cloned().unwrap_or_default();
        ignored.iter().map(|entry| format!("{}: {}", entry["what"], entry["why"])).collect::<String>()
    };
    let named = || node.status().map(|status| ignored(&status)).filter(|text| text.contains("Service default/bad"));
    let text = node.until("the status to name the malformed Service", named);
    assert!(text.contains("malformed"), "{text}");
    node.server.apply(&service("more", "10.96.0.4", &["10.244.1.4"])).unwrap();
    node.expect("one came after the malformed", &["10.96.0.1:80", "10.96.0.4:80"]);
    node.server.apply(&service("bad", "10.96.0.3", &["10.244.1.3"])).unwrap();
    node.expect("the malformed was mended", &["10.96.0.1:80", "10.96.0.3:80", "10.96.0.4:80"]);
    let mended = || node.status().filter(|status| ignored(status).is_empty()).map(drop);
    node.until("the status to name it no longer", mended);
}

#[test]
fn nothing_is_written_before_both_kinds_are_listed() {
    for late in LISTED {
        let mut node = Node::new();
        node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
        node.server.hold(late);
        node.run();
        let waits = |node: &Node| {
            let status =
                node.status().filter(|status| status["waitingFor"].as_array().is_some_and(|w| w.len() == 1))?;
            status["waitingFor"].to_string().contains(late.kind()).then_some(())
        };
        node.until(&format!("the status to say that the {} list is waited for", late.kind()), || waits(&node));
        assert!(!node.has_table(), "a table without the list of {}", late.kind());
        node.server.release(late);
        node.expect("both are listed", &["10.96.0.1:80"]);
        // The same with rules of an earlier run, which know nothing of the new Service.
        assert!(node.terminate().success());
        node.server.apply(&service("new", "10.96.0.2", &["10.244.1.2"])).unwrap();
        node.server.hold(late);
        node.run();
        node.until(&format!("a second run to wait for the {} list", late.kind()), || waits(&node));
        node.expect("the earlier run's", &["10.96.0.1:80"]);
        assert_eq!(node.endpoints(), [socket("10.244.1.1:8080")].into());
        node.server.release(late);
        node.expect("both are listed again", &["10.96.0.1:80", "10.96.0.2:80"]);
    }
}

#[test]
fn long_lists_come_in_pages() {
    let mut node = Node::new();
    let count = 1_201;
    for number in 0..count {
        let ip = format!("10.96.{}.{}", 1 + number / 250, 1 + number % 250);
        node.server.apply(&service(&format!("s{number}"), &ip, &["10.244.1.1"])).unwrap();
    }
    node.run();
    node.until(&format!("{count} frontends"), || (node.frontends().len() == count).then_some(()));
    for resource in LISTED {
        let pages = node.server.requests();
        let pages = pages.iter().filter(|request| request.verb == Verb::List && request.resource == resource);
        assert!(pages.clone().any(|request| request.query.contains_key("continue")), "{resource:?}");
        assert!(pages.clone().all(|request| request.query.contains_key("limit")), "{resource:?}");
    }
}
