//! Health check node ports: what the load balancer of a Service with `externalTrafficPolicy: Local` asks to know whether this
//! node has endpoints of it (kube-proxy's `service_health.go`). Each family has servers of its own.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

use super::Health;
use super::connections::Connections;
use super::routes::NOSNIFF;
use crate::desired::node_view::{NodePorts, NodeView};
use crate::desired::{HealthCheck, health_check};
use crate::events::{Events, Notice, Reason, Regarding};
use crate::metrics::Metrics;
use crate::state;
use crate::state::event::Kind;
use crate::state::objects::{Family, ObjectName};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Connections that may be open at all ports together; load balancers ask every few seconds, some by a connection that stays.
const CONNECTIONS: usize = 256;
/// Files that the proxy needs for its work: eBPF maps, programs and links are some eighty, `nft` and sockets some more.
const OWN_FILES: u64 = 128;
/// Of the other files that the process may open, listeners have a quarter; connections to three servers may have an eighth each.
const SHARE: u64 = 4;
/// Where that is nothing, one in so many.
const LEAST_SHARE: u64 = 16;

/// What has servers of its own.
type Key = (ObjectName, Family);
/// The creation time of a Service; an absent one counts as newest, as where frontends are claimed.
type Age = (bool, Option<Timestamp>);
/// Where the servers are to listen, and how many endpoints are here.
type Wanted = BTreeMap<Key, (BTreeSet<SocketAddr>, usize)>;

/// The health check node ports of this node.
#[derive(Debug)]
pub struct HealthCheckPorts {
    health: Health,
    events: Events,
    metrics: Arc<Metrics>,
    connections: Connections,
    families: Vec<Family>,
    /// How many listeners may be open.
    room: usize,
    wanted: BTreeMap<ObjectName, (Age, HealthCheck)>,
    open: BTreeMap<Key, Open>,
    /// Those that could not be opened, and why.
    failed: BTreeMap<Key, String>,
    /// Those that there is no room for.
    left_out: BTreeSet<Key>,
    /// Where node ports answered when all was last gone through.
    answered_at: Option<[NodePorts; 2]>,
}

/// The servers of one Service in one family.
#[derive(Debug)]
struct Open {
    at: BTreeSet<SocketAddr>,
    answer: Answer,
    servers: Vec<Server>,
}

impl HealthCheckPorts {
    /// None is open yet. Answers depend on `health`; what cannot be opened is reported to `events`. `families` are those of the
    /// host: there are no servers of another.
    pub fn new(health: Health, events: Events, metrics: Arc<Metrics>, families: Vec<Family>) -> Self {
        let (wanted, open, failed, left_out) = Default::default();
        let connections = Connections::at_most(CONNECTIONS);
        let room = getrlimit(Resource::Nofile).current.map_or(usize::MAX, room_of);
        let answered_at = None;
        Self { health, events, metrics, connections, families, room, wanted, open, failed, left_out, answered_at }
    }

    /// A sync that carried the changes of these Services has succeeded: opens, closes and updates. What could not be opened
    /// before is tried again.
    pub async fn synced(&mut self, state: &state::State, node: &NodeView, changed: &BTreeSet<ObjectName>) {
        let mut differs = !self.failed.is_empty() || self.answered_at.as_ref() != Some(&node.node_ports);
        for name in changed {
            let age = state.services().get(name).map(|service| (service.created.is_none(), service.created));
            let check = age.zip(health_check(state, node, name));
            if self.wanted.get(name) != check.as_ref() {
                differs = true;
                match check {
                    Some(check) => drop(self.wanted.insert(name.clone(), check)),
                    None => drop(self.wanted.remove(name)),
                }
            }
        }
        if differs {
            self.answered_at = Some(node.node_ports.clone());
            self.follow(node).await;
        }
    }

    /// Tries again what could not be opened.
    pub async fn retry(&mut self, node: &NodeView) {
        if !self.failed.is_empty() {
            self.follow(node).await;
        }
    }

    async fn follow(&mut self, node: &NodeView) {
        let wanted = self.admitted(node);
        self.close(&wanted).await;
        self.failed.retain(|key, _| wanted.contains_key(key));
        for ((name, family), (at, local)) in wanted {
            match self.open.entry((name.clone(), family)) {
                Entry::Occupied(open) => open.get().answer.local.store(local, Ordering::Relaxed),
                Entry::Vacant(entry) => {
                    let answer = Answer { service: name, local: Arc::new(local.into()), health: self.health.clone() };
                    match Open::all(at, answer, &self.connections).await {
                        Ok(open) => {
                            self.failed.remove(entry.key());
                            tracing::debug!(service = %entry.key().0, at = ?open.at, "opened a health check node port");
                            entry.insert(open);
                        }
                        Err((at, error)) => {
                            let (service, before) = (&entry.key().0, self.failed.get(entry.key()));
                            let is_news = before.is_none_or(|before| *before != error.to_string());
                            failed(&self.events, &node.name, service, at, &error, is_news);
                            self.failed.insert(entry.key().clone(), error.to_string());
                            self.metrics.health_check_failed(family);
                        }
                    }
                }
            }
        }
        for family in Family::BOTH {
            // Where node ports answer nowhere, there is nobody to ask.
            let open = self.open.iter().filter(|((_, of), open)| *of == family && !open.at.is_empty());
            self.metrics.health_checks(family, open.count());
        }
    }

