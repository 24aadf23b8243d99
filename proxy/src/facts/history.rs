//! The last syncs: what changed, how many rows, how long, and how long after the object.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Snapshot;
use crate::backend::{Report, RowChanges};
use crate::state::Changes;

/// How many syncs are remembered.
pub const CAPACITY: usize = 256;
/// How many changed objects are named in each.
pub const NAMED: usize = 20;

/// What made a sync necessary, and how much it looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SyncKind {
    /// Objects changed: only their rows were compared.
    #[default]
    Partial,
    /// Every row was compared: at the start, after a failure, or since the node changed.
    Full,
    /// Somebody had changed the kernel's tables, or the kernel takes what it refused before.
    Repair,
}

/// A sync.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SyncFacts {
    /// Counts from 1 since the process started.
    pub number: u64,
    /// When it ended.
    pub at: Timestamp,
    /// What it was.
    pub kind: SyncKind,
    /// Services whose object or endpoints changed, `namespace/name`, 20 of them at most.
    pub objects: Vec<String>,
    /// How many there are.
    pub objects_total: usize,
    /// The Node changed, or the ServiceCIDRs.
    pub node_changed: bool,
    /// Seconds that it took.
    pub took_seconds: f64,
    /// Seconds from taking in the oldest change until it was in the kernel; absent where nothing waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change_to_kernel_seconds: Option<f64>,
    /// Seconds from the oldest change in the cluster (`endpoints.kubernetes.io/last-change-trigger-time` of a slice) until it
    /// was in the kernel; absent where no slice says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag_seconds: Option<f64>,
    /// Rows written and deleted, by map; `chains` are those of nftables.
    pub rows: BTreeMap<String, RowChanges>,
    /// All of these together.
    pub rows_written: usize,
    /// Rows that differed from what had been written, and were put right.
    pub repaired: usize,
    /// Frontends that the kernel refuses.
    pub refused: usize,
    /// Why it failed; absent: it succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// How many times in a row it failed so.
    #[serde(skip_serializing_if = "is_zero")]
    pub failed_times: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// How long something takes, over the syncs that are remembered.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Latency {
    /// Of how many syncs.
    pub samples: usize,
    /// Seconds that half of them did not need.
    pub p50_seconds: f64,
    /// Nine of ten.
    pub p90_seconds: f64,
    /// 99 of 100.
    pub p99_seconds: f64,
    /// The longest.
    pub max_seconds: f64,
}

impl Latency {
    fn of(seconds: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = seconds.collect();
        all.sort_by(f64::total_cmp);
        let rank =
            |part: usize| all.get((all.len() * part).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        Self {
            samples: all.len(),
            p50_seconds: rank(50),
            p90_seconds: rank(90),
            p99_seconds: rank(99),
            max_seconds: rank(100),
        }
    }
}

/// A sync that succeeded.
#[derive(Debug)]
pub struct Done<'a> {
    /// What the backend did.
    pub report: &'a Report,
    /// What is in force now.
    pub changes: &'a Changes,
    /// How long it took.
    pub took: Duration,
    /// From taking in the oldest change.
    pub change_to_kernel: Option<Duration>,
    /// Trigger times before this are not of this process's time.
    pub since: Timestamp,
}

/// The last syncs, and those whose time is remembered.
#[derive(Debug, Default)]
pub struct History {
    syncs: VecDeque<Arc<SyncFacts>>,
    number: u64,
}

impl History {
    /// A sync succeeded.
    pub fn done(&mut self, done: &Done<'_>, now: Timestamp) {
        let Done { report, changes, .. } = done;
        let oldest = changes.triggers.iter().map(|(_, at, _)| *at).filter(|at| *at >= done.since).min();
        let lag = oldest.and_then(|at| Duration::try_from(now.duration_since(at)).ok());
        let sync = SyncFacts {
            kind: if report.full { SyncKind::Full } else { SyncKind::Partial },
            objects: changes.services.iter().take(NAMED).map(ToString::to_string).collect(),
            objects_total: changes.services.len(),
            node_changed: changes.node || changes.service_cidrs,
            took_seconds: done.took.as_secs_f64(),
            change_to_kernel_seconds: done.change_to_kernel.map(|after| after.as_secs_f64()),
            lag_seconds: lag.map(|lag| lag.as_secs_f64()),
            ..Self::reported(report)
        };
        self.push(sync, now);
    }

    /// A look at the kernel found something to do, and did it.
    pub fn repaired(&mut self, report: &Report, took: Duration, now: Timestamp) {
        let sync = SyncFacts { kind: SyncKind::Repair, took_seconds: took.as_secs_f64(), ..Self::reported(report) };
        self.push(sync, now);
    }

    /// A sync failed, and will be tried again.
    pub fn failed(&mut self, error: String, took: Duration, now: Timestamp) {
        if let Some(last) = self.syncs.back_mut().filter(|last| last.error.as_ref() == Some(&error)) {
            let again = SyncFacts {
                at: now,
                took_seconds: took.as_secs_f64(),
                failed_times: last.failed_times + 1,
                ..SyncFacts::clone(last)
            };
            *last = Arc::new(again);
            return;
        }
        let sync = SyncFacts {
            kind: SyncKind::Full,
            took_seconds: took.as_secs_f64(),
            error: Some(error),
            failed_times: 1,
            ..SyncFacts::default()
        };
        self.push(sync, now);
    }

    /// The oldest first.
    pub fn all(&self) -> Vec<Arc<SyncFacts>> {
        self.syncs.iter().cloned().collect()
    }

    /// How long syncs took, and how long changes waited for them.
    pub fn latencies(&self) -> (Latency, Latency) {
        let good = self.syncs.iter().filter(|sync| sync.error.is_none());
        let took = good.clone().map(|sync| sync.took_seconds);
        (Latency::of(took), Latency::of(good.filter_map(|sync| sync.change_to_kernel_seconds)))
    }

    fn reported(report: &Report) -> SyncFacts {
        SyncFacts {
            rows: report.by_map.iter().map(|(map, rows)| ((*map).to_owned(), *rows)).collect(),
            rows_written: report.changes,
            repaired: report.repaired,
            refused: report.refused.len(),
            ..SyncFacts::default()
        }
    }

    fn push(&mut self, sync: SyncFacts, at: Timestamp) {
        self.number += 1;
        if self.syncs.len() == CAPACITY {
            self.syncs.pop_front();
        }
        self.syncs.push_back(Arc::new(SyncFacts { number: self.number, at, ..sync }));
    }
}

/// The answer of `/api/v1/history`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HistoryPage {
    /// How many syncs are remembered at most: older ones are forgotten.
    pub capacity: usize,
    /// The number of the newest, 0 before the first: ask for those `since` it.
    pub newest: u64,
    /// The syncs, the newest first.
    pub items: Vec<SyncFacts>,
}

impl HistoryPage {
    /// The syncs after number `since`, the newest first, `limit` of them at most.
    pub fn of(snapshot: &Snapshot, since: u64, limit: usize) -> Self {
        let after = snapshot.history.iter().rev().take_while(|sync| sync.number > since);
        Self {
            capacity: CAPACITY,
            newest: snapshot.history.last().map_or(0, |sync| sync.number),
            items: after.take(limit).map(|sync| SyncFacts::clone(sync)).collect(),
        }
    }
}
