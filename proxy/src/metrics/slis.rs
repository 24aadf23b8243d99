//! `/metrics/slis`: health checks as Kubernetes components tell them, reset by DELETE. As in kube-proxy, the one check is
//! `ping` of `/healthz` at the metrics address, and it is there once that has been asked.

use std::sync::{Mutex, PoisonError};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Series;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Format, text};

type Label = (&'static str, &'static str);

/// The health checks that were made.
#[derive(Debug)]
pub struct Slis(Mutex<Checks>);

#[derive(Debug)]
struct Checks {
    registry: Registry,
    last: Series<[Label; 2], Gauge>,
    all: Series<[Label; 3], Counter>,
}

impl Default for Slis {
    fn default() -> Self {
        let (mut registry, last, all) = (Registry::default(), Series::default(), Series::default());
        registry.register(
            "kubernetes_healthcheck",
            "The result of a single health check: 1 is success",
            Series::clone(&last),
        );
        registry.register("kubernetes_healthchecks", "Health checks so far, by result", Series::clone(&all));
        Self(Mutex::new(Checks { registry, last, all }))
    }
}

impl Slis {
    /// `/healthz` was asked, and well.
    pub(crate) fn ping(&self) {
        self.with(|checks| {
            checks.last.get_or_create(&[("name", "ping"), ("type", "healthz")]).set(1);
            checks.all.get_or_create(&[("name", "ping"), ("status", "success"), ("type", "healthz")]).inc();
        });
    }

    /// Forgets all checks.
    pub(crate) fn reset(&self) {
        self.with(|checks| {
            checks.last.clear();
            checks.all.clear();
        });
    }

    /// The text of `/metrics/slis`.
    pub fn text(&self, format: Format) -> String {
        self.with(|checks| text::encode(&checks.registry, format))
    }

    fn with<T>(&self, run: impl FnOnce(&Checks) -> T) -> T {
        run(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_counted_until_they_are_reset() {
        let slis = Slis::default();
        assert!(!slis.text(Format::Prometheus).contains("ping"), "nobody has asked");
        slis.ping();
        slis.ping();
        assert_eq!(
            slis.text(Format::Prometheus),
            "# HELP kubernetes_healthcheck The result of a single health check: 1 is success.\n\
             # TYPE kubernetes_healthcheck gauge\n\
             kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n\
             # HELP kubernetes_healthchecks_total Health checks so far, by result.\n\
             # TYPE kubernetes_healthchecks_total counter\n\
             kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n"
        );
        slis.reset();
        assert!(!slis.text(Format::Prometheus).contains("ping"));
    }
}
