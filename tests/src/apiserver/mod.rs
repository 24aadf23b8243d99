//! A Kubernetes API server for tests, played from a script: real HTTP/1.1 over real sockets, with TLS and a token if
//! wanted. It lists (in pages), watches (with bookmarks, streaming lists, selectors and a history) and can be made to go
//! wrong in the ways that API servers and networks do.
//!
//! What a test applies is served as it is. What comes over HTTP (POST, PUT, merging PATCH, DELETE, the status subresource) is
//! treated as an API server does: ClusterIPs and node ports are allotted.
//!
//! It lives in the network namespace of the thread that starts it, and ends when its value is dropped.

mod admit;
mod answer;
mod fault;
mod http;
mod listen;
mod resource;
mod select;
mod state;
mod store;
mod tls;
mod watch;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

pub use fault::Fault;
pub use resource::Resource;
pub use state::{Request, Verb};

use state::Shared;
use store::Key;
use tls::{Certificates, write_kubeconfig};

/// What a client of a server with TLS has to show.
pub const TOKEN: &str = "kubeferry-test-token";

/// A running server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    authority: Option<String>,
    /// Holds the kubeconfig.
    folder: TempDir,
    kubeconfig: PathBuf,
    acceptor: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Serves plain HTTP, to everybody, on the loopback of the calling thread's namespace.
    ///
    /// # Errors
    /// No port can be bound, or no temporary folder made.
    pub fn start() -> Result<Self> {
        Self::serve(None, None)
    }

    /// Serves with TLS, to those who show [`TOKEN`].
    ///
    /// # Errors
    /// As [`ApiServer::start`]; a certificate cannot be made.
    pub fn start_tls() -> Result<Self> {
        let addresses = ["127.0.0.1", "::1", "localhost"];
        Self::serve(Some(Certificates::new(&addresses)?), None)
    }

    /// The same with a certificate, and a URL in the kubeconfig, for `localhost` alone: whoever comes to the address has to
    /// know the name.
    ///
    /// # Errors
    /// As [`ApiServer::start_tls`].
    pub fn start_tls_by_name() -> Result<Self> {
        Self::serve(Some(Certificates::new(&["localhost"])?), Some("localhost"))
    }

    fn serve(certificates: Option<Certificates>, name: Option<&str>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot bind a port of the loopback")?;
        let address = listener.local_addr()?;
        let (tls, authority) = certificates.map(|made| (made.server, made.authority_pem)).unzip();
        let token = authority.as_ref().map(|_| TOKEN);
        let folder = tempfile::Builder::new().prefix("kubeferry-test-apiserver-").tempdir()?;
        let mut url = url_of(address, authority.is_some());
        if let Some(name) = name {
            url = url.replace(&address.ip().to_string(), name);
        }
        let kubeconfig = write_kubeconfig(folder.path(), &url, authority.as_deref(), token)?;
        let shared = Arc::new(Shared::new(token.map(str::to_owned), listener.into()));
        let for_acceptor = shared.clone();
        let acceptor = Some(thread::spawn(move || listen::accept(&for_acceptor, address, tls.as_ref())));
        Ok(Self { shared, address, authority, folder, kubeconfig, acceptor })
    }

    /// Where it serves, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        url_of(self.address, self.authority.is_some())
    }

    /// The address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig with the URL, the authority and the token.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone()
    }

    /// A kubeconfig with another token, which is refused.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn kubeconfig_with_token(&self, token: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join(token);
        std::fs::create_dir_all(&folder)?;
        write_kubeconfig(&folder, &self.url(), self.authority.as_deref(), Some(token))
    }

    /// Creates or replaces the objects of a YAML or JSON text of one or many documents. Namespace, uid, creation time and
    /// resource version are filled in where they are missing; nothing is checked, so that malformed objects can be served.
    ///
    /// # Errors
    /// No YAML, a kind that is not served, no name.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        for document in serde_yaml_ng::Deserializer::from_str(manifests) {
            let object = Value::deserialize(document).context("no YAML")?;
            if !object.is_null() {
                let text = object.to_string();
                self.shared.change(|state| state.store.apply(object)).with_context(|| text)?;
            }
        }
        Ok(())
    }

    /// The same with one object that is there already, which may be large.
    ///
    /// # Errors
    /// As [`ApiServer::apply`].
    pub fn put(&self, object: Value) -> Result<()> {
        self.shared.change(|state| state.store.apply(object)).map(drop)
    }

    /// Deletes an object; watches are told. The namespace of a kind without is of no matter.
    ///
    /// # Errors
    /// There is no such object.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        self.remove(resource, namespace, name, false)
    }

    /// Deletes an object without telling any watch, as if nobody had been connected: only a list shows it.
    ///
    /// # Errors
    /// There is no such object.
    pub fn vanish(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        self.remove(resource, namespace, name, true)
    }

    fn remove(&self, resource: Resource, namespace: &str, name: &str, silent: bool) -> Result<()> {
        let key = Key::new(resource, namespace, name);
        ensure!(self.shared.change(|state| state.store.delete(&key, silent)), "there is no {key:?}");
        Ok(())
    }

    /// The present version: grows with each change.
    pub fn version(&self) -> u64 {
        self.shared.lock().store.revision()
    }

    /// Has watches tell, out of order, how an object was at a version that is over. The objects stay as they are.
    ///
    /// # Errors
    /// The history has no such object at that version.
    pub fn replay(&self, resource: Resource, namespace: &str, name: &str, version: u64) -> Result<()> {
        let key = Key::new(resource, namespace, name);
        ensure!(self.shared.change(|state| state.store.replay(&key, version)), "there was no {key:?} at {version}");
        Ok(())
    }

    /// The objects of a kind, by namespace and name.
    pub fn objects(&self, resource: Resource) -> Vec<Value> {
        self.shared.lock().store.all(resource).map(|object| Value::clone(object)).collect()
    }

    /// Makes something go wrong, for requests about any kind but Events.
    pub fn fault(&self, fault: Fault) {
        self.change_fault(None, fault);
    }

    /// Makes requests about one kind go wrong.
    pub fn fault_on(&self, resource: Resource, fault: Fault) {
        self.change_fault(Some(resource), fault);
    }

    fn change_fault(&self, resource: Option<Resource>, fault: Fault) {
        self.shared.change(|state| match fault {
            Fault::CutConnections => state.cut(),
            Fault::Gone410 => state.store.compact(true),
            Fault::Slow(delay) => state.delay = delay,
            Fault::Down => state.go_down(),
            Fault::Up => state.is_up = true,
            other => state.faults.add(resource, other),
        });
        let mut state = self.shared.lock();
        while state.is_up != state.listener.is_some() {
            state = self.shared.wait(state, listen::AGAIN);
        }
    }

    /// Requests that are still to go wrong.
    pub fn faults_left(&self) -> usize {
        self.shared.lock().faults.left()
    }

    /// Takes back every fault of requests and the slowness.
    pub fn no_faults(&self) {
        self.shared.change(|state| {
            state.faults.clear();
            state.delay = Duration::ZERO;
        });
    }

    /// Lists of a kind wait until [`ApiServer::release`]. Streaming lists do not.
    pub fn hold(&self, resource: Resource) {
        self.shared.change(|state| state.held.insert(resource));
    }

    /// Lists of a kind are answered.
    pub fn release(&self, resource: Resource) {
        self.shared.change(|state| state.held.remove(&resource));
    }

    /// Forgets the history: no watch can begin from before the present version.
    pub fn compact(&self) {
        self.shared.change(|state| state.store.compact(false));
    }

    /// Tells of a version that is gone inside the watch, as an ERROR event, instead of by code 410.
    pub fn tell_gone_inside(&self, inside: bool) {
        self.shared.change(|state| state.gone_inside = inside);
    }

    /// Serves a kind (as at the beginning) or answers 404 for it.
    pub fn serve_kind(&self, resource: Resource, serves: bool) {
        self.shared.change(|state| match serves {
            true => state.absent.remove(&resource),
            false => state.absent.insert(resource),
        });
    }

    /// Allows streaming lists (as at the beginning) or refuses them, as servers without the feature do.
    pub fn allow_streaming_lists(&self, allow: bool) {
        self.shared.change(|state| state.streaming_lists = allow);
    }

    /// The requests about objects so far.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.lock().requests.clone()
    }

    /// Every request so far, also those about what is not served here: method, path, and whether it is a watch.
    pub fn received(&self) -> BTreeSet<(String, String, bool)> {
        self.shared.lock().received.clone()
    }

    /// How many requests of a sort there were.
    pub fn count(&self, verb: Verb, resource: Resource) -> usize {
        let state = self.shared.lock();
        state.requests.iter().filter(|request| request.verb == verb && request.resource == resource).count()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.has_ended = true;
            state.go_down();
        });
        if let Some(acceptor) = self.acceptor.take() {
            // A panic of the acceptor has been printed.
            drop(acceptor.join());
        }
    }
}

fn url_of(address: SocketAddr, tls: bool) -> String {
    format!("{}://{address}", if tls { "https" } else { "http" })
}
