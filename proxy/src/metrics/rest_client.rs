//! Requests to the API server, by client-go's names.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Series;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::Histograms;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Answered {
    code: String,
    host: String,
    method: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Asked {
    host: String,
    verb: String,
}

/// Counts requests. Clones count together.
#[derive(Clone, Debug)]
pub struct RestClient {
    requests: Series<Answered, Counter>,
    durations: Histograms<Asked>,
}

fn durations() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl Default for RestClient {
    fn default() -> Self {
        Self { requests: Series::default(), durations: Series::new_with_constructor(durations) }
    }
}

impl RestClient {
    /// A request to `host` (with its port) got an answer with this code, or none: `<error>`, as client-go writes it. `took` is
    /// until the head of the answer; a watch goes on after it.
    pub(crate) fn answered(&self, host: &str, method: &str, code: Option<u16>, took: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let (host, method) = (host.to_owned(), method.to_owned());
        self.durations.get_or_create(&Asked { host: host.clone(), verb: method.clone() }).observe(took.as_secs_f64());
        self.requests.get_or_create(&Answered { code, host, method }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "rest_client_requests",
            "Requests to the API server, by code, method and host",
            self.requests.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "Time from a request to the head of its answer, by verb and host",
            self.durations.clone(),
        );
    }
}
