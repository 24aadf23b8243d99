use super::*;
use crate::state::objects::Protocol;
use serde_json::{Value, json};

fn convert(spec: Value, status: Value) -> Converted<Service> {
    let object = json!({"metadata": {"namespace": "ns1", "name": "svc1"}, "spec": spec, "status": status});
    service(&serde_json::from_value(object).unwrap())
}

fn spec(spec: Value) -> Converted<Service> {
    convert(spec, json!({}))
}

/// The Service and no fault.
fn clean(got: Converted<Service>) -> Service {
    assert_eq!(got.faults, []);
    got.object.unwrap()
}

fn why(got: &Converted<Service>) -> Vec<&str> {
    got.faults.iter().map(|fault| fault.why.as_str()).collect()
}

fn text(list: &[impl ToString]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_not_ours_is_none_without_a_fault() {
    let specs = [
        json!({"clusterIP": "None"}),
        json!({"clusterIP": ""}),
        json!({}),
        json!({"clusterIPs": ["None"]}),
        json!({"clusterIP": "10.0.0.1", "type": "ExternalName", "externalName": "example.com"}),
    ];
    for case in specs {
        let got = spec(case.clone());
        assert!(got.object.is_none() && got.faults.is_empty(), "{case}");
    }
    let other =
        json!({"metadata": {"name": "a", "labels": {SERVICE_PROXY_NAME_LABEL: ""}}, "spec": {"clusterIP": "10.0.0.1"}});
    assert!(service(&serde_json::from_value(other).unwrap()).object.is_none());
    assert!(service(&core::Service::default()).object.is_none());
}

#[test]
fn families_pair_with_cluster_ips() {
    let ips = |case: Value| text(&spec(case).object.map(|s| s.cluster_ips).unwrap_or_default());
    let both = json!(["10.0.0.1", "fd00::1"]);
    assert_eq!(
        ips(json!({"clusterIP": "10.0.0.1", "clusterIPs": both, "ipFamilies": ["IPv4", "IPv6"]})),
        ["10.0.0.1", "fd00::1"]
    );
    assert_eq!(ips(json!({"clusterIP": "10.0.0.1", "clusterIPs": both, "ipFamilies": ["IPv4"]})), ["10.0.0.1"]);
    assert_eq!(
        ips(json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1"], "ipFamilies": ["IPv6", "IPv4"]})),
        ["fd00::1"]
    );
    assert_eq!(ips(json!({"clusterIP": "fd00::1"})), ["fd00::1"], "no families: by its own");
    assert_eq!(ips(json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"]})), ["10.0.0.1"], "no clusterIPs");
    assert_eq!(ips(json!({"clusterIPs": ["10.0.0.1"]})), ["10.0.0.1"], "no clusterIP");
    let crossed = spec(json!({"clusterIP": "10.0.0.1", "clusterIPs": both, "ipFamilies": ["IPv4", "IPv4"]}));
    assert_eq!(why(&crossed), ["clusterIP fd00::1 ignored: ipFamilies[1] says \"IPv4\""]);
    assert_eq!(text(&crossed.object.unwrap().cluster_ips), ["10.0.0.1"]);
}

/// kube-proxy's TestBadIPs: every address as an operator once wrote it.
#[test]
fn leading_zeros_are_read_everywhere_and_blanks_in_source_ranges() {
    let got = clean(convert(
        json!({"type": "LoadBalancer", "clusterIP": "172.30.0.041", "clusterIPs": ["172.30.0.041"], "ipFamilies": ["IPv4"],
               "externalIPs": ["192.168.099.011", ""],
               "loadBalancerSourceRanges": [" 203.0.113.000/025 ", "203.0.113.129/32", "  "],
               "ports": [{"name": "p80", "port": 80, "protocol": "TCP", "nodePort": 3001}]}),
        json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.004"}, {"ip": ""}, {"hostname": "lb.example.com"}]}}),
    ));
    assert_eq!(text(&got.cluster_ips), ["172.30.0.41"]);
    assert_eq!(text(&got.external_ips), ["192.168.99.11"]);
    assert_eq!(text(&got.load_balancer_ips), ["1.2.3.4"]);
    assert_eq!(text(&got.source_ranges), ["203.0.113.0/25", "203.0.113.129/32"]);
    let blank = convert(json!({"clusterIP": "10.0.0.1", "externalIPs": [" 1.2.3.5", "1.2.3.6"]}), json!({}));
    assert_eq!(
        why(&blank),
        ["externalIP \" 1.2.3.5\" ignored: not an IP address"],
        "as the API server and kube-proxy do"
    );
    assert_eq!(text(&blank.object.unwrap().external_ips), ["1.2.3.6"]);
}

#[test]
fn ip_mode_proxy_is_not_captured() {
    let ingress = json!({"loadBalancer": {"ingress": [
        {"ip": "1.2.3.4", "ipMode": "VIP"}, {"ip": "1.2.3.5", "ipMode": "Proxy"}, {"ip": "2001:db8::1"}]}});
    let got = clean(convert(json!({"clusterIP": "10.0.0.1"}), ingress));
    assert_eq!(text(&got.load_balancer_ips), ["1.2.3.4", "2001:db8::1"], "whatever the type is");
}

#[test]
fn source_ranges_are_masked_and_aggregated() {
    let got = clean(spec(json!({"clusterIP": "10.0.0.1",
        "loadBalancerSourceRanges": ["192.0.2.77/24", "192.0.2.128/25", "0.0.0.0/0", "fd00::7/64"]})));
    assert_eq!(text(&got.source_ranges), ["0.0.0.0/0", "fd00::/64"]);
}

#[test]
fn external_policy_counts_only_where_reachable_from_outside() {
    let local = |case: Value| spec(case).object.unwrap().external_local;
    let policy = |kind: &str| json!({"clusterIP": "10.0.0.1", "type": kind, "externalTrafficPolicy": "Local", "healthCheckNodePort": 3});
    assert!(local(policy("NodePort")) && local(policy("LoadBalancer")));
    assert!(!local(policy("ClusterIP")));
    assert!(local(json!({"clusterIP": "10.0.0.1", "externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Local"})));
}

#[test]
fn health_check_port_needs_a_load_balancer_with_a_local_policy() {
    let port = |kind: &str, policy: &str| {
        let case = json!({"clusterIP": "10.0.0.1", "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 30000});
        clean(spec(case)).health_check_node_port
    };
    assert_eq!(
        (port("LoadBalancer", "Local"), port("LoadBalancer", "Cluster"), port("NodePort", "Local")),
        (30000, 0, 0)
    );
    let none = spec(json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer", "externalTrafficPolicy": "Local"}));
    assert_eq!(why(&none), ["healthCheckNodePort is 0: no health check is served for this Service"]);
}

#[test]
fn affinity_defaults_and_is_checked() {
    let affinity = |config: Value| {
        spec(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP", "sessionAffinityConfig": config}))
    };
    let seconds = |config: Value| affinity(config).object.unwrap().affinity.unwrap().as_secs();
    assert_eq!(seconds(json!(null)), 10800);
    assert_eq!(seconds(json!({"clientIP": {"timeoutSeconds": 86400}})), 86400);
    for bad in [0, -1, 86401, i32::MAX] {
        let got = affinity(json!({"clientIP": {"timeoutSeconds": bad}}));
        assert_eq!(got.faults.len(), 1, "{bad}");
        assert_eq!(got.object.unwrap().affinity, Some(DEFAULT_AFFINITY));
    }
    assert_eq!(clean(spec(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "None"}))).affinity, None);
    assert_eq!(spec(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "Cookie"})).faults.len(), 1);
}

#[test]
fn bad_ports_are_left_out_and_the_others_kept() {
    let got = spec(json!({"clusterIP": "10.0.0.1", "ports": [
        {"name": "a", "port": 80}, {"name": "a", "port": 53, "protocol": "UDP"}, {"name": "a", "port": 81},
        {"name": "b", "port": 0}, {"name": "c", "port": 65536}, {"name": "d", "port": -1},
        {"name": "e", "port": 90, "protocol": "QUIC"}, {"port": 100, "protocol": "SCTP", "nodePort": 70000},
        {"name": "f", "port": 80, "nodePort": 30080}]}));
    assert_eq!(got.faults.len(), 6, "{:?}", got.faults);
    let ports = got.object.unwrap().ports;
    let ports: Vec<_> = ports.iter().map(|p| (&*p.name, p.protocol, p.port, p.node_port)).collect();
    assert_eq!(
        ports,
        [
            ("a", Protocol::Tcp, 80, 0),
            ("a", Protocol::Udp, 53, 0),
            ("", Protocol::Sctp, 100, 0),
            ("f", Protocol::Tcp, 80, 30080)
        ]
    );
}

#[test]
fn addresses_that_no_service_can_have_are_left_out() {
    let got = convert(
        json!({"clusterIP": "10.0.0.1", "externalIPs": ["127.0.0.1", "169.254.169.254", "224.0.0.1", "1.2.3.4", "::", "what"]}),
        json!({"loadBalancer": {"ingress": [{"ip": "0.0.0.0"}, {"ip": "::ffff:5.6.7.8"}]}}),
    );
    assert_eq!(got.faults.len(), 6, "{:?}", got.faults);
    let service = got.object.unwrap();
    assert_eq!(
        (text(&service.external_ips), text(&service.load_balancer_ips)),
        (vec!["1.2.3.4".into()], vec!["5.6.7.8".into()])
    );
    let none = spec(json!({"clusterIP": "10.0.0.256"}));
    assert!(none.object.is_none());
    assert_eq!(none.faults.len(), 2);
    assert_eq!(none.faults[0].what, "Service ns1/svc1");
}

#[test]
fn unknown_words_are_named() {
    let got = spec(
        json!({"clusterIP": "10.0.0.1", "type": "Magic", "internalTrafficPolicy": "Near", "externalTrafficPolicy": "Far"}),
    );
    assert_eq!(got.faults.len(), 3);
    let service = got.object.unwrap();
    assert!(!service.internal_local && !service.external_local);
    assert!(clean(spec(json!({"clusterIP": "10.0.0.1", "internalTrafficPolicy": "Local"}))).internal_local);
}

#[test]
fn a_flood_of_faults_is_counted() {
    let ports: Vec<Value> = (0..1000).map(|at| json!({"name": format!("p{at}"), "port": 0})).collect();
    let got = spec(json!({"clusterIP": "10.0.0.1", "ports": ports}));
    assert_eq!(got.faults.len(), 11);
    assert_eq!(got.faults[10].why, "and 990 more faults of this object");
}

#[test]
fn annotations_are_read_and_a_wrong_one_is_a_fault() {
    let object = |annotations: Value| {
        let metadata = json!({"namespace": "ns1", "name": "svc1", "annotations": annotations});
        service(&serde_json::from_value(json!({"metadata": metadata, "spec": {"clusterIP": "10.0.0.1"}})).unwrap())
    };
    assert_eq!(clean(object(json!({"example.org/scheduler": "none of ours"}))).scheduling, None);
    let scheduling = clean(object(json!({"kubeferry.dev/scheduler": "wrr"}))).scheduling.unwrap();
    assert_eq!(scheduling.scheduler, Some(crate::scheduler::Scheduler::Wrr));
    let wrong = object(json!({"kubeferry.dev/scheduler": "lblc"}));
    assert!(why(&wrong)[0].contains("use one of random, rr, wrr"), "{wrong:?}");
    assert_eq!(wrong.object.unwrap().scheduling, None);
}
