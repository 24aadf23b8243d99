//! Services with ClientIP affinity at more ports than anybody has: nftables needs chains of their own for each, and with eBPF they are
//! very many rows. They are served, and nobody else's changes wait for all of them.

use std::time::{Duration, Instant};

use kubeferry::status::get;
use kubeferry_tests::apiserver::Resource;
use kubeferry_tests::client::{Connection, DEADLINE};
use kubeferry_tests::datapath::Datapath;
use serde_json::{Value, json};

use crate::cluster::{Cluster, proper};

/// How many Services there are, and the ports of each.
fn size(datapath: &Datapath) -> (usize, usize) {
    match datapath {
        // As many ports as have affinity in one.
        Datapath::Nftables => (40, 1000),
        // Many, of which none is large; there is room for 65,536 members.
        Datapath::Ebpf(_) => (300, 99),
    }
}

/// At once they take minutes. Whoever changes meanwhile waits for a portion of them.
const STARVED: Duration = Duration::from_secs(30);

/// A new Service beside them, again and again.
pub struct Neighbours<'a> {
    cluster: &'a Cluster,
    number: usize,
    longest: Duration,
}

impl<'a> Neighbours<'a> {
    /// None yet.
    pub fn new(cluster: &'a Cluster) -> Self {
        Self { cluster, number: 0, longest: Duration::ZERO }
    }

    /// How long one has waited, at most.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// Brings one, and waits until it answers. All the time the proxy is healthy.
    pub fn come(&mut self) {
        let Self { cluster, number, longest } = self;
        let ip = format!("10.97.{}.{}", *number >> 8, *number & 255);
        let begun = Instant::now();
        for object in proper(&format!("neighbour-{number}"), &ip, "10.244.1.2") {
            cluster.server.put(object).unwrap();
        }
        let to = format!("{ip}:80").parse().unwrap();
        cluster.until("a Service beside them to answer", || {
            let livez = cluster.web.hosts.node.run(|| get("http://127.0.0.1:10256/livez", DEADLINE)).unwrap().unwrap();
            assert_eq!(livez.code, 200, "{}", livez.body);
            Connection::attempt(cluster.web.client(), to)?.ask().ok()
        });
        *longest = begun.elapsed().max(*longest);
        *number += 1;
        assert!(*longest < STARVED, "a Service beside them waited for {longest:.1?}");
    }

    /// Brings more of them until something is so.
    fn come_until(&mut self, what: &str, mut is: impl FnMut(usize) -> Option<()>) {
        let cluster = self.cluster;
        cluster.until(what, || {
            self.come();
            is(self.number)
        });
        self.come();
    }
}

fn address(number: usize) -> String {
    format!("10.96.{}.{}", 8 + (number >> 8), number & 255)
}

fn sticky(number: usize, ports: usize) -> [Value; 2] {
    let [mut service, mut slice] = proper(&format!("sticky-{number}"), &address(number), "10.244.1.2");
    let ports = |port: fn(usize) -> usize| -> Value {
        (0..ports).map(|number| json!({"name": format!("p{number}"), "port": port(number)})).collect()
    };
    service["spec"]["sessionAffinity"] = "ClientIP".into();
    service["spec"]["ports"] = ports(|number| 10_000 + number);
    slice["ports"] = ports(|_| 8080);
    let endpoint = |ip: &str| json!({"addresses": [ip], "nodeName": "worker-1"});
    slice["endpoints"] = ["10.244.1.1", "10.244.1.2"].map(endpoint).into_iter().collect();
    [service, slice]
}

kubeferry_tests::on_both_datapaths! {
    many_ports_hold_up_nobody_elses_changes,
}

/// Frontends of the Service that is there from the start.
const OF_WEB: usize = 2;

/// What the kernel has of all Services with affinity, one or more for each of their ports, where there are so many neighbours.
fn entries(cluster: &Cluster, others: usize) -> usize {
    if let Datapath::Nftables = cluster.datapath {
        let mut list = std::process::Command::new("nft");
        let list = cluster.web.hosts.node.output(list.args(["list", "chains"]), "").unwrap();
        return String::from_utf8_lossy(&list.stdout).matches("-sticky-").count();
    }
    let metrics = cluster.metrics();
    let rows = metrics.lines().find_map(|line| line.strip_prefix("kubeferry_rows{map=\"frontends\"} "));
    rows.unwrap().parse::<usize>().unwrap().saturating_sub(others + OF_WEB)
}

fn many_ports_hold_up_nobody_elses_changes(datapath: Datapath) {
    let (services, ports) = size(&datapath);
    let cluster = Cluster::start(datapath);
    let mut neighbours = Neighbours::new(&cluster);
    let begun = Instant::now();
    for object in (1..=services).flat_map(|number| sticky(number, ports)) {
        cluster.server.put(object).unwrap();
    }
    let mut waiting: Vec<usize> = (1..=services).collect();
    neighbours.come_until("all of them to answer", |_| {
        // One that is not there yet is silent for seconds: no more than one of them is asked.
        while let Some(number) = waiting.last() {
            let to = format!("{}:{}", address(*number), 9999 + ports).parse().unwrap();
            Connection::attempt(cluster.web.client(), to)?.ask().ok()?;
            waiting.pop();
        }
        Some(())
    });
    println!("in force after {:.1?}, beside {} others", begun.elapsed(), neighbours.number);
    assert_eq!(cluster.ignored(), [""; 0], "nothing is left out");
    // The chains of nobody any more are deleted after the rows, as many at once as hold nobody up, either.
    assert!(entries(&cluster, neighbours.number) >= services * ports, "each port has its own");
    let begun = Instant::now();
    for number in 1..=services {
        let name = format!("sticky-{number}");
        cluster.server.delete(Resource::Service, "default", &name).unwrap();
        cluster.server.delete(Resource::EndpointSlice, "default", &name).unwrap();
    }
    neighbours.come_until("all of theirs to be deleted", |others| (entries(&cluster, others) == 0).then_some(()));
    println!("gone after {:.1?}; others waited for {:.1?} at most", begun.elapsed(), neighbours.longest);
}
