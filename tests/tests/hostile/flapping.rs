//! Services with very many endpoints, of which one is ready, then not, and then ready again: what all the others come to is looked at each
//! time, and nobody else waits for long.

use std::time::Duration;

use kubeferry_tests::client::{Connection, patience};
use kubeferry_tests::datapath::Datapath;
use serde_json::{Value, json};

use crate::chains::Neighbours;
use crate::cluster::{Cluster, proper};

kubeferry_tests::on_both_datapaths! {
    one_endpoint_of_very_many_holds_up_nobody_elses_changes,
}

/// How soon somebody else's change has to be in force. No measure of speed, either: as two in an unoptimized build took before.
const LATEST: Duration = Duration::from_secs(10);
/// Endpoints of one slice.
const OF_SLICE: usize = 1000;

/// A Service and what its endpoints are.
struct Kind {
    name: &'static str,
    ports: usize,
    slices: usize,
    sticky: bool,
    ready: bool,
}

/// More than there is room for, the most that there is, and more than is looked at.
const KINDS: [Kind; 3] = [
    Kind { name: "beyond", ports: 2, slices: 20, sticky: true, ready: true },
    Kind { name: "largest", ports: 8, slices: 1, sticky: true, ready: true },
    Kind { name: "unready", ports: 100, slices: 20, sticky: false, ready: false },
];

impl Kind {
    fn ports(&self, number: fn(usize) -> usize) -> Value {
        (0..self.ports).map(|port| json!({"name": format!("p{port}"), "port": number(port)})).collect()
    }

    fn service(&self, ip: &str) -> Value {
        let [mut service, _] = proper(self.name, ip, "10.244.1.2");
        service["spec"]["ports"] = self.ports(|port| 80 + port);
        service["spec"]["sessionAffinity"] = if self.sticky { "ClientIP" } else { "None" }.into();
        service
    }

    /// One of its slices, the first endpoint of which is as the others are, or is not.
    fn slice(&self, number: usize, first: bool) -> Value {
        let [_, mut slice] = proper(self.name, "10.96.2.1", "10.244.1.2");
        slice["metadata"]["name"] = format!("{}-{number:03}", self.name).into();
        slice["ports"] = self.ports(|_| 8080);
        let endpoint = |at: usize| {
            let ip = format!("10.{}.{}.{}", 128 + number, at >> 8, at & 255);
            json!({"addresses": [ip], "nodeName": "worker-9", "conditions": {"ready": self.ready == (first || at > 0)}})
        };
        slice["endpoints"] = (0..OF_SLICE).map(endpoint).collect();
        slice
    }
}

fn one_endpoint_of_very_many_holds_up_nobody_elses_changes(datapath: Datapath) {
    let cluster = Cluster::start(datapath);
    for (kind, ip) in KINDS.iter().zip(["10.96.2.1", "10.96.2.2", "10.96.2.3"]) {
        cluster.server.put(kind.service(ip)).unwrap();
        (0..kind.slices).for_each(|number| cluster.server.put(kind.slice(number, true)).unwrap());
    }
    cluster.until_ignored("Service default/beyond: 2 ports have no ClientIP affinity");
    cluster.until_ignored("Service default/unready: 86 frontends ignored");
    let ignored = cluster.ignored();
    assert!(!ignored.iter().any(|line| line.contains("default/largest")), "{ignored:?}");
    let mut neighbours = Neighbours::new(&cluster);
    for turn in 0..5 {
        for kind in &KINDS {
            cluster.server.put(kind.slice(0, turn % 2 == 1)).unwrap();
        }
        neighbours.come();
    }
    let longest = neighbours.longest();
    println!("others waited for {longest:.1?} at most");
    assert!(longest < patience(LATEST), "a Service beside them waited for {longest:.1?}");
    assert!(Connection::attempt(cluster.web.client(), cluster.web.vip()).is_some(), "who was there");
    cluster.assert_small("40,000 endpoints at up to a hundred ports");
}
