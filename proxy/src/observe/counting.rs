//! What is counted: the objects that are served, and what the datapath counts of them, read at a pace, summed, and told to
//! `/metrics`.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::backend::Backend;
use crate::metrics::{Counts, Metrics};
use crate::proxy::Proxy;
use crate::settings::ServiceMetrics;
use crate::traffic::{Port, Totals};

/// Service ports, each in each family, that `/metrics` has series of at most.
const MOST_SERIES: usize = 25_000;
/// Of the loop's time, reading counters takes no more than one part in so many.
const LOOKING_PART: u32 = 50;

/// The counters as they were last read.
#[derive(Debug)]
pub(super) struct Counting {
    /// What `/metrics` is to have.
    pub(super) level: ServiceMetrics,
    /// Since the start.
    pub(super) totals: Totals,
    /// When they were last read, and how long it took.
    pub(super) read: Option<(Timestamp, Duration)>,
    looked: Option<Instant>,
    /// The last time, they could not be read.
    unread: bool,
    /// The service ports that `/metrics` has series of, and how many it has none of.
    exported: HashSet<Port>,
    left_out: usize,
    /// Connections that the datapath could not count.
    uncounted: u64,
}

impl Counting {
    pub(super) fn new(level: ServiceMetrics) -> Self {
        let exported = HashSet::new();
        let (totals, uncounted) = (Totals::default(), 0);
        Self { level, totals, read: None, looked: None, unread: false, exported, left_out: 0, uncounted }
    }

    /// Reads them, unless that was a moment ago for what it costs, and has `/metrics` tell them.
    pub(super) fn look<B: Backend>(&mut self, proxy: &mut Proxy<B>, metrics: &Metrics) {
        if !proxy.counting().connections {
            return;
        }
        let start = Instant::now();
        let gap = self.read.map_or(Duration::ZERO, |(_, took)| took * LOOKING_PART);
        if self.looked.is_some_and(|looked| start.saturating_duration_since(looked) < gap) {
            return;
        }
        let counts = match proxy.look() {
            Ok(counts) => counts,
            // Said once, not at each look.
            Err(error) if std::mem::replace(&mut self.unread, true) => {
                return tracing::debug!(%error, "the counters of Services still cannot be read");
            }
            Err(error) => return tracing::warn!(%error, "the counters of Services cannot be read"),
        };
        if std::mem::take(&mut self.unread) {
            tracing::info!("the counters of Services can be read again");
        }
        let gone = self.totals.look(start, counts);
        self.looked = Some(start);
        self.read = Some((Timestamp::now(), start.elapsed()));
        if self.level != ServiceMetrics::Off {
            self.export(&gone, proxy, metrics);
        }
    }

    /// So many connections could not be counted until now.
    pub(super) fn lost(&mut self, uncounted: u64, metrics: &Metrics) {
        metrics.uncounted(uncounted);
        if std::mem::replace(&mut self.uncounted, uncounted) == 0 && uncounted > 0 {
            tracing::warn!(
                connections = uncounted,
                "what connections carried is not counted: too many ended at once; kubeferry_uncounted_connections_total goes on"
            );
        }
    }

    fn export<B: Backend>(&mut self, gone: &[Port], proxy: &Proxy<B>, metrics: &Metrics) {
        for port in gone {
            if self.exported.remove(port) {
                metrics.service_port_gone(port);
            }
        }
        let mut left_out = 0;
        for (port, seen) in self.totals.all() {
            if self.exported.len() >= MOST_SERIES && !self.exported.contains(port) {
                left_out += 1;
                continue;
            }
            if !self.exported.contains(port) {
                self.exported.insert(port.clone());
            }
            metrics.service_port(port, &seen.total, proxy.counting());
        }
        if left_out > 0 && std::mem::replace(&mut self.left_out, left_out) == 0 {
            tracing::warn!(
                left_out,
                most = MOST_SERIES,
                "/metrics has no series of some service ports: they are too many; /api/v1/services has all of them"
            );
        }
        self.left_out = left_out;
        metrics.service_ports_left_out(left_out);
    }
}

/// The objects that are served.
pub(super) fn objects<B: Backend>(proxy: &Proxy<B>) -> Counts {
    let mut counts = Counts { services: proxy.state().services().len(), ..Counts::default() };
    for (_, target, _) in proxy.desired().targets() {
        let family = target.family as usize;
        counts.ports[family] += 1;
        counts.ready[family] += target.endpoints.ready;
        counts.serving[family] += target.endpoints.serving.len();
        counts.local[family] += target.endpoints.local_ready;
    }
    counts
}
