//! What the running proxy tells about itself at `/status`, how `kubeferry status` fetches and prints it. The document is one
//! way to write down a [`Snapshot`], as `/api/v1/` is another.

mod client;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod print;

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use client::{FetchError, Response, get};
pub use print::print;

use crate::args::{StatusArgs, StatusOutput};
use crate::backend::EndpointCount;
use crate::facts::{EndpointCounts, PortEntry, ServiceEntry, Snapshot};

/// Where `run` serves its status unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:10249/status";

/// The document of `/status`. Times are RFC 3339, durations seconds. Absent fields are empty: older and newer programs
/// understand each other.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Version of the proxy.
    pub version: String,
    /// The Node that it serves.
    pub node: String,
    /// The datapath: `nftables` or `ebpf`.
    pub backend: String,
    /// When the process started.
    pub started: Option<Timestamp>,
    /// No change has waited too long; filled in by the server.
    pub healthy: bool,
    /// The node may get new traffic; filled in by the server.
    pub node_eligible: bool,
    /// What the sources have not listed yet; nothing is written to the kernel before.
    pub waiting_for: Vec<String>,
    /// The last sync.
    pub last_sync: Option<LastSync>,
    /// Syncs so far, failed ones included.
    pub syncs: u64,
    /// Failed syncs so far.
    pub failures: u64,
    /// Changes that wait for a sync.
    pub pending: usize,
    /// Rows of each map of the kernel, as last written.
    pub rows: BTreeMap<String, usize>,
    /// What the datapath tells of itself: programs, devices, memory.
    pub datapath: BTreeMap<String, String>,
    /// Differences that were found in the kernel.
    pub drift: Drift,
    /// The Services that are served.
    pub services: Vec<ServiceStatus>,
    /// Whether connections that have not ended are counted: where not, `active` is 0.
    pub counts_active: bool,
    /// What is left out, and why; 1,000 at most.
    pub ignored: Vec<IgnoredStatus>,
    /// How much that is in truth.
    pub ignored_total: usize,
    /// The settings in force, by name.
    pub settings: BTreeMap<String, String>,
}

/// A sync.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct LastSync {
    /// When it ended.
    pub at: Timestamp,
    /// Seconds that it took.
    pub took: f64,
    /// Every row was compared, not only those of changed objects.
    pub full: bool,
    /// Rows written or deleted.
    pub rows_written: usize,
    /// Why it failed; `None`: it succeeded.
    pub error: Option<String>,
}

/// Differences between the kernel and what was written to it.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Drift {
    /// Times that a difference was repaired.
    pub repairs: u64,
    /// Rows that were repaired.
    pub rows: u64,
    /// When a difference was last repaired.
    pub last_repair: Option<Timestamp>,
    /// When the kernel was last looked at.
    pub last_check: Option<Timestamp>,
    /// Rows that are known to differ now.
    pub unrepaired: usize,
}

/// A Service.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// `namespace/name`.
    pub name: String,
    /// `spec.type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its ports.
    pub ports: Vec<PortStatus>,
}

/// A port of a Service.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PortStatus {
    /// Its name, may be empty.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Where it is reached: `10.96.0.10:80`, or `*:30080` for a node port.
    pub frontends: Vec<String>,
    /// Endpoints that are ready: with a weight of 0 they get no new connections all the same.
    pub ready: usize,
    /// Those of them on this node.
    pub local: usize,
    /// How one of them is chosen.
    pub scheduler: String,
    /// What they got, where the datapath counts it and they got anything.
    pub endpoints: Vec<EndpointStatus>,
}

/// An endpoint of a service port.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointStatus {
    /// Its address and port.
    pub address: String,
    /// Connections that it got since it became an endpoint.
    pub connections: u64,
    /// Those of them that have not ended.
    pub active: u64,
    /// The part of the service port's connections that it got, 0 to 1.
    pub share: f64,
}

/// An object that is left out, whole or in part.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IgnoredStatus {
    /// The object.
    pub what: String,
    /// Why, and what to do.
    pub why: String,
}

