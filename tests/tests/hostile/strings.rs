//! Strings that would be something else than text if anybody took them for it: rules of nft, lines of a log, series of metrics,
//! commands of a terminal.

use kubeferry_tests::apiserver::Resource;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use serde_json::{Value, json};

use crate::cluster::Cluster;

on_both_datapaths! {
    strings_of_tenants_are_injected_nowhere,
}

const STRINGS: [&str; 14] = [
    "x\n2026-11-28T00:00:00Z ERROR injected",
    "x\r\ninjected 1\r\n",
    "x\"} 1\ninjected{a=\"b\"} 1\n# TYPE injected counter",
    "x\"; flush ruleset; add table inet injected { }; #",
    "x } } add element inet kubeferry frontends4 { 10.96.0.10 . tcp . 80 : drop }",
    "\u{1b}[2J\u{1b}]0;injected\u{7}",
    "\u{9b}31minjected",
    "\u{202e}detcejni\u{2066}\u{200f}",
    "a\0b",
    "\u{2028}\u{2029}\u{85}\u{feff}\u{e0001}",
    "../../../../etc/passwd",
    "$(reboot) `reboot` %s%n {} {0}",
    "\\\" \\n \\u001b",
    "<script>injected</script> 🦀",
];

/// One object of each kind that is hostile wherever it can be, its name included or not.
fn objects(number: usize, string: &str) -> Vec<Value> {
    let ip = format!("10.96.66.{number}");
    let service = |name: &str, namespace: &str, ip: &str| {
        json!({"kind": "Service",
            "metadata": {"name": name, "namespace": namespace, "uid": string, "resourceVersion": string,
                "labels": {string: string}, "annotations": {string: string, "kubeferry.dev/scheduler": string,
                    "kubeferry.dev/hash-key": string, "kubeferry.dev/weights": format!("zone/{string}=1,{string}"),
                    "kubeferry.dev/slow-start": string}},
            "spec": {"type": string, "clusterIP": ip, "sessionAffinity": string, "externalIPs": [string],
                "loadBalancerSourceRanges": [string], "externalTrafficPolicy": string, "internalTrafficPolicy": string,
                "ports": [{"name": string, "port": 81}, {"name": "p", "port": 80, "protocol": string},
                    {"name": "q", "port": 82}]},
            "status": {"loadBalancer": {"ingress": [{"ip": string, "hostname": string}]}}})
    };
    let slice = |name: &str, service: &str, kind: &str| {
        json!({"kind": "EndpointSlice", "addressType": kind,
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": string, "port": 81}, {"name": "q", "port": 82, "appProtocol": string}],
            "endpoints": [{"addresses": [string]}, {"addresses": ["10.244.1.2"], "nodeName": string, "zone": string,
                "targetRef": {"kind": "Pod", "name": string},
                "hints": {"forZones": [{"name": string}], "forNodes": [{"name": string}]}}]})
    };
    let proper = format!("odd-{number}");
    let cidr = json!({"kind": "ServiceCIDR", "metadata": {"name": string}, "spec": {"cidrs": [string]}});
    vec![
        service(string, "default", "10.96.67.1"),
        service("web", string, "10.96.67.2"),
        service(&proper, "default", &ip),
        slice(&proper, &proper, "IPv4"),
        slice(&format!("{proper}-kind"), &proper, string),
        slice(&format!("{proper}-service"), string, "IPv4"),
        slice(string, &proper, "IPv4"),
        cidr,
    ]
}

/// Fails on anything but text in lines.
fn assert_harmless(what: &str, text: &str) {
    for line in text.lines() {
        let bad = line.chars().find(|c| *c != '"' && *c != '\'' && *c != '\\' && c.escape_debug().len() > 1);
        assert!(bad.is_none(), "{what}: {bad:?} in {line:?}");
        assert!(!line.trim_start().starts_with("injected"), "{what}: {line:?}");
    }
}

fn strings_of_tenants_are_injected_nowhere(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    let long = "A".repeat(1 << 20);
    cluster.beside(1, || {
        for (number, string) in STRINGS.into_iter().enumerate() {
            objects(number + 1, string).into_iter().for_each(|object| cluster.server.put(object).unwrap());
        }
        let odd = format!("Service default/odd-{}", STRINGS.len());
        cluster.until_ignored(&odd);
        // Two of them are as much as a test can bear: each has 1 MiB in twenty places.
        objects(100, &long).drain(2..4).for_each(|object| cluster.server.put(object).unwrap());
        cluster
            .server
            .put(json!({"kind": "ServiceCIDR", "metadata": {"name": long}, "spec": {"cidrs": [long]}}))
            .unwrap();
        cluster.until_ignored("Service default/odd-100");
        cluster.until_ignored("AAAA…: ignored: no object may be named so");
    });
    // What is well of them is served: port 82 has a proper name, and an endpoint with one.
    let status = cluster.status();
    let services: Vec<_> =
        status["services"].as_array().unwrap().iter().map(|service| service["name"].clone()).collect();
    assert!(services.contains(&json!("default/odd-1")) && services.contains(&json!("default/odd-100")), "{services:?}");
    // As it is written, not as a JSON parser reads it.
    let table = cluster.kubeferry(&["status", "--timeout", "20s"]);
    assert_harmless("the table of status", &String::from_utf8(table.stdout).unwrap());
    for line in cluster.ignored() {
        assert_harmless("the status", &line);
        assert!(line.len() < 1800, "{} bytes", line.len());
    }
    let url = cluster.server.url();
    let source = ["--server", &url, "--node-name", "worker-1", "--backend"];
    let backend = if matches!(cluster.datapath, Datapath::Nftables) { "nftables" } else { "ebpf" };
    for command in [&["plan"][..], &["trace", "--from", "10.244.1.7", "--to", "tcp:10.96.66.1:82"]] {
        let output = cluster.kubeferry(&[command, &source, &[backend]].concat());
        let (out, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{command:?}: {errors}");
        assert_harmless("standard output", &out);
        assert_harmless("standard error", &errors);
        assert!(!out.contains("injected") && out.contains("10.96.66.1"), "{command:?}");
    }
    let log = cluster.log();
    assert_harmless("the log", &log);
    let begins = |line: &str| line.starts_with("20") && line.contains('Z');
    assert!(log.lines().all(begins), "{:?}", log.lines().find(|line| !begins(line)));
    assert!(log.len() < 1 << 20, "the log has {} bytes", log.len());
    let metrics = cluster.metrics();
    assert_harmless("the metrics", &metrics);
    assert!(!metrics.contains("injected"), "{metrics}");
    for event in cluster.server.objects(Resource::Event) {
        let note = event["note"].as_str().unwrap();
        assert_harmless("an Event", note);
        assert!(note.len() <= 1024 && !note.contains('\n'), "{note}");
    }
    if matches!(cluster.datapath, Datapath::Nftables) {
        let tables = cluster.web.hosts.node.nft(&["list", "tables"], "").unwrap();
        assert_eq!(tables.trim(), "table inet kubeferry");
    }
}
