//! Objects that are too large, or ask for too much: what is left out is told, the rest is served, and the process stays small.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Instant;

use kubeferry_tests::apiserver::{Fault, Resource};
use kubeferry_tests::client::Connection;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use serde_json::{Value, json};

use crate::cluster::{Cluster, ENDPOINTS_VARIABLE, proper};

on_both_datapaths! {
    many_ports_addresses_and_ranges,
    more_endpoints_than_there_is_room_for,
    lines_and_annotations_without_end,
}

/// Endpoints in one slice, and of one Service; the scripted server takes some 5 KB for each, so a million are not for every day.
const ENDPOINTS: usize = 200_000;
/// How many of them one Service has room for.
const ROOM: usize = 65_536;
fn put(cluster: &Cluster, objects: impl IntoIterator<Item = Value>) {
    objects.into_iter().for_each(|object| cluster.server.put(object).unwrap());
}

fn address(number: usize) -> String {
    format!("198.18.{}.{}", number >> 8 & 255, number & 255)
}

fn many_ports_addresses_and_ranges(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    cluster.beside(1, || {
        // 10,000 ports are served; one in a hundred is asked.
        let [mut service, mut slice] = proper("ports", "10.96.4.1", "10.244.1.2");
        let port = |number: usize| json!({"name": format!("p{number}"), "port": 10_000 + number});
        service["spec"]["ports"] = (0..10_000).map(port).collect();
        slice["ports"] = (0..10_000).map(|number| json!({"name": format!("p{number}"), "port": 8080})).collect();
        put(&cluster, [service, slice]);
        let last: SocketAddr = "10.96.4.1:19999".parse().unwrap();
        cluster.until("the last of 10,000 ports", || Connection::attempt(cluster.web.client(), last)?.ask().ok());
        for number in (0..10_000).step_by(101) {
            let port = SocketAddr::new(last.ip(), 10_000 + number);
            // eBPF's rows come one after the other.
            cluster.until("one of 10,000 ports", || Connection::attempt(cluster.web.client(), port)?.ask().ok());
        }
        // Ports × addresses: 2,000 × 2,000.
        let [mut service, slice] = proper("addresses", "10.96.4.2", "10.244.1.2");
        let port = |number: usize| json!({"name": format!("p{number}"), "port": 10_000 + number});
        service["spec"]["ports"] = (0..2000).map(port).collect();
        service["spec"]["externalIPs"] = (0..2000).map(address).collect();
        put(&cluster, [service, slice]);
        let note = cluster.event("Ignored", "addresses");
        assert!(note.contains("3969232 frontends ignored: a Service has room for 32768"), "{note}");
        // Source ranges × addresses, with garbage among them; port 0, a negative one and one too large; a timeout that is none.
        let [mut service, slice] = proper("ranges", "10.96.4.3", "10.244.1.2");
        let range = |number: usize| format!("198.{}.{}.0/32", 20 + (number >> 8), number & 255);
        let mut ranges: Vec<_> = (0..10_000).map(range).collect();
        // The client is in two of them that overlap, the pod `web1` in none.
        ranges.extend(["garbage".to_owned(), "10.0.0.0/99".into(), "10.244.1.4/30".into(), "10.244.1.7/32".into()]);
        service["spec"]["loadBalancerSourceRanges"] = ranges.into();
        let ports = json!([{"name": "zero", "port": 0}, {"name": "less", "port": -1}, {"name": "more", "port": 65_536},
            {"name": "http", "port": 80, "nodePort": 1_000_000}]);
        service["spec"]["ports"] = ports;
        service["spec"]["sessionAffinity"] = "ClientIP".into();
        service["spec"]["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": -2_147_483_648}});
        service["status"] = json!({"loadBalancer": {"ingress": [{"ip": "198.51.100.40"}]}});
        put(&cluster, [service, slice]);
        let balancer = "198.51.100.40:80".parse().unwrap();
        cluster.until("an allowed source", || Connection::attempt(cluster.web.client(), balancer)?.ask().ok());
        let other = &cluster.web.hosts.host("web1").namespace;
        Connection::attempt(other, "10.96.4.3:80".parse().unwrap()).unwrap().ask().unwrap();
        assert!(Connection::attempt(other, balancer).is_none(), "a source that no range has is served");
        // Weights for 100,000 names, in order and not; those of the two endpoints are as large as may be, and as uneven.
        for (name, ip, scheduler, last) in [
            ("weights", "10.96.4.4", "random", "3"),
            ("weights-in-turn", "10.96.4.6", "wrr", "3"),
            ("no-weights", "10.96.4.5", "random", "NaN"),
        ] {
            let [mut service, mut slice] = proper(name, ip, "10.244.1.2");
            let weights: Vec<_> = (0..100_000).map(|number| format!("pod/p{number}={}", 65_535 - number % 2)).collect();
            let weights = format!("{},zone/z={last}", weights.join(","));
            service["metadata"]["annotations"] =
                json!({"kubeferry.dev/weights": weights, "kubeferry.dev/scheduler": scheduler});
            let endpoint = |number: usize| {
                json!({"addresses": [format!("10.244.1.{}", number + 1)], "nodeName": "worker-1", "zone": "z",
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("p{number}")}})
            };
            slice["endpoints"] = (0..2).map(endpoint).collect();
            put(&cluster, [service, slice]);
        }
        for (name, ip) in [("weights", "10.96.4.4:80"), ("weights-in-turn", "10.96.4.6:80")] {
            // They have come to the endpoints, since they are too uneven for as many slots as there may be.
            cluster.until_ignored(&format!("Service default/{name} port \"http\": its weights are rounded"));
            let mut servers = BTreeSet::new();
            cluster.until(&format!("both endpoints of {name}"), || {
                servers.insert(Connection::attempt(cluster.web.client(), ip.parse().unwrap())?.ask().ok()?.0);
                (servers.len() == 2).then_some(())
            });
        }
        let note = cluster.event("Ignored", "no-weights");
        assert!(note.contains("\"zone/z=NaN\" has no weight"), "{note}");
    });
    cluster.assert_small("10,000 ports, 4 million frontends, 10,000 ranges and 100,000 weights");
}

