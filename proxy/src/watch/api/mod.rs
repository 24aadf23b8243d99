//! The API server as a source: one list and watch for each kind, with selectors that keep away what is not ours. Lists come by
//! pages, watches go on where they were after a cut; errors are tried again with growing, jittered pauses. Each object becomes
//! its compact form in the stream and is dropped.

mod bounded;
pub(super) mod connect;
mod doubt;
mod explain;
mod follow;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod kinds;
mod lenient;
mod lines;
mod measured;
mod taken;
mod value;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::known::Known;
use super::stats::WatchStats;
use crate::metrics::RestClient;
use crate::settings::Settings;
use crate::state::event::Event;
use connect::Place;
use follow::follow;
use kinds::{PAGE, Watched, fewer};
use taken::Taken;

/// How long [`load_once`] may take.
const ONCE_PATIENCE: Duration = Duration::from_secs(60);
/// After so long it is looked whether the API server's name has other addresses.
const NAMES_AGAIN: Duration = Duration::from_secs(30);

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
    let (client, place) = connect::client_and_place(settings, stats.requests()).await?;
    let mut tasks = JoinSet::new();
    if let Some(place) = place {
        tasks.spawn(tell_where(place, tx.clone()));
    }
    for watched in Watched::all(&settings.node_name) {
        tasks.spawn(follow(watched, client.clone(), tx.clone(), stats.clone()));
    }
    Ok(Watching { _tasks: tasks })
}

/// Tells where we reach the API server. A name is asked for again once in a while; where it has no address, the last ones stand.
async fn tell_where(place: Place, tx: mpsc::Sender<Event>) {
    let is_name = place.host.parse::<IpAddr>().is_err();
    loop {
        let addresses = place.addresses().await;
        let told = addresses.is_empty() || tx.send(Event::ApiServer(addresses)).await.is_ok();
        if !told || !is_name {
            return;
        }
        tokio::time::sleep(NAMES_AGAIN).await;
    }
}

/// The source's present content.
///
/// # Errors
/// The server cannot be reached or refuses Services, EndpointSlices or the Node; one sentence says what to do.
pub(super) async fn load_once(settings: &Settings) -> anyhow::Result<Vec<Event>> {
    let (client, place) = connect::client_and_place(settings, &RestClient::default()).await?;
    tokio::time::timeout(ONCE_PATIENCE, list_all(settings, client, place)).await.unwrap_or_else(|_| {
        anyhow::bail!("the API server has not answered within {ONCE_PATIENCE:?}: is the address right, and is it well?")
    })
}

async fn list_all(settings: &Settings, client: Client, place: Option<Place>) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    if let Some(place) = place {
        events.push(Event::ApiServer(place.addresses().await));
    }
    for watched in Watched::all(&settings.node_name) {
        let mut page = PAGE;
        let listed = loop {
            match list(&watched, &client, page).await {
                Err(error) if explain::is_cut(&error) && page > 1 => page = fewer(page),
                listed => break listed,
            }
        };
        match listed {
            Ok(listed) => events.extend(listed),
            Err(error) if explain::lacks(watched.kind, &error) => {}
            Err(error) => anyhow::bail!("{}", explain::asking(watched.kind, &error)),
        }
        events.push(Event::Listed(watched.kind));
    }
    Ok(events)
}

/// What there is of a kind, asked for in pages of so many objects.
async fn list(watched: &Watched, client: &Client, page: u32) -> kube::Result<Vec<Event>> {
    let (mut events, mut known) = (Vec::new(), Known::default());
    let mut params = watched.list_params(page);
    loop {
        let page = watched.api(client).list(&params).await?;
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        for object in page.items {
            Taken::new(watched.kind, object).put(&mut known, &mut |event| events.push(event));
        }
        if params.continue_token.is_none() {
            return Ok(events);
        }
    }
}
