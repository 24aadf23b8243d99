//! From objects to the kernel: start, one change, a burst of changes, and the memory that it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::generate::{Cluster, Size};
use super::metrics;
use super::notices::{Change, Notices};
use super::proxy::Proxy;
use super::report::median;
use crate::datapath::{Backend, Datapath};
use crate::netns::Namespace;
use crate::step;

/// How long a change may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many EndpointSlices a burst changes, or as many as there are.
const BURST: usize = 1000;

/// The figures of one size. Times are in seconds, memory in MiB.
#[derive(Clone, Serialize, Debug)]
pub struct Programming {
    pub backend: Backend,
    pub services: usize,
    pub endpoints: usize,
    /// Rows of all maps and sets.
    pub rows: Option<f64>,
    /// A bare `nft -f` of the same rows; none with eBPF.
    pub nft_f: Vec<f64>,
    /// `kubeferry run --once` on an empty kernel, from start to exit.
    pub start: Vec<f64>,
    /// The same with all rows there already.
    pub restart: Vec<f64>,
    /// The first sync alone, by the proxy's own metric.
    pub first_sync: Option<f64>,
    /// One endpoint's address changed: from the file's rename to the commit, by the kernel's notice.
    pub change: Vec<f64>,
    /// Rows added and deleted for one change, the most of all, where the kernel tells.
    pub change_rows: Option<usize>,
    pub burst: Burst,
    /// After all that.
    pub resident: f64,
    pub resident_peak: f64,
}

/// Many changes as fast as files can be written.
#[derive(Clone, Serialize, Debug)]
pub struct Burst {
    pub changes: usize,
    /// From the first rename to the commit of the last change.
    pub seconds: f64,
    /// The part of it until the last file was written.
    pub writing: f64,
    /// Where the kernel tells.
    pub commits: Option<usize>,
    pub rows: Option<usize>,
}

impl Programming {
    /// Start beside `nft -f`, each the median.
    pub fn start_ratio(&self) -> f64 {
        median(&self.start) / median(&self.nft_f)
    }
}

/// How often to measure what.
#[derive(Clone, Copy, Debug)]
pub struct Rounds {
    pub starts: usize,
    pub changes: usize,
}

/// Measures one size with one datapath, in a namespace of its own.
pub fn measure(
    binary: &Path,
    (node, datapath): (&Namespace, &Datapath),
    home: &Path,
    size: Size,
    rounds: Rounds,
) -> anyhow::Result<Programming> {
    let backend = datapath.backend();
    let say = |what: String| step::note(format!("{size}, {}: {what}", backend.name()));
    say("writing the manifests".to_owned());
    let mut cluster = Cluster::create(home, size)?;
    let proxy = Proxy { binary, node, home, datapath, hooks: &[] };
    let file = if backend == Backend::Nftables { Some(proxy.plan(&cluster)?) } else { None };
    let (mut nft_f, mut start, mut restart) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds.starts {
        say(format!("start, round {round} of {}", rounds.starts));
        proxy.clear()?;
        if let Some(file) = &file {
            nft_f.push(proxy.load(file)?.as_secs_f64());
            proxy.clear()?;
        }
        start.push(proxy.once(&cluster)?.as_secs_f64());
        restart.push(proxy.once(&cluster)?.as_secs_f64());
    }

    proxy.clear()?;
    let process = proxy.start(&cluster)?;
    let text = metrics::scrape(node)?;
    say(format!("{} single changes", rounds.changes));
    let notices = Notices::open(node, datapath)?;
    let mut change = Vec::new();
    let mut change_rows = None;
    for round in 0..rounds.changes {
        let began = Instant::now();
        // Another service every time, spread over all.
        let service = round * 7919 % size.services;
        let endpoint = cluster.change_endpoint(service)?;
        let seen = notices.wait_for(&[Change { service: cluster.cluster_ip(service), endpoint }], PATIENCE)?;
        change.push(began.elapsed().as_secs_f64());
        change_rows = change_rows.max(seen.map(|seen| seen.rows));
    }
    let changes = BURST.min(size.services);
    say(format!("a burst of {changes} changes"));
    let burst = burst(&mut cluster, &notices, changes)?;
    let (resident, resident_peak) = (metrics::memory(process.id(), "VmRSS")?, metrics::memory(process.id(), "VmHWM")?);
    drop(process);
    proxy.clear()?;
    Ok(Programming {
        backend,
        services: size.services,
        endpoints: size.endpoints,
        rows: metrics::sum(&text, "kubeferry_rows"),
        nft_f,
        start,
        restart,
        first_sync: metrics::most(&text, "kubeproxy_sync_full_proxy_rules_duration_seconds_sum"),
        change,
        change_rows,
        burst,
        resident,
        resident_peak,
    })
}

fn burst(cluster: &mut Cluster, notices: &Notices, changes: usize) -> anyhow::Result<Burst> {
    let began = Instant::now();
    let change =
        |service| Ok(Change { endpoint: cluster.change_endpoint(service)?, service: cluster.cluster_ip(service) });
    let wanted: Vec<Change> = (0..changes).map(change).collect::<anyhow::Result<_>>()?;
    let writing = began.elapsed().as_secs_f64();
    let seen = notices.wait_for(&wanted, PATIENCE)?;
    let seconds = began.elapsed().as_secs_f64();
    let (commits, rows) = (seen.map(|seen| seen.commits), seen.map(|seen| seen.rows));
    Ok(Burst { changes, seconds, writing, commits, rows })
}
