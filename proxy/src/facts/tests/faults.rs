//! What is wrong with Services: how they are, and what is left out of them.

use super::*;
use crate::status::{Status, print};

#[test]
fn a_services_own_faults_are_told_however_many_others_there_are() {
    let mut objects: Vec<Value> = (0..1_100_u32)
        .map(|number| {
            let spec = json!({"clusterIP": format!("10.97.{}.{}", number / 256, number % 256)});
            let mut bad = service(1, spec);
            bad["metadata"]["name"] = json!(format!("bad-{number}"));
            bad["metadata"]["annotations"] = json!({"kubeferry.dev/scheduler": "roundrobin"});
            bad
        })
        .collect();
    for (number, name) in [(1, "zzz1"), (2, "zzz2")] {
        let mut contested = service(number, json!({"externalIPs": ["192.0.2.7"]}));
        contested["metadata"]["name"] = json!(name);
        contested["metadata"]["creationTimestamp"] = json!(format!("2026-01-0{number}T00:00:00Z"));
        objects.push(contested);
    }
    let mut node = Node::with(&objects);
    let facts = node.observer.service(&mut node.proxy, &ObjectName::new("default", "zzz2")).unwrap();
    let [fault] = facts.ignored.as_slice() else { panic!("{:?}", facts.ignored) };
    assert_eq!((fault.name.as_str(), fault.reason.as_str()), ("zzz2", "FrontendContested"));
    let snapshot = node.snapshot();
    let state = |name: &str| snapshot.service("default", name).unwrap().health.state;
    assert_eq!((snapshot.ignored.items.len(), snapshot.ignored.total), (1_000, 1_101));
    assert_eq!(state("zzz2"), facts.health.state);
    let status = Status::from(&snapshot);
    assert_eq!((status.ignored.len(), status.ignored_total), (1_000, 1_101));
    assert!(print(&status, Timestamp::now()).contains("  and 101 more: "));
}

#[test]
fn a_service_is_down_where_no_family_of_it_answers() {
    let mut both = service(1, json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}));
    both["metadata"]["annotations"] = json!({"kubeferry.dev/weights": "10.244.1.2=0"});
    let mut node = Node::with(&[both, slice(1, &[(1, json!({}))])]);
    let state = |node: &mut Node| {
        let facts = node.observer.service(&mut node.proxy, &ObjectName::new("default", "web-1")).unwrap();
        assert_eq!(facts.health, node.snapshot().services[0].health);
        (facts.health.state, facts.health.reason.unwrap())
    };
    let (degraded, why) = state(&mut node);
    assert_eq!(degraded, HealthState::Degraded);
    assert!(why.contains("(IPv6) has no usable endpoint"), "{why}");
    node.apply(&slice(1, &[(2, json!({}))]));
    node.sync();
    let (down, _) = state(&mut node);
    assert_eq!(down, HealthState::Down);
    let mut only = service(2, json!({}));
    only["metadata"]["annotations"] = json!({"kubeferry.dev/weights": "10.244.1.2=0"});
    let mut node = Node::with(&[only, slice(2, &[(2, json!({}))])]);
    let facts = node.observer.service(&mut node.proxy, &ObjectName::new("default", "web-2")).unwrap();
    let why = facts.health.reason.unwrap();
    assert!(why.contains("1 ready endpoints of weight 0"), "{why}");
    assert_eq!(facts.ports[0].counts.ready, 1);
}
