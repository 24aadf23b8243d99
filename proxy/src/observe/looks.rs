//! What comes of looks at the kernel: drift that was mended or stays, and what is counted then.

use std::time::Duration;

use jiff::Timestamp;

use super::{Observer, REMIND, objects};
use crate::backend::{Backend, Report};
use crate::proxy::Proxy;
use crate::settings::ServiceMetrics;

impl Observer {
    /// The kernel was looked at; `report` tells what had to be mended, or that it took what it had refused.
    pub fn checked<B: Backend>(&mut self, proxy: &mut Proxy<B>, report: Option<&Report>, took: Duration) {
        let now = Timestamp::now();
        self.drift.last_check = Some(now);
        self.drift.unrepaired = 0;
        self.metrics.drift_stays(false);
        self.health.repaired();
        self.count_packets(proxy);
        for (map, rows) in proxy.rows() {
            self.metrics.rows(map, *rows);
        }
        self.metrics.recounted(proxy.backend().recounted());
        self.counting.lost(proxy.backend().uncounted(), &self.metrics);
        if self.counting.level != ServiceMetrics::Off && proxy.counting().forgets {
            self.look(proxy);
        }
        self.count_objects(proxy);
        if self.reminded.elapsed() >= REMIND {
            self.remind(proxy);
        }
        if let Some(report) = report {
            self.mended(proxy, report, took);
        }
    }

    /// What others had changed was mended, or the kernel took what it had refused.
    pub fn mended<B: Backend>(&mut self, proxy: &Proxy<B>, report: &Report, took: Duration) {
        let now = Timestamp::now();
        self.history.repaired(report, took, now);
        self.changed();
        if report.repaired == 0 {
            tracing::info!(ops = report.changes, "the kernel takes rows that it refused before");
        }
        self.repaired(report.repaired, now);
        self.tables(proxy);
    }

    fn count_packets<B: Backend>(&self, proxy: &Proxy<B>) {
        for (reason, packets) in proxy.backend().packets() {
            self.metrics.packets(reason, packets);
        }
    }

    /// Reads the counters, unless that was a moment ago for what it costs, and has `/metrics` tell them.
    pub fn look<B: Backend>(&mut self, proxy: &mut Proxy<B>) {
        self.count_packets(proxy);
        self.counting.look(proxy, &self.metrics);
    }

    pub(super) fn count_objects<B: Backend>(&mut self, proxy: &Proxy<B>) {
        if std::mem::take(&mut self.uncounted) {
            self.counts = objects(proxy);
            self.metrics.counts(&self.counts);
        }
    }

    pub(super) fn repaired(&mut self, rows: usize, now: Timestamp) {
        if rows > 0 {
            tracing::warn!(rows, "somebody changed the kernel's table; repaired");
            self.drift.repairs += 1;
            self.drift.rows += rows as u64;
            self.drift.last_repair = Some(now);
            self.metrics.drift_repaired(rows);
        }
    }

    /// The kernel cannot be looked at, or not be repaired.
    pub fn check_failed(&mut self, error: &dyn std::fmt::Display) {
        tracing::error!(%error, "cannot look for drift, or repair it");
        self.drift.unrepaired = self.drift.unrepaired.max(1);
        self.metrics.drift_stays(true);
        // For as long as a change may wait, the node counts as healthy.
        self.health.unrepaired();
        self.changed();
    }
}
