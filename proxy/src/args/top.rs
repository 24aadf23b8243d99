//! `kubeferry top`.

use std::time::Duration;

use clap::Args;

use super::duration;
use crate::facts::Order;

/// What `--help` says at first.
pub const ABOUT: &str = "Watch Services by new connections a second, and each with its endpoints: how many connections \
        each got beside what the scheduler promises it. Asks the proxy that runs on this node.\n\n\
        Keys: arrows or j k choose, Enter opens, Esc goes back, / searches, s sorts, r asks at once, p pauses, q ends. Traffic of \
        Services is counted as `--service-metrics` of `run` says; what is not counted is `-`. Where standard output is no \
        terminal, it is plain text, once, after an interval if what it shows has to be counted first.";

/// The shortest `--interval`: what the proxy tells is no newer than this while things change.
const SHORTEST: Duration = Duration::from_millis(100);

/// `kubeferry top`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = "Examples:\n  \
        kubeferry top\n  \
        kubeferry top --sort health --search kube-system\n  \
        kubeferry top --service default/web --plain --count 10 --interval 1s")]
pub struct TopArgs {
    /// Where the running proxy serves its metrics (`--metrics-bind-address` of `run`)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10249")]
    pub url: String,
    /// How often the proxy is asked, as a Go duration; 100ms at least
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
    /// The order at first
    #[arg(long, value_enum, value_name = "ORDER", default_value = "rate")]
    pub sort: Order,
    /// Only Services whose name, type, scheduler, health, address or port contains each of these words
    #[arg(long, value_name = "WORDS", default_value = "", hide_default_value = true)]
    pub search: String,
    /// One Service with its endpoints; NAMESPACE is `default` unless said
    #[arg(long, value_name = "[NAMESPACE/]NAME", conflicts_with = "search")]
    pub service: Option<String>,
    /// End after it was shown so often; without a terminal it is shown once unless this says otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Plain text, as where standard output is no terminal
    #[arg(long)]
    pub plain: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        interval if interval < SHORTEST => Err(format!("must be {SHORTEST:?} at least")),
        interval => Ok(interval),
    }
}
