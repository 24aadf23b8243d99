//! Addresses and ports that others have: the older Service keeps them, a ClusterIP and the API server before all; who loses is
//! told. Each is looked at with packets.

use std::net::SocketAddr;

use kubeferry_tests::client::Connection;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use serde_json::{Value, json};

use crate::cluster::{Cluster, proper};

on_both_datapaths! {
    what_belongs_to_others_stays_theirs,
}

const NEW: &str = "2026-02-02T00:00:00Z";

/// Two objects of a Service whose endpoint is `web2`, 10.244.1.2.
fn thief(name: &str, spec: &Value, balancer: &[&str]) -> [Value; 2] {
    let [mut service, slice] = proper(name, "10.96.3.1", "10.244.1.2");
    service["metadata"]["creationTimestamp"] = NEW.into();
    for (field, value) in spec.as_object().unwrap() {
        service["spec"][field] = value.clone();
    }
    let ingress: Vec<_> = balancer.iter().map(|ip| json!({"ip": ip})).collect();
    service["status"] = json!({"loadBalancer": {"ingress": ingress}});
    [service, slice]
}

fn what_belongs_to_others_stays_theirs(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    let put = |objects: [Value; 2]| objects.into_iter().for_each(|object| cluster.server.put(object).unwrap());
    // The API server is the pod `web1`, at its own address and behind its ClusterIP.
    let mut kubernetes = proper("kubernetes", "10.96.0.1", "10.244.1.1");
    kubernetes[0]["spec"]["ports"][0]["port"] = 443.into();
    put(kubernetes);
    // Somebody's Service, with an external address and a node port.
    let mut victim = proper("victim", "10.96.2.1", "10.244.1.1");
    victim[0]["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z".into();
    victim[0]["spec"]["externalIPs"] = json!(["198.51.100.7"]);
    victim[0]["spec"]["ports"][0]["nodePort"] = 30080.into();
    put(victim);
    let client = cluster.web.client();
    let answers = |to: &str| {
        let to: SocketAddr = to.parse().unwrap();
        let who = cluster.until(&format!("an answer at {to}"), || Connection::attempt(client, to)?.ask().ok());
        who.0
    };
    for to in ["10.96.0.1:443", "10.96.2.1:80", "198.51.100.7:80", "192.0.2.1:30080"] {
        assert_eq!(answers(to), "web1", "{to}, before anybody else wants it");
    }
    cluster.beside(2, || {
        put(thief("external", &json!({"externalIPs": ["198.51.100.7", "198.51.100.8"]}), &[]));
        put(thief("same-cluster-ip", &json!({"clusterIP": "10.96.2.1"}), &[]));
        put(thief("balancer", &json!({"clusterIP": "10.96.3.2"}), &["10.96.2.1", "10.96.0.1", "10.96.0.10"]));
        let ports =
            json!([{"name": "http", "port": 80, "nodePort": 30080}, {"name": "own", "port": 81, "nodePort": 10256}]);
        put(thief("node-port", &json!({"clusterIP": "10.96.3.3", "ports": ports}), &[]));
        let ports = json!([{"name": "http", "port": 8080}, {"name": "https", "port": 443}]);
        let spec = json!({"clusterIP": "10.96.3.4", "ports": ports, "externalIPs": ["10.244.1.1", "10.96.0.1"]});
        put(thief("api-server", &spec, &[]));
        // Where the proxy itself reaches it, which no object says.
        let port = cluster.server.address().port();
        let ports = json!([{"name": "http", "port": 80, "nodePort": port}]);
        put(thief("control-plane", &json!({"clusterIP": "10.96.3.7", "ports": ports}), &[]));
        // Of one age: the namespace and the name decide.
        put(thief("twin-a", &json!({"clusterIP": "10.96.3.5", "externalIPs": ["198.51.100.9"]}), &[]));
        let mut twin = thief("twin-b", &json!({"clusterIP": "10.96.3.6", "externalIPs": ["198.51.100.9"]}), &[]);
        twin[1]["endpoints"][0]["addresses"] = json!(["10.244.1.1"]);
        put(twin);
        for (name, part) in [
            ("external", "tcp:198.51.100.7:80 is already served for default/victim:http"),
            ("same-cluster-ip", "tcp:10.96.2.1:80 is already served for default/victim:http"),
            ("balancer", "tcp:10.96.2.1:80 is already served for default/victim:http"),
            ("node-port", "node port 30080 (IPv4) is already served for default/victim:http"),
            ("api-server", "tcp:10.244.1.1:8080 is where the API server answers"),
            ("control-plane", "is where the API server answers"),
            ("twin-b", "tcp:198.51.100.9:80 is already served for default/twin-a:http"),
        ] {
            let note = cluster.event("FrontendContested", name);
            assert!(note.contains(part), "{name}: {note}");
        }
        assert!(
            cluster.event("Ignored", "node-port").contains("nodePort 10256 ignored: Kubeferry itself answers there")
        );
        let told = cluster.until_ignored("Service default/balancer port \"http\": tcp:10.96.0.1:80");
        assert!(told.contains("is the ClusterIP of another Service"), "{told}");
    });
    // The API server's own address, as the node and its pods reach it, is in the list, too.
    for to in ["10.96.0.1:443", "10.96.2.1:80", "198.51.100.7:80", "192.0.2.1:30080", "10.244.1.1:8080"] {
        assert_eq!(answers(to), "web1", "{to}");
    }
    let node = &cluster.web.hosts.node;
    let mut own = Connection::open(node, "10.244.1.1:8080".parse().unwrap()).unwrap();
    assert_eq!(own.ask().unwrap().0, "web1", "from the node");
    assert_eq!((answers("198.51.100.8:80"), answers("198.51.100.9:80")), ("web2".into(), "web2".into()));
    // The next in line takes over when the older one goes.
    cluster.server.delete(kubeferry_tests::apiserver::Resource::Service, "default", "victim").unwrap();
    let taken_over = || (answers("198.51.100.7:80") == "web2" && answers("192.0.2.1:30080") == "web2").then_some(());
    cluster.until("the younger ones to take over", taken_over);
}
