//! Logging: `tracing` events to standard error, so that standard output stays free for plans, traces and status.

use std::io;

use tracing_subscriber::EnvFilter;

use crate::settings::LogSettings;

/// Starts logging for the whole process; a second call does nothing.
pub fn start(settings: &LogSettings) {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // kube says every failed request once more, as an error, beside what we say of it.
    let quiet = "kube_client=off".parse();
    let filter = quiet.into_iter().fold(filter, EnvFilter::add_directive);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // It would tell standard error that standard error fails, and panic there.
    let builder = builder.log_internal_errors(false);
    // Another subscriber is only there in tests; it stays.
    let _ = if settings.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init()
    };
}
