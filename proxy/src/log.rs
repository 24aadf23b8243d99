//! Logging: `tracing` events to standard error, so that standard output stays free for plans, traces and status.

use std::io;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

use crate::settings::{LogSettings, filter_of_verbosity};

/// Replaces the filter of the running log; `false`: it cannot be.
type Replace = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

static REPLACE: OnceLock<Replace> = OnceLock::new();

/// Starts logging for the whole process; a second call does nothing.
pub fn start(settings: &LogSettings) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(quiet(filter)).with_writer(io::stderr);
    // It would tell standard error that standard error fails, and panic there.
    let builder = builder.log_internal_errors(false);
    // Another subscriber is only there in tests; it stays.
    let replace: Replace = if settings.json {
        let builder = builder.json().flatten_event(true).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        Box::new(move |filter| handle.reload(filter).is_ok())
    } else {
        let builder = builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter_reloading();
        let handle = builder.reload_handle();
        let _ = builder.try_init();
        Box::new(move |filter| handle.reload(filter).is_ok())
    };
    let _ = REPLACE.set(replace);
}

/// Logs by another filter from now on; `false`: there is no log that can be changed.
pub fn change(settings: &LogSettings) -> bool {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    REPLACE.get().is_some_and(|replace| replace(quiet(filter)))
}

/// Has the running log tell as much as kube-proxy's `-v` of this number asks for; `false`: there is none that can be changed.
pub fn set_verbosity(verbosity: u32) -> bool {
    let filter = EnvFilter::new(filter_of_verbosity(verbosity.into()));
    REPLACE.get().is_some_and(|replace| replace(quiet(filter)))
}

/// kube says every failed request once more, as an error, beside what we say of it.
fn quiet(filter: EnvFilter) -> EnvFilter {
    "kube_client=off".parse().into_iter().fold(filter, EnvFilter::add_directive)
}
