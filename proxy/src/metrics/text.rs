//! The two text forms of `/metrics`.

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// The form of `/metrics`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// Prometheus text format 0.0.4, as kube-proxy answers.
    #[default]
    Prometheus,
    /// OpenMetrics text format 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The form that an `Accept` header asks for.
    pub fn accepted(header: &str) -> Self {
        if header.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Writes all metrics. The library writes OpenMetrics; Prometheus text has no end mark, knows no type `info`, and writes the
/// whole name of a counter (`x_total`) in the lines about it.
pub(super) fn encode(registry: &Registry, format: Format) -> String {
    let mut open = String::new();
    // Writing to a String cannot fail.
    let _ = text::encode(&mut open, registry);
    match format {
        Format::OpenMetrics => open,
        Format::Prometheus => prometheus(&open),
    }
}

fn prometheus(open: &str) -> String {
    let mut out = String::with_capacity(open.len());
    let mut lines = open.lines();
    while let Some(line) = lines.next() {
        if line == "# EOF" {
            continue;
        }
        let Some(rest) = line.strip_prefix("# HELP ") else {
            out.extend([line, "\n"]);
            continue;
        };
        let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
        // The TYPE line is next to the HELP line.
        let kind = lines.next().and_then(|line| line.rsplit(' ').next()).unwrap_or("untyped");
        let (name, kind) = match kind {
            "counter" => (format!("{name}_total"), "counter"),
            "info" => (format!("{name}_info"), "gauge"),
            other => (name.to_owned(), other),
        };
        out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }
    out
}
