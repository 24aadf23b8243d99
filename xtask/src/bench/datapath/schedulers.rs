//! What each scheduler costs: a connection's first packet by itself, and connections per second through a node.

use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::super::generate::{Cluster, PORT, Size};
use super::super::load;
use super::super::report::median;
use super::{AT_TC, Bench, TARGETS, at, drop_time, order, programs};
use crate::datapath::Backend;
use crate::step;

/// As `--scheduler` takes them; the first is what the others are set beside.
const SCHEDULERS: [&str; 10] = ["random", "rr", "wrr", "lc", "wlc", "sh", "dh", "sed", "nq", "mh"];
/// Endpoints of each service.
const ENDPOINTS: [usize; 2] = [3, 1_000];

/// A scheduler, with all that was measured of it, one entry a round.
#[derive(Clone, Serialize, Debug)]
pub struct Scheduler {
    pub name: &'static str,
    pub endpoints: usize,
    /// Nanoseconds of `tc_ingress` for a connection's first packet.
    pub first_packet: Vec<f64>,
    /// Connections per second of four threads, each with a request and its answer.
    pub connections: Vec<f64>,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub rounds: usize,
    /// For the connections of each scheduler in a round.
    pub time: Duration,
    /// First packets of each scheduler in a round.
    pub runs: u32,
}

/// Measures all of it, on the eBPF datapath, at TC.
pub fn measure(binary: &Path, home: &Path, plan: Plan) -> anyhow::Result<Vec<Scheduler>> {
    let bench = Bench::new(binary, home)?;
    let clusters = ENDPOINTS.map(|endpoints| Cluster::create(home, Size { services: TARGETS, endpoints }));
    let scheduler = |name, endpoints| Scheduler { name, endpoints, first_packet: Vec::new(), connections: Vec::new() };
    let mut all: Vec<Scheduler> =
        ENDPOINTS.iter().flat_map(|endpoints| SCHEDULERS.map(|name| scheduler(name, *endpoints))).collect();
    let clusters: Vec<Cluster> = clusters.into_iter().collect::<Result<_, _>>()?;
    for round in 0..=plan.rounds {
        step::note(format!("round {round} of {}", plan.rounds));
        for index in order(all.len(), round) {
            let one = &mut all[index];
            let Some(cluster) = clusters.iter().find(|cluster| cluster.size().endpoints == one.endpoints) else {
                continue;
            };
            let flags = [AT_TC, &["--scheduler", one.name]].concat();
            bench.clear()?;
            drop_time(bench.proxy(Backend::Ebpf, &flags).once(cluster))?;
            let targets = at(&cluster.cluster_ips(TARGETS), PORT);
            let measured = load::open(&bench.client, bench.ebpf.cgroup(), &targets, plan.time)?;
            let first = programs::first_packet(&bench.node, &bench.ebpf, cluster.last_cluster_ip(), plan.runs)?;
            step::note(format!(
                "  {:<6} {:>4} endpoints: first packet {first:.0} ns, {:.0} connections/s",
                one.name, one.endpoints, measured.connections
            ));
            // The first round warms up.
            if round > 0 {
                one.first_packet.push(first);
                one.connections.push(measured.connections);
            }
        }
    }
    bench.clear()?;
    Ok(all)
}

/// Prints the table in Markdown.
pub fn print(all: &[Scheduler]) {
    println!(
        "| scheduler | endpoints | first packet | more than random | connections/s | a connection's cost, of random's |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |"
    );
    for one in all {
        let Some(random) = all.iter().find(|other| other.name == SCHEDULERS[0] && other.endpoints == one.endpoints)
        else {
            continue;
        };
        let pairs = |of: fn(&Scheduler) -> &Vec<f64>, with: fn(f64, f64) -> f64| {
            median(&of(one).iter().zip(of(random)).map(|(one, random)| with(*one, *random)).collect::<Vec<_>>())
        };
        println!(
            "| {} | {} | {:.0} ns | {:.0} ns | {:.0} | {:.3} |",
            one.name,
            one.endpoints,
            median(&one.first_packet),
            pairs(|one| &one.first_packet, |one, random| one - random),
            median(&one.connections),
            pairs(|one| &one.connections, |one, random| random / one),
        );
    }
    println!();
}