fn more_endpoints_than_there_is_room_for(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    let endpoint = |number: usize| json!({"addresses": [format!("10.{}.{}.{}", 128 + (number >> 16), number >> 8 & 255, number & 255)]});
    let slice_of = |service: &str, part: usize, numbers: std::ops::Range<usize>| {
        json!({"kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
            "metadata": {"name": format!("{service}-{part:04}"), "namespace": "default",
                "labels": {"kubernetes.io/service-name": service}},
            "endpoints": numbers.map(endpoint).collect::<Value>()})
    };
    let count = std::env::var(ENDPOINTS_VARIABLE).map_or(ENDPOINTS, |count| count.parse().unwrap());
    assert!(count >= ENDPOINTS && count.is_multiple_of(1000), "{ENDPOINTS_VARIABLE}={count}");
    let parts = count / 1000;
    cluster.beside(1, || {
        let [one, _] = proper("one-slice", "10.96.5.1", "10.244.1.2");
        put(&cluster, [one, slice_of("one-slice", 0, 0..count)]);
        let told = Instant::now();
        let left_out = cluster.until_ignored("values are left out, beyond the first 500000");
        println!("{left_out}; told {:.1?} after the server had it", told.elapsed());
        let [many, _] = proper("many-slices", "10.96.5.2", "10.244.1.2");
        put(&cluster, [many]);
        put(&cluster, (0..parts).map(|part| slice_of("many-slices", part, 1000 * part..1000 * (part + 1))));
        let told = Instant::now();
        let left_out = format!("{} endpoints ignored: a port of a Service has room for {ROOM}", count - ROOM);
        cluster.until_ignored(&format!("Service default/many-slices: {left_out}"));
        println!("{left_out}; told {:.1?} after the server had the last of {parts} slices", told.elapsed());
        println!("{} MiB at most before all slices are listed anew", cluster.peak_mib());
        let lists = || {
            let metrics = cluster.metrics();
            let line =
                metrics.lines().find(|line| line.starts_with("kubeferry_watch_lists_total{kind=\"EndpointSlice\"}"));
            line.unwrap().to_owned()
        };
        let before = lists();
        cluster.server.fault(Fault::Gone410);
        cluster.server.fault(Fault::CutConnections);
        cluster.until("all slices to be listed anew", || (lists() != before).then_some(()));
    });
    cluster.assert_small(&format!("a slice of {count} endpoints, and {parts} slices of a thousand"));
}

fn lines_and_annotations_without_end(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    cluster.beside(1, || {
        // Longer than a line may be: it is passed over, and what comes next is read.
        let [mut service, slice] = proper("line", "10.96.6.1", "10.244.1.2");
        service["metadata"]["annotations"] = json!({"long": "A".repeat(100 << 20)});
        put(&cluster, [service, slice]);
        cluster.until("the log to tell", || cluster.log().contains("a line that is too long").then_some(()));
        cluster.server.delete(Resource::Service, "default", "line").unwrap();
        // A list is a line: it is asked for in pieces where it is too long.
        for (name, ip) in [("half-a", "10.96.6.4"), ("half-b", "10.96.6.5")] {
            let [mut service, slice] = proper(name, ip, "10.244.1.2");
            service["metadata"]["annotations"] = json!({"long": "A".repeat(20 << 20)});
            put(&cluster, [service, slice]);
        }
        cluster.server.fault(Fault::Gone410);
        cluster.until("the log to tell", || cluster.log().contains("asking for fewer objects").then_some(()));
        // Nested deeper than anybody could write it.
        let [mut service, slice] = proper("deep", "10.96.6.2", "10.244.1.2");
        service["metadata"]["annotations"] = (0..100).fold(json!("deep"), |inner, _| json!([inner]));
        put(&cluster, [service, slice]);
        cluster.until_ignored("Service default/deep");
        let [mut service, slice] = proper("wide", "10.96.6.3", "10.244.1.2");
        service["metadata"]["annotations"] = (0..20_000).map(|n| (format!("example.org/{n}"), json!("x"))).collect();
        put(&cluster, [service, slice]);
        let wide = "10.96.6.3:80".parse().unwrap();
        cluster
            .until("a Service with 20,000 annotations", || Connection::attempt(cluster.web.client(), wide)?.ask().ok());
    });
    cluster.assert_small("a line of 100 MiB, deep and wide annotations");
}
