//! kube-proxy's rules for values that nothing else looks at.

use super::Check;
use crate::config::{Problem, gates};
use crate::settings::merge::Given;

/// The minor version before that of the kube-proxy that this one is like.
const PREVIOUS: &str = "1.35";

impl Check<'_> {
    pub(super) fn fields(&mut self) {
        self.gates();
        if let Some(zero) = self.given.period("configSyncPeriod").filter(|period| period.value.is_zero()) {
            self.problems.push(zero.problem("must be greater than 0".to_owned()));
        }
        if let Some(range) = self.given.text(None, "", "portRange")
            && !is_port_range(&range.value)
        {
            self.problems.push(range.problem("must be a range of ports such as 300-2000, 300+50 or 300"));
        }
    }

    fn gates(&mut self) {
        let config = self.given.config;
        for (name, on) in config.switches("featureGates") {
            if let Some(why) = gates::refused(name, on) {
                let what = format!("{}.{name}", config.origin("featureGates"));
                self.problems.push(Problem { what, value: on.to_string(), why });
            }
        }
    }

    pub(super) fn hidden_metrics(&mut self) -> Option<String> {
        let version: Given<String> = self.given.text(None, "", "showHiddenMetricsForVersion")?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !version.value.split_once('.').is_some_and(|(major, minor)| digits(major) && digits(minor)) {
            self.problems.push(version.problem("must be a minor version such as 1.35"));
        } else if version.value != PREVIOUS {
            self.warnings.push(format!(
                "{} = {:?} shows nothing: kube-proxy 1.36 takes {PREVIOUS} alone, and ends with any other",
                version.what, version.value
            ));
        }
        Some(version.value)
    }
}

/// As Kubernetes' `ParsePortRange` reads it: `first-last`, `first+more`, one port, or nothing.
fn is_port_range(text: &str) -> bool {
    let text = text.trim();
    let port = |text: &str| text.parse::<u16>().ok();
    match (text.split_once('-'), text.split_once('+')) {
        (Some((first, last)), None) => port(first).zip(port(last)).is_some_and(|(first, last)| first <= last),
        (None, Some((first, more))) => {
            port(first).zip(port(more)).is_some_and(|(first, more)| first.checked_add(more).is_some())
        }
        (None, None) => text.is_empty() || port(text).is_some(),
        (Some(_), Some(_)) => false,
    }
}
