//! Logging: `tracing` events to standard error, so that standard output stays free for plans, traces and status. An event is
//! one line, whatever is in it.

mod lines;

use std::io;
use std::sync::OnceLock;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::settings::LogSettings;

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts logging for the whole process; a second call does nothing.
pub fn start(settings: &LogSettings) {
    let json = settings.json;
    let (filter, handle) = reload::Layer::new(filter(settings));
    let registry = tracing_subscriber::registry().with(filter);
    // It would tell standard error that standard error fails, and panic there.
    let writer = move || lines::Lines::new(io::stderr(), json);
    let lines = fmt::layer().with_writer(writer).log_internal_errors(false);
    // Another subscriber is only there in tests; it stays.
    let started = if json {
        registry.with(lines.json().flatten_event(true)).try_init()
    } else {
        registry.with(lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))).try_init()
    };
    if started.is_ok() {
        FILTER.set(handle).ok();
    }
}

/// Logs by another filter from now on; where logging was not started here, nothing.
pub fn change(settings: &LogSettings) {
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter(settings))) {
        tracing::error!(%error, "cannot change what is logged");
    }
}

fn filter(settings: &LogSettings) -> EnvFilter {
    let filter = EnvFilter::try_new(&settings.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // kube says every failed request once more, as an error, beside what we say of it.
    let quiet = "kube_client=off".parse();
    quiet.into_iter().fold(filter, EnvFilter::add_directive)
}
