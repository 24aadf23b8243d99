//! The API server as a source: one watch for each kind, with selectors that keep away what is not ours. kube's watcher
//! lists by pages, watches with bookmarks, and lists anew after 410 Gone; errors are tried again with growing, jittered
//! pauses. Each object becomes its compact form in the stream and is dropped.

mod connect;
mod explain;
mod kinds;

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::{DynamicObject, ListParams};
use kube::runtime::watcher;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::known::Known;
use super::object::Object;
use super::stats::WatchStats;
use crate::settings::Settings;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};
use kinds::Watched;

/// How many objects come in one answer to a list.
const PAGE: u32 = 500;
/// The pauses between tries: the first, and the longest. kube's own backoff starts anew with every try to list.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How soon a kind that the server does not have is asked for again.
const UNSERVED: Duration = Duration::from_secs(300);

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
    let client = connect::client(settings).await?;
    let mut tasks = JoinSet::new();
    for watched in Watched::all(&settings.node_name) {
        let config = watcher::Config {
            label_selector: watched.labels.map(str::to_owned),
            field_selector: watched.fields.clone(),
            ..watcher::Config::default().page_size(PAGE)
        };
        let api = watched.api(&client);
        let begin = move || watcher(api.clone(), config.clone());
        tasks.spawn(follow(watched.kind, begin, tx.clone(), stats.clone()));
    }
    Ok(Watching { _tasks: tasks })
}

/// Turns one kind's stream into events, until their receiver is gone. `begin` makes a stream that begins with a list.
async fn follow<S: Stream<Item = watcher::Result<watcher::Event<DynamicObject>>>>(
    kind: Kind,
    begin: impl Fn() -> S,
    tx: mpsc::Sender<Event>,
    stats: Arc<WatchStats>,
) {
    let mut stream = Box::pin(begin());
    let mut known = Known::default();
    let mut failures = 0;
    let stats = stats.of(kind);
    while let Some(item) = stream.next().await {
        let mut events = Vec::new();
        let mut send = |event| events.push(event);
        match item {
            Ok(watcher::Event::Init) => known.begin_list(),
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                stats.event();
                failures = failures.min(1);
                take(kind, object, &mut known, &mut send);
            }
            Ok(watcher::Event::Delete(object)) => {
                stats.event();
                known.remove(kind, &name_of(kind, &object), &mut send);
            }
            Ok(watcher::Event::InitDone) => {
                known.listed(kind, &mut send);
                send(Event::Listed(kind));
                stats.list();
                if std::mem::take(&mut failures) > 0 {
                    tracing::info!(kind = kind.as_str(), "listed again");
                }
            }
            Err(error) if explain::is_unserved(kind, &error) => {
                // An older cluster has no ServiceCIDRs; then there are none.
                tracing::debug!(kind = kind.as_str(), %error, "not served");
                known.begin_list();
                known.listed(kind, &mut send);
                send(Event::Listed(kind));
                stats.list();
                if deliver(&tx, &mut events).await.is_err() {
                    return;
                }
                tokio::time::sleep(UNSERVED).await;
            }
            Err(error) => {
                stats.error();
                let pause = pause(failures);
                failures += 1;
                tracing::warn!(kind = kind.as_str(), retry_in = ?pause, "{}", explain::watching(kind, &error));
                tokio::time::sleep(pause).await;
                if explain::is_gone(&error) {
                    stream = Box::pin(begin());
                }
            }
        }
        if deliver(&tx, &mut events).await.is_err() {
            return;
        }
    }
}

/// How long to wait after this many failures in a row: doubling, and spread out so that the nodes of a cluster do not
/// come back all at once.
fn pause(failures: u32) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + fastrand::f64() / 2.0)
}

async fn deliver(tx: &mpsc::Sender<Event>, events: &mut Vec<Event>) -> Result<(), mpsc::error::SendError<Event>> {
    for event in events.drain(..) {
        tx.send(event).await?;
    }
    Ok(())
}

/// The source's present content.
///
/// # Errors
/// The server cannot be reached or refuses Services, EndpointSlices or the Node; one sentence says what to do.
pub(super) async fn load_once(settings: &Settings) -> anyhow::Result<Vec<Event>> {
    let client = connect::client(settings).await?;
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

fn name_of(kind: Kind, object: &DynamicObject) -> ObjectName {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    super::object::scoped(kind, ObjectName::new(namespace, name))
}

/// Takes an object in. One that cannot be decoded is a fault of that object and of no other.
fn take(kind: Kind, object: DynamicObject, known: &mut Known, send: &mut dyn FnMut(Event)) {
    let name = name_of(kind, &object);
    let version = version_of(object.metadata.resource_version.as_deref());
    match Object::decode(kind, object.data) {
        Ok(mut decoded) => {
            *decoded.metadata_mut() = object.metadata;
            known.put(version, decoded.report(), send);
        }
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
