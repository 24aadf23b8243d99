//! What is counted of Services.

use super::merge::Inputs;
use crate::config::Problem;

/// `--service-metrics`: what is counted of each service port and endpoint, on either datapath.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum ServiceMetrics {
    /// Nothing that costs something; `/metrics` has no series of Services.
    #[default]
    Off,
    /// New connections.
    Connections,
    /// Packets and bytes as well, which costs every packet or connection something.
    Full,
}

impl ServiceMetrics {
    /// As `--service-metrics` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Connections => "connections",
            Self::Full => "full",
        }
    }
}

/// Checks the flag and the field.
pub(super) fn check(given: &Inputs<'_>, problems: &mut Vec<Problem>) -> ServiceMetrics {
    let flag = given.common.datapath.service_metrics.as_ref();
    let Some(what) = given.text(flag, "--service-metrics", "serviceMetrics") else { return ServiceMetrics::Off };
    let all = [ServiceMetrics::Off, ServiceMetrics::Connections, ServiceMetrics::Full];
    match all.into_iter().find(|level| level.as_str() == what.value) {
        Some(level) => level,
        None => {
            problems.push(what.problem("must be off, connections or full"));
            ServiceMetrics::Off
        }
    }
}