    /// What is wanted and has room, the older Services first. The others are told once.
    fn admitted(&mut self, node: &NodeView) -> Wanted {
        let mut by_age: Vec<_> = self.wanted.iter().collect();
        by_age.sort_by_key(|(_, (age, _))| *age);
        let (mut admitted, mut left_out, mut room) = (Wanted::new(), BTreeSet::new(), self.room);
        for (name, (_, check)) in by_age {
            for family in self.families.iter().copied() {
                let Some(local) = check.local[family as usize] else { continue };
                let at: BTreeSet<_> = addresses(node, family).map(|ip| SocketAddr::new(ip, check.port)).collect();
                let key = (name.clone(), family);
                if let Some(rest) = room.checked_sub(at.len()) {
                    room = rest;
                    admitted.insert(key, (at, local));
                    continue;
                }
                if let Some(at) = at.first().filter(|_| !self.left_out.contains(&key)) {
                    report(&self.events, &node.name, name, *at, &self.no_room());
                    self.metrics.health_check_failed(family);
                }
                left_out.insert(key);
            }
        }
        if left_out.len() > self.left_out.len() {
            tracing::warn!(left_out = left_out.len(), "health check node ports are not opened: {}", self.no_room());
        }
        self.left_out = left_out;
        admitted
    }

    fn no_room(&self) -> String {
        format!(
            "more than {} listeners are not opened, so that files are left for other work: raise the limit of open files",
            self.room
        )
    }

    /// Closes what is wanted no more or elsewhere. All of it before anything is opened: a port may go to another Service.
    async fn close(&mut self, wanted: &Wanted) {
        let stays = |key: &Key, open: &Open| wanted.get(key).is_some_and(|(at, _)| *at == open.at);
        let going: Vec<_> =
            self.open.iter().filter(|(key, open)| !stays(key, open)).map(|(key, _)| key.clone()).collect();
        for key in going {
            if let Some(open) = self.open.remove(&key) {
                tracing::debug!(service = %key.0, at = ?open.at, "closing a health check node port");
                open.close().await;
            }
        }
    }
}

/// How many listeners there may be where the process may open so many files.
fn room_of(files: u64) -> usize {
    let room = (files.saturating_sub(OWN_FILES) / SHARE).max(files / LEAST_SHARE);
    usize::try_from(room).unwrap_or(usize::MAX)
}

/// Tells of a port that cannot be opened; the log has it once.
fn failed(events: &Events, node: &str, service: &ObjectName, at: SocketAddr, error: &io::Error, is_news: bool) {
    if is_news {
        tracing::warn!(%service, %at, %error, "cannot open a health check node port: trying again");
    }
    report(events, node, service, at, error);
}

fn report(events: &Events, node: &str, service: &ObjectName, at: SocketAddr, error: &dyn std::fmt::Display) {
    // kube-proxy's words.
    let note = format!("node {node} failed to start healthcheck \"{service}\" on port {}: {at}: {error}", at.port());
    let regarding = Regarding::Object(Kind::Service, service.clone());
    events.report(Notice::new(regarding, Reason::FailedToStartServiceHealthcheck, note));
}

/// Where node ports of a family answer; all: the wildcard.
fn addresses(node: &NodeView, family: Family) -> impl Iterator<Item = IpAddr> {
    let wildcard = match family {
        Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let (all, some) = match node.node_ports(family) {
        NodePorts::All => (Some(wildcard), None),
        NodePorts::Only(addresses) => (None, Some(addresses.iter().copied())),
    };
    all.into_iter().chain(some.into_iter().flatten())
}

impl Open {
    /// Opens at every address, or at none: then says where it failed.
    async fn all(
        at: BTreeSet<SocketAddr>,
        answer: Answer,
        connections: &Connections,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let mut open = Self { at: BTreeSet::new(), answer, servers: Vec::new() };
        for address in at {
            match bind(address) {
                Ok(listener) => {
                    open.servers.push(Server::start(listener, open.answer.clone(), connections.clone()));
                    open.at.insert(address);
                }
                Err(error) => {
                    open.close().await;
                    return Err((address, error));
                }
            }
        }
        Ok(open)
    }

    async fn close(self) {
        for server in self.servers {
            server.close().await;
        }
    }
}

/// A listener; one of IPv6 is for IPv6 alone, since IPv4 has its own.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.is_ipv6() {
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A server at one address.
#[derive(Debug)]
struct Server(JoinHandle<Infallible>);

impl Server {
    fn start(listener: TcpListener, answer: Answer, connections: Connections) -> Self {
        let routes = Router::new().fallback(ask).with_state(answer);
        Self(tokio::spawn(connections.serve(listener, routes)))
    }

    /// The address is free when this returns; connections end with their present answer.
    async fn close(self) {
        self.0.abort();
        // It was aborted, or has ended by itself.
        let _ = self.0.await;
    }
}

/// What is answered for one Service in one family.
#[derive(Clone, Debug)]
struct Answer {
    service: ObjectName,
    local: Arc<AtomicUsize>,
    health: Health,
}

/// Whatever is asked: 200 where there are local endpoints and the proxy is healthy, else 503.
async fn ask(State(answer): State<Answer>) -> Response {
    let (local, healthy) = (answer.local.load(Ordering::Relaxed), answer.health.report().healthy);
    let code = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let weight = (WEIGHT, HeaderValue::from(local));
    (code, [content_type, NOSNIFF, weight], body(&answer.service, local, healthy)).into_response()
}

/// kube-proxy's, to the last tab. Names of objects hold nothing that JSON would have to escape.
fn body(service: &ObjectName, local: usize, healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\
         \"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace, service.name
    )
}

#[cfg(test)]
mod tests;
