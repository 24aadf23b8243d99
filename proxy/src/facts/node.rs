//! The node, and the proxy on it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Latency;
use crate::status::{Drift, LastSync};

/// The answer of `/api/v1/node`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFacts {
    /// Version of the proxy, with the commit.
    pub version: String,
    /// The Node that it serves.
    pub node: String,
    /// The datapath: `nftables` or `ebpf`.
    pub backend: String,
    /// The scheduler of Services that ask for none.
    pub scheduler: String,
    /// The kernel's release, as `uname -r` says it.
    pub kernel: String,
    /// When this was so.
    pub at: Timestamp,
    /// When the process started.
    pub started: Timestamp,
    /// Seconds since then.
    pub uptime_seconds: u64,
    /// No change has waited too long, as `/livez` says.
    pub healthy: bool,
    /// The node may get new traffic, as `/healthz` says.
    pub node_eligible: bool,
    /// What keeps the proxy from being well, as a sentence; absent where nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// What the sources have not listed yet; nothing is written to the kernel before.
    pub waiting_for: Vec<String>,
    /// Syncs.
    pub sync: SyncSummary,
    /// Differences that were found in the kernel.
    pub drift: Drift,
    /// How many objects there are.
    pub counts: Counts,
    /// Rows of each map of the kernel, as last written.
    pub rows: BTreeMap<String, usize>,
    /// What the datapath tells of itself: programs, devices, memory.
    pub datapath: BTreeMap<String, String>,
    /// What went by, all Services together.
    pub traffic: TrafficSummary,
    /// The settings in force, by name.
    pub settings: BTreeMap<String, String>,
}

/// Syncs since the process started.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SyncSummary {
    /// The last one; absent before the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<LastSync>,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Those that failed.
    pub failures: u64,
    /// Services with changes that wait for the next.
    pub pending: usize,
    /// How long a sync takes, over the last 256.
    pub took: Latency,
    /// How long it is from taking in a change until it is in the kernel, likewise.
    pub change_to_kernel: Latency,
}

/// How many objects there are.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Counts {
    /// Services that are served.
    pub services: usize,
    /// Their ports, each in each of its families.
    pub ports: usize,
    /// Endpoints of these ports that are ready, as `kubeferry_endpoints` counts them.
    pub ready: usize,
    /// Endpoints of these ports that serve.
    pub serving: usize,
    /// Ready endpoints of these ports on this node.
    pub local: usize,
    /// Services that are `degraded`.
    pub degraded: usize,
    /// Services that are `down`.
    pub down: usize,
    /// Faults of objects: see `/api/v1/ignored`.
    pub ignored: usize,
}

/// What went by, all Services together, and how it is counted. What is not counted is absent.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficSummary {
    /// `--service-metrics`: `off`, `connections` or `full`.
    pub level: String,
    /// Whether new connections are counted: always with eBPF, with nftables at `connections` and `full`.
    pub counts_connections: bool,
    /// Whether connections that have not ended are counted.
    pub counts_active: bool,
    /// Whether packets and bytes are counted.
    pub counts_packets: bool,
    /// When the counters were last read; all numbers of traffic are of this moment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Timestamp>,
    /// Seconds that reading them took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_took_seconds: Option<f64>,
    /// New connections of the service ports that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// New connections a second, over the last one to two seconds, or since the last time before that the counters were read; absent
    /// until they have been read twice, or if that was more than 30 s ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<f64>,
    /// Connections that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
}
