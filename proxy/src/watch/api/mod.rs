//! The API server as a source: one watch for each kind, with selectors that keep away what is not ours. kube's watcher
//! lists by pages, watches with bookmarks, and goes on where it was after a cut; errors are tried again with growing,
//! jittered pauses. Each object becomes its compact form in the stream and is dropped.

pub(super) mod connect;
mod explain;
mod kinds;
mod lenient;
mod measured;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::Client;
use kube::api::ListParams;
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::known::Known;
use super::object::Object;
use super::stats::WatchStats;
use crate::metrics::RestClient;
use crate::settings::Settings;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};
use kinds::Watched;
use lenient::Lenient;

/// How many objects come in one answer to a list.
const PAGE: u32 = 500;
/// The pauses between tries: the first, and the longest. kube's own backoff starts anew with every try to list.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How soon a kind that the server does not have is asked for again.
const UNSERVED: Duration = Duration::from_secs(300);
/// How long a page of a list may take; a connection that has died without a word would never end.
const PAGE_PATIENCE: Duration = Duration::from_secs(90);
/// How long [`load_once`] may take.
const ONCE_PATIENCE: Duration = Duration::from_secs(60);

/// The running watches; they stop when this is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    _tasks: JoinSet<()>,
}

/// Starts the watches of every kind.
///
/// # Errors
/// A kubeconfig or an in-cluster configuration that cannot be used. A server that does not answer is no error here.
pub(super) async fn start(
    settings: &Settings,
    tx: mpsc::Sender<Event>,
    stats: Arc<WatchStats>,
) -> anyhow::Result<Watching> {
    let client = connect::client(settings, stats.requests()).await?;
    let mut tasks = JoinSet::new();
    for watched in Watched::all(&settings.node_name) {
        tasks.spawn(watch(watched, client.clone(), tx.clone(), stats.clone()));
    }
    Ok(Watching { _tasks: tasks })
}

/// Why a stream of kube's has come to its end for us.
enum Ended {
    /// Nobody listens.
    Unheard,
    /// Only a new list can say what there is.
    ListAnew,
}

/// Turns one kind's watch into events, until their receiver is gone.
async fn watch(watched: Watched, client: Client, tx: mpsc::Sender<Event>, stats: Arc<WatchStats>) {
    let config = watcher::Config {
        label_selector: watched.labels.map(str::to_owned),
        field_selector: watched.fields.clone(),
        ..watcher::Config::default().page_size(PAGE)
    };
    let mut follower = Follower { kind: watched.kind, known: Known::default(), failures: 0, tx, stats };
    loop {
        let stream = watcher(watched.api(&client), config.clone());
        match follower.follow(stream).await {
            Ended::Unheard => return,
            Ended::ListAnew => tracing::info!(kind = watched.kind.as_str(), "listing anew"),
        }
    }
}

/// What outlives a list and a watch of one kind.
struct Follower {
    kind: Kind,
    known: Known,
    failures: u32,
    tx: mpsc::Sender<Event>,
    stats: Arc<WatchStats>,
}

