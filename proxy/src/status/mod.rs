//! What the running proxy tells about itself at `/status`, how `kubeferry status` fetches and prints it.
//!
//! The document is made on demand: the servers ask through a [`StatusHandle`], the run loop answers from what it owns.

mod client;
mod print;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub use client::{FetchError, Response, get};
pub use print::print;

use crate::args::{StatusArgs, StatusOutput};

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
    /// What is left out, and why.
    pub ignored: Vec<IgnoredStatus>,
    /// The settings in force, by name.
    pub settings: BTreeMap<String, String>,
}

/// A sync.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
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
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
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
    /// Endpoints that get new connections.
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
        if let Some(error) = self.last_sync.as_ref().and_then(|sync| sync.error.as_ref()) {
            return Some(format!("the last sync failed: {error}"));
        }
        if !self.healthy {
            return Some("a change has waited too long for a sync".to_owned());
        }
        if self.drift.unrepaired > 0 {
            return Some(format!("{} rows of the kernel differ from what is wanted", self.drift.unrepaired));
        }
        if !self.waiting_for.is_empty() {
            return Some(format!("not synced yet, waiting for the list of {}", self.waiting_for.join(" and of ")));
        }
        if self.last_sync.is_none() {
            return Some("not synced yet".to_owned());
        }
        None
    }
}

/// How long the run loop has to answer: a load of a very large table may take seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the run loop for the status; clones ask the same loop.
#[derive(Clone, Debug)]
pub struct StatusHandle(mpsc::Sender<oneshot::Sender<Status>>);

/// The run loop's end: each received sender wants one [`Status`], `healthy` and `node_eligible` of no matter.
pub type StatusRequests = mpsc::Receiver<oneshot::Sender<Status>>;

/// Both ends.
pub fn channel() -> (StatusHandle, StatusRequests) {
    let (sender, receiver) = mpsc::channel(4);
    (StatusHandle(sender), receiver)
}

impl StatusHandle {
    /// The status now; `None` where the loop has ended or does not answer within 10 s.
    pub async fn ask(&self) -> Option<Status> {
        let answer = async {
            let (sender, receiver) = oneshot::channel();
            self.0.send(sender).await.ok()?;
            receiver.await.ok()
        };
        tokio::time::timeout(PATIENCE, answer).await.ok()?
    }
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
