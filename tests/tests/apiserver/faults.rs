//! What goes wrong at the server or on the way there is got over; the rules stay in force meanwhile.

use std::time::Duration;

use kubeferry_tests::apiserver::{Fault, Resource, Verb};

use crate::node::{Node, service};

/// A node that serves `web` and `gone`, with every watch running.
fn started() -> Node {
    let mut node = Node::new();
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.server.apply(&service("gone", "10.96.0.2", &["10.244.1.2"])).unwrap();
    node.run();
    node.expect("those that were there", &["10.96.0.1:80", "10.96.0.2:80"]);
    let watched = || Resource::WATCHED.into_iter().all(|kind| node.server.count(Verb::Watch, kind) > 0).then_some(());
    node.until("a watch of every kind", watched);
    node
}

#[test]
fn after_410_everything_is_listed_and_deletions_are_noticed() {
    for inside in [false, true] {
        let node = started();
        node.server.tell_gone_inside(inside);
        let lists = node.server.count(Verb::List, Resource::Service);
        node.server.vanish(Resource::Service, "default", "gone").unwrap();
        node.server.apply(&service("new", "10.96.0.3", &["10.244.1.3"])).unwrap();
        node.expect("the one that vanished is not known to have", &["10.96.0.1:80", "10.96.0.2:80", "10.96.0.3:80"]);
        node.server.fault(Fault::Gone410);
        if !inside {
            // Open watches are always told inside; one that begins anew is told by the code.
            node.server.fault(Fault::CutConnections);
        }
        node.expect("the one that vanished is noticed", &["10.96.0.1:80", "10.96.0.3:80"]);
        assert!(node.server.count(Verb::List, Resource::Service) > lists);
        node.server.apply(&service("later", "10.96.0.4", &["10.244.1.4"])).unwrap();
        node.expect("the watch goes on", &["10.96.0.1:80", "10.96.0.3:80", "10.96.0.4:80"]);
    }
}

#[test]
fn cut_connections_are_made_anew() {
    let node = started();
    let mut wanted = vec!["10.96.0.1:80".to_owned(), "10.96.0.2:80".to_owned()];
    for number in 3..6 {
        node.server.fault(Fault::CutConnections);
        node.server.apply(&service(&format!("s{number}"), &format!("10.96.0.{number}"), &["10.244.1.9"])).unwrap();
        wanted.push(format!("10.96.0.{number}:80"));
        let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
        node.expect("what changed while cut off", &wanted);
    }
}

#[test]
fn a_server_that_is_down_leaves_the_rules_and_is_caught_up_with() {
    let node = started();
    node.server.fault(Fault::Down);
    node.server.apply(&service("new", "10.96.0.3", &["10.244.1.3"])).unwrap();
    node.server.delete(Resource::Service, "default", "gone").unwrap();
    let noticed = || node.log().contains("API server").then_some(());
    node.until("the log to say that the API server does not answer", noticed);
    node.expect("down, nothing changes", &["10.96.0.1:80", "10.96.0.2:80"]);
    // Compacted as well: after a long time the history is not what it was.
    node.server.compact();
    node.server.fault(Fault::Up);
    node.expect("up again", &["10.96.0.1:80", "10.96.0.3:80"]);
}

#[test]
fn wrong_answers_are_asked_for_again() {
    for fault in
        [Fault::Status(500, 6), Fault::Status(429, 6), Fault::Status(503, 6), Fault::Garbage(6), Fault::HalfJson(6)]
    {
        let node = started();
        node.server.vanish(Resource::Service, "default", "gone").unwrap();
        node.server.fault(fault);
        // Now every kind has to be listed anew.
        node.server.fault(Fault::Gone410);
        node.server.fault(Fault::CutConnections);
        node.server.apply(&service("new", "10.96.0.3", &["10.244.1.3"])).unwrap();
        node.expect(&format!("after {fault:?}"), &["10.96.0.1:80", "10.96.0.3:80"]);
        assert_eq!(node.server.faults_left(), 0, "{fault:?} did not hit");
    }
}

#[test]
fn half_an_event_that_others_follow_is_asked_for_again() {
    let node = started();
    node.server.fault_on(Resource::Service, Fault::HalfLine(1));
    node.server.fault(Fault::CutConnections);
    node.until("another watch", || (node.server.faults_left() == 0).then_some(()));
    node.server.delete(Resource::Service, "default", "gone").unwrap();
    node.server.apply(&service("new", "10.96.0.3", &["10.244.1.3"])).unwrap();
    node.expect("what half an event told", &["10.96.0.1:80", "10.96.0.3:80"]);
}

#[test]
fn wrong_answers_from_the_start_are_asked_for_again() {
    for fault in [Fault::Status(500, 6), Fault::Garbage(6), Fault::HalfJson(6)] {
        let mut node = Node::new();
        node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
        node.server.fault(fault);
        node.run();
        node.expect(&format!("after {fault:?}"), &["10.96.0.1:80"]);
        assert_eq!(node.server.faults_left(), 0, "{fault:?} did not hit");
    }
}

#[test]
fn slow_answers_are_waited_for() {
    let mut node = Node::new();
    for number in 1..=9 {
        node.server.apply(&service(&format!("s{number}"), &format!("10.96.0.{number}"), &["10.244.1.9"])).unwrap();
    }
    node.server.fault(Fault::Slow(Duration::from_millis(50)));
    node.run();
    let wanted: Vec<_> = (1..=9).map(|number| format!("10.96.0.{number}:80")).collect();
    let mut wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    node.expect("all of a slow list", &wanted);
    node.server.apply(&service("new", "10.96.0.10", &["10.244.1.9"])).unwrap();
    wanted.push("10.96.0.10:80");
    node.expect("a slow watch", &wanted);
}

#[test]
fn a_cluster_without_servicecidrs_is_served() {
    let mut node = Node::new();
    node.server.serve_kind(Resource::ServiceCidr, false);
    node.server.apply(&service("web", "10.96.0.1", &["10.244.1.1"])).unwrap();
    node.run();
    node.expect("with no ServiceCIDRs served", &["10.96.0.1:80"]);
}