impl Follower {
    async fn follow(&mut self, stream: impl Stream<Item = watcher::Result<watcher::Event<Lenient>>>) -> Ended {
        let kind = self.kind;
        let mut stream = pin!(stream);
        let mut listing = true;
        loop {
            // kube bounds the silence of a watch, and not that of a list.
            let patience = if listing { PAGE_PATIENCE } else { Duration::MAX };
            let Ok(item) = tokio::time::timeout(patience, stream.next()).await else {
                self.fail(&format!(
                    "the API server has not answered for {PAGE_PATIENCE:?} when asked for {}s",
                    kind.as_str()
                ))
                .await;
                return Ended::ListAnew;
            };
            let Some(item) = item else { return Ended::ListAnew };
            let mut events = Vec::new();
            let mut send = |event| events.push(event);
            let mut pause = Duration::ZERO;
            match item {
                Ok(watcher::Event::Init) => {
                    listing = true;
                    self.known.begin_list();
                }
                Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                    self.stats.of(kind).event();
                    self.failures = self.failures.min(1);
                    take(kind, object, &mut self.known, &mut send);
                }
                Ok(watcher::Event::Delete(object)) => {
                    self.stats.of(kind).event();
                    self.known.remove(kind, &name_of(kind, &object), &mut send);
                }
                Ok(watcher::Event::InitDone) => {
                    listing = false;
                    self.listed(&mut send);
                    if std::mem::take(&mut self.failures) > 0 {
                        tracing::info!(kind = kind.as_str(), "listed again");
                    }
                }
                Err(error) if explain::is_unserved(kind, &error) => {
                    // An older cluster has no ServiceCIDRs; then there are none.
                    if explain::is_forbidden(&error) {
                        tracing::warn!(kind = kind.as_str(), retry_in = ?UNSERVED, "{}", explain::watching(kind, &error));
                    }
                    self.known.begin_list();
                    self.listed(&mut send);
                    pause = UNSERVED;
                }
                Err(error) => {
                    self.fail(&explain::watching(kind, &error)).await;
                    if explain::needs_list(&error) {
                        return Ended::ListAnew;
                    }
                }
            }
            for event in events {
                if self.tx.send(event).await.is_err() {
                    return Ended::Unheard;
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    fn listed(&mut self, send: &mut dyn FnMut(Event)) {
        self.known.listed(self.kind, send);
        send(Event::Listed(self.kind));
        self.stats.of(self.kind).list();
    }

    async fn fail(&mut self, why: &str) {
        self.stats.of(self.kind).error();
        let pause = pause(self.failures);
        self.failures += 1;
        tracing::warn!(kind = self.kind.as_str(), retry_in = ?pause, "{why}");
        tokio::time::sleep(pause).await;
    }
}

/// How long to wait after this many failures in a row: doubling, and spread out so that the nodes of a cluster do not
/// come back all at once.
fn pause(failures: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

/// The source's present content.
///
/// # Errors
/// The server cannot be reached or refuses Services, EndpointSlices or the Node; one sentence says what to do.
pub(super) async fn load_once(settings: &Settings) -> anyhow::Result<Vec<Event>> {
    let client = connect::client(settings, &RestClient::default()).await?;
    tokio::time::timeout(ONCE_PATIENCE, list_all(settings, client)).await.unwrap_or_else(|_| {
        anyhow::bail!("the API server has not answered within {ONCE_PATIENCE:?}: is the address right, and is it well?")
    })
}

async fn list_all(settings: &Settings, client: Client) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    for watched in Watched::all(&settings.node_name) {
        let (kind, api) = (watched.kind, watched.api(&client));
        let mut known = Known::default();
        let mut params = ListParams {
            label_selector: watched.labels.map(str::to_owned),
            field_selector: watched.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let page = match api.list(&params).await {
                Ok(page) => page,
                Err(error) if explain::lacks(kind, &error) => break,
                Err(error) => anyhow::bail!("{}", explain::asking(kind, &error)),
            };
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            for object in page.items {
                take(kind, object, &mut known, &mut |event| events.push(event));
            }
            if params.continue_token.is_none() {
                break;
            }
        }
        events.push(Event::Listed(kind));
    }
    Ok(events)
}

fn name_of(kind: Kind, object: &Lenient) -> ObjectName {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    super::object::scoped(kind, ObjectName::new(namespace, name))
}

/// Takes an object in. One that cannot be decoded is a fault of that object and of no other.
fn take(kind: Kind, object: Lenient, known: &mut Known, send: &mut dyn FnMut(Event)) {
    let name = name_of(kind, &object);
    let version = version_of(object.metadata.resource_version.as_deref());
    match Object::decode(kind, object.data) {
        Ok(decoded) => known.put(version, decoded.report(), send),
        Err(error) => {
            let what = format!("{} {name}", kind.as_str());
            let why =
                format!("it is malformed: {error}; what was served of it before stays in force until it is mended");
            known.unreadable(kind, name, Ignored { what, why }, send);
        }
    }
}

/// A number that stands for a resourceVersion, which is an opaque text.
fn version_of(text: Option<&str>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
