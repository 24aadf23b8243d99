use super::*;
use crate::state::objects::Protocol;
use serde_json::{Value, json};

fn convert(mut object: Value) -> Converted<EndpointSlice> {
    if object.get("metadata").is_none() {
        object["metadata"] = json!({"namespace": "ns1", "name": "svc1-a", "labels": {SERVICE_NAME_LABEL: "svc1"}});
    }
    if object.get("addressType").is_none() {
        object["addressType"] = json!("IPv4");
    }
    endpoint_slice(&serde_json::from_value(object).unwrap())
}

#[test]
fn what_is_not_ours_is_none() {
    assert_eq!(convert(json!({"addressType": "FQDN"})), Converted { object: None, faults: vec![] });
    let headless = json!({"name": "a", "labels": {SERVICE_NAME_LABEL: "svc1", HEADLESS_LABEL: ""}});
    assert_eq!(convert(json!({"metadata": headless})), Converted { object: None, faults: vec![] });
    for labels in [json!({}), json!({SERVICE_NAME_LABEL: ""})] {
        let got = convert(json!({"metadata": {"namespace": "ns1", "name": "a", "labels": labels}}));
        assert!(got.object.is_none());
        assert_eq!(got.faults[0].what, "EndpointSlice ns1/a");
    }
    assert_eq!(convert(json!({"addressType": "IPX"})).faults.len(), 1);
}

#[test]
fn of_more_ports_than_an_api_server_takes_the_first_are_used() {
    let ports: Vec<_> = (0..PORTS + 2).map(|number| json!({"name": format!("p{number}"), "port": 80})).collect();
    let got = convert(json!({"ports": ports}));
    assert_eq!(got.faults.len(), 1);
    assert!(got.faults[0].why.contains("2 ports ignored"), "{:?}", got.faults);
    let kept = got.object.unwrap().ports;
    assert_eq!((kept.len(), &*kept[PORTS - 1].name), (PORTS, "p19999"));
    assert_eq!(convert(json!({"ports": ports[..PORTS]})).faults, []);
}

#[test]
fn null_ports_and_names_are_skipped_and_the_empty_name_kept() {
    let got = convert(json!({"ports": [
        {"name": null, "port": 80}, {"name": "x", "port": null}, {"name": "y", "port": 0},
        {"name": "", "port": 8080}, {"name": "", "port": 53, "protocol": "UDP"}]}));
    assert_eq!(got.faults, []);
    let ports = got.object.unwrap().ports;
    let ports: Vec<_> = ports.iter().map(|p| (&*p.name, p.protocol, p.port)).collect();
    assert_eq!(ports, [("", Protocol::Tcp, 8080), ("", Protocol::Udp, 53)]);
    let bad = convert(json!({"ports": [{"name": "a", "port": 65536}, {"name": "b", "port": 1, "protocol": "X"},
        {"name": "c", "port": 1}, {"name": "c", "port": 2}]}));
    assert_eq!((bad.faults.len(), bad.object.unwrap().ports.len()), (3, 1));
}

#[test]
fn null_conditions_mean_ready_and_serving() {
    let got = convert(json!({"endpoints": [
        {"addresses": ["10.0.1.1", "10.0.1.9"]},
        {"addresses": ["10.0.1.2"], "conditions": {"ready": null, "serving": null, "terminating": null}},
        {"addresses": ["10.0.1.3"], "conditions": {"ready": false, "serving": true, "terminating": true}, "nodeName": "n1"},
        {"addresses": []}]}));
    assert_eq!(got.faults, []);
    let slice = got.object.unwrap();
    let all: Vec<_> = slice.endpoints.iter().map(|e| (e.ip.to_string(), e.ready, e.serving, e.terminating)).collect();
    assert_eq!(
        all,
        [
            ("10.0.1.1".to_string(), true, true, false),
            ("10.0.1.2".to_string(), true, true, false),
            ("10.0.1.3".to_string(), false, true, true)
        ]
    );
    assert_eq!(slice.endpoints[2].node.as_deref(), Some("n1"));
    assert_eq!(slice.service, ObjectName::new("ns1", "svc1"));
}

#[test]
fn hints_and_the_trigger_time_are_read() {
    let got = convert(json!({
        "metadata": {"namespace": "ns1", "name": "a", "labels": {SERVICE_NAME_LABEL: "svc1"},
            "annotations": {TRIGGER_TIME_ANNOTATION: "2026-01-02T03:04:05.678Z"}},
        "endpoints": [{"addresses": ["10.0.1.01"],
            "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "n1"}]}}]}));
    let slice = got.object.unwrap();
    assert_eq!(slice.endpoints[0].zone_hints().len(), 2);
    assert_eq!(&*slice.endpoints[0].node_hints()[0], "n1");
    assert_eq!(slice.endpoints[0].ip.to_string(), "10.0.1.1");
    assert_eq!(slice.trigger_time.unwrap().as_millisecond() % 1000, 678);
}

#[test]
fn addresses_that_cannot_be_a_target_are_left_out() {
    let v4 = [
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "fd00::1",
        "web.example.com",
        "10.0.1.1",
    ];
    let endpoints: Vec<Value> = v4.iter().map(|ip| json!({"addresses": [ip]})).collect();
    let got = convert(json!({"endpoints": endpoints}));
    assert_eq!((got.faults.len(), got.object.unwrap().endpoints.len()), (7, 1), "{:?}", got.faults);
    let v6 = ["::1", "fe80::1", "ff02::1", "::", "10.0.1.1", "::ffff:10.0.1.1", "fd00::01"];
    let endpoints: Vec<Value> = v6.iter().map(|ip| json!({"addresses": [ip]})).collect();
    let got = convert(json!({"addressType": "IPv6", "endpoints": endpoints}));
    assert_eq!((got.faults.len(), got.object.unwrap().endpoints.len()), (6, 1), "{:?}", got.faults);
}

#[test]
fn zones_and_pods_are_kept() {
    let got = convert(json!({"endpoints": [
        {"addresses": ["10.0.1.1"], "zone": "a", "targetRef": {"kind": "Pod", "name": "web-1"}},
        {"addresses": ["10.0.1.2"], "zone": "a", "targetRef": {"kind": "Node", "name": "web-1"}},
        {"addresses": ["10.0.1.3"], "zone": "", "targetRef": {"kind": "Pod"}}]}));
    assert_eq!(got.faults, []);
    let endpoints = got.object.unwrap().endpoints;
    let pods: Vec<_> = endpoints.iter().map(|endpoint| endpoint.pod).collect();
    assert_eq!(pods, [Some(PodName::of("web-1")), None, None]);
    assert_eq!(
        endpoints.iter().map(|endpoint| endpoint.zone.as_deref()).collect::<Vec<_>>(),
        [Some("a"), Some("a"), None]
    );
    let zones: Vec<_> = endpoints.iter().filter_map(|endpoint| endpoint.zone.as_ref()).collect();
    assert!(Arc::ptr_eq(zones[0], zones[1]), "the name is kept once");
    assert!(size_of::<SliceEndpoint>() <= 72, "there may be a million of them");
}
