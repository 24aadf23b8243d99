//! Where the objects come from: a folder of manifests or the API server. Both speak one stream of
//! [`Event`]; a reader cannot tell which one it listens to.

mod api;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod known;
mod manifests;
mod object;
mod stats;

use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc;

use crate::settings::{Settings, Source};
use crate::state::event::Event;

pub use stats::{KindStats, WatchStats};

/// The running source; it stops when this is dropped, or when the receiver of its events is.
#[derive(Debug)]
#[must_use = "the source stops when this is dropped"]
pub struct Watching {
    _source: Running,
}

#[derive(Debug)]
enum Running {
    Manifests { _folder: manifests::Watching },
    Api { _watches: api::Watching },
}

/// Starts the source that `settings` names. Its present content comes first, then [`Event::Listed`] for each kind, then
/// changes as they happen, until the returned value is dropped.
///
/// # Errors
/// A folder that cannot be read or watched, a kubeconfig that cannot be used. An API server that does not answer is no
/// error here: it is tried again, logged and counted in `stats`.
pub async fn start(settings: &Settings, tx: mpsc::Sender<Event>, stats: Arc<WatchStats>) -> anyhow::Result<Watching> {
    let source = match &settings.source {
        Source::Manifests(dir) => {
            Running::Manifests { _folder: manifests::start(dir.clone(), settings.node_name.clone(), tx, stats)? }
        }
        Source::Api { .. } => Running::Api { _watches: api::start(settings, tx, stats).await? },
    };
    Ok(Watching { _source: source })
}

/// A client of its own for the API server that the settings name; `None`: the objects come from a folder. Nothing is sent
/// yet; requests are counted in `stats`.
///
/// # Errors
/// A kubeconfig or an in-cluster configuration that cannot be used.
pub async fn client(settings: &Settings, stats: &WatchStats) -> anyhow::Result<Option<Client>> {
    match &settings.source {
        Source::Manifests(_) => Ok(None),
        Source::Api { .. } => api::connect::client(settings, stats.requests()).await.map(Some),
    }
}

/// The source's present content as events, with [`Event::Listed`] for each kind at the end: for `plan`, `trace` and
/// `run --once`.
///
/// # Errors
/// A folder or kubeconfig that cannot be read; an API server that cannot be reached or refuses, said in one sentence with
/// what to do about it.
pub async fn load_once(settings: &Settings) -> anyhow::Result<Vec<Event>> {
    match &settings.source {
        Source::Manifests(dir) => manifests::load_once(dir, &settings.node_name),
        Source::Api { .. } => api::load_once(settings).await,
    }
}