impl Status {
    /// What keeps the proxy from being well, as a sentence; `None` where nothing does.
    pub fn problem(&self) -> Option<String> {
        problem(self.healthy, self.last_sync.as_ref(), &self.drift, &self.waiting_for)
    }
}

/// The same, by the fields that it depends on.
pub(crate) fn problem(
    healthy: bool,
    last_sync: Option<&LastSync>,
    drift: &Drift,
    waiting_for: &[String],
) -> Option<String> {
    if let Some(error) = last_sync.and_then(|sync| sync.error.as_ref()) {
        return Some(format!("the last sync failed: {error}"));
    }
    if !healthy {
        return Some("a change has waited too long for a sync".to_owned());
    }
    if drift.unrepaired > 0 {
        return Some(format!("{} rows of the kernel differ from what is wanted", drift.unrepaired));
    }
    if !waiting_for.is_empty() {
        return Some(format!("not synced yet, waiting for the list of {}", waiting_for.join(" and of ")));
    }
    last_sync.is_none().then(|| "not synced yet".to_owned())
}

impl From<&Snapshot> for Status {
    fn from(snapshot: &Snapshot) -> Self {
        let node = &snapshot.node;
        let ignored = snapshot.ignored.items.iter();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: node.node.clone(),
            backend: node.backend.clone(),
            started: Some(node.started),
            healthy: node.healthy,
            node_eligible: node.node_eligible,
            waiting_for: node.waiting_for.clone(),
            last_sync: node.sync.last.clone(),
            syncs: node.sync.succeeded,
            failures: node.sync.failures,
            pending: node.sync.pending,
            rows: node.rows.clone(),
            datapath: node.datapath.clone(),
            drift: node.drift.clone(),
            services: snapshot.services.iter().map(ServiceStatus::from).collect(),
            counts_active: node.traffic.counts_active,
            ignored: ignored.map(|one| IgnoredStatus { what: one.what.clone(), why: one.why.clone() }).collect(),
            ignored_total: snapshot.ignored.total,
            settings: node.settings.clone(),
        }
    }
}

impl From<&ServiceEntry> for ServiceStatus {
    fn from(service: &ServiceEntry) -> Self {
        let ports = service.ports.iter().map(PortStatus::from).collect();
        Self { name: service.name.to_string(), kind: service.kind.to_string(), ports }
    }
}

impl From<&PortEntry> for PortStatus {
    fn from(port: &PortEntry) -> Self {
        let (target, counts) = (&port.target, EndpointCounts::of(&port.target));
        Self {
            name: target.name.port.to_string(),
            protocol: target.name.protocol.to_string(),
            frontends: port.frontends.iter().map(ToString::to_string).collect(),
            ready: counts.ready,
            local: counts.local,
            scheduler: target.schedule.scheduler.to_string(),
            endpoints: port.seen.as_ref().map(|seen| endpoints(&seen.endpoints)).unwrap_or_default(),
        }
    }
}

fn endpoints(counts: &[EndpointCount]) -> Vec<EndpointStatus> {
    let all: u64 = counts.iter().map(|count| count.opened).sum();
    let endpoint = |count: &EndpointCount| EndpointStatus {
        address: count.endpoint.to_string(),
        connections: count.opened,
        active: count.active,
        share: count.opened as f64 / all as f64,
    };
    if all == 0 { Vec::new() } else { counts.iter().map(endpoint).collect() }
}

/// What `kubeferry status` prints to standard output, and whether the proxy is well.
///
/// # Errors
/// [`FetchError`]: the proxy cannot be reached, or answers something else.
pub fn fetch(args: &StatusArgs) -> Result<(String, bool), FetchError> {
    let response = get(&args.url, args.timeout)?;
    let status: Status = response.status_document(&args.url)?;
    let text = match args.output {
        StatusOutput::Table => print(&status, Timestamp::now()),
        StatusOutput::Json => format!("{}\n", response.body),
    };
    Ok((text, status.problem().is_none()))
}

#[cfg(test)]
mod tests;
