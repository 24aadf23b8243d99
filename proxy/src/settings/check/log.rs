//! How the program logs.

use tracing_subscriber::EnvFilter;

use super::Check;
use crate::config::{Problem, gates};
use crate::settings::LogSettings;
use crate::settings::merge::Given;

/// The gate of how lines are written.
const ALPHA_OPTIONS: &str = "LoggingAlphaOptions";
/// The gate of lines in JSON.
const JSON_LINES: &str = "LoggingBetaOptions";

impl Check<'_> {
    pub(super) fn log(&mut self) -> LogSettings {
        let (given, flags) = (self.given, self.given.log());
        let format = given.text(flags.log_format.as_ref(), "--log-format", "logging.format");
        let json = match format.as_ref().map_or("text", |g| g.value.as_str()) {
            "text" => false,
            "json" => true,
            _ => {
                self.problems.extend(format.as_ref().map(|g| g.problem("must be text or json")));
                false
            }
        };
        if json && !gates::is_on(given.config.switches("featureGates"), JSON_LINES, "AllBeta") {
            let why = format!("only with the feature gate {JSON_LINES}, which is turned off");
            self.problems.extend(format.map(|g| g.problem(why)));
        }
        let modules = given.config.given().find(|(path, value)| *path == "logging.vmodule" && !value.is_zero());
        if let (true, Some((path, value))) = (json, modules) {
            // As `logsapi.Validate` of k8s.io/component-base says it.
            let why = "only the text format has it: leave it out, or choose logging.format text".to_owned();
            self.problems.push(Problem { what: given.config.origin(path), value: value.to_string(), why });
        }
        self.alpha_options();
        if let Some(level) = &flags.log_level {
            if let Err(error) = EnvFilter::try_new(level) {
                let given = Given { what: "--log-level".to_owned(), value: level.clone() };
                let why = "must be error, warn, info, debug, trace, or directives such as info,kubeferry::watch=debug";
                self.problems.push(given.problem(format!("{why} ({error})")));
            }
            return LogSettings { json, filter: level.clone() };
        }
        let verbosity = flags.v.map(i64::from).or_else(|| given.config.integer("logging.verbosity")).unwrap_or(0);
        LogSettings { json, filter: filter_of_verbosity(verbosity).to_owned() }
    }

    /// Options that kube-proxy refuses unless their gate is on, of either format (`validateFormatOptions` of
    /// k8s.io/component-base).
    fn alpha_options(&mut self) {
        let config = self.given.config;
        if gates::is_on(config.switches("featureGates"), ALPHA_OPTIONS, "AllAlpha") {
            return;
        }
        let is_alpha = |path: &str| {
            path.starts_with("logging.options.")
                && (path.ends_with(".splitStream") || path.ends_with(".infoBufferSize"))
        };
        for (path, value) in config.given().filter(|(path, value)| is_alpha(path) && !value.is_zero()) {
            let why = format!("only with the feature gate {ALPHA_OPTIONS}; it has no effect here: leave it out");
            self.problems.push(Problem { what: config.origin(path), value: value.to_string(), why });
        }
    }
}

/// What kube-proxy's verbosity of this number comes to.
pub fn filter_of_verbosity(verbosity: i64) -> &'static str {
    match verbosity {
        ..=3 => "info",
        4..=5 => "info,kubeferry=debug",
        _ => "info,kubeferry=trace",
    }
}
