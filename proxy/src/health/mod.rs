//! Whether the proxy is healthy, and the HTTP servers that tell it: `/healthz` and `/livez` at the health address,
//! `/metrics` and `/status` at the metrics address, and what load balancers ask at health check node ports.

pub mod api;
pub mod configz;
mod connections;
mod debugging;
mod host;
mod large;
pub mod node_ports;
mod page;
pub mod routes;
pub mod server;
mod shared;
pub mod state;
mod zpages;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::state::objects::{Family, Node};
use state::{HealthState, Now, Report};

/// The health of the running proxy, shared between its stages and the servers. Clones are the same health.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<HealthState>>);

impl Health {
    /// Healthy, with nothing queued; `timeout` is how long a change may wait, twice the sync period as in kube-proxy.
    /// `needs_node`: until the Node object is known the node is not eligible, as in kube-proxy; without it (a folder of
    /// manifests need not hold a Node) it is.
    pub fn new(timeout: Duration, needs_node: bool) -> Self {
        Self(Arc::new(Mutex::new(HealthState::new(timeout, needs_node, Now::read()))))
    }

    /// Another time that a change may wait.
    pub fn change(&self, timeout: Duration) {
        self.with(|state| state.change(timeout));
    }

    /// The run loop goes on; to be said every few seconds.
    pub fn beat(&self) {
        self.with(|state| state.beat(Now::read()));
    }

    /// A change waits for a sync of these families.
    pub fn queued(&self, families: &[Family]) {
        self.with(|state| families.iter().for_each(|family| state.queued(*family, Now::read())));
    }

    /// A sync of these families succeeded and left nothing waiting.
    pub fn updated(&self, families: &[Family]) {
        self.with(|state| families.iter().for_each(|family| state.updated(*family, Now::read())));
    }

    /// What is in the kernel cannot be looked at, or not be repaired.
    pub fn unrepaired(&self) {
        self.with(|state| state.unrepaired(Now::read()));
    }

    /// All of the kernel could be looked at, and repaired.
    pub fn repaired(&self) {
        self.with(HealthState::repaired);
    }

    /// Our Node as it is now; `None`: it is gone.
    pub fn node(&self, node: Option<&Node>) {
        self.with(|state| state.node(node));
    }

    /// The health as it is now.
    pub fn report(&self) -> Report {
        self.with(|state| state.report(Now::read()))
    }

    fn with<T>(&self, run: impl FnOnce(&mut HealthState) -> T) -> T {
        // A panic elsewhere leaves this small state whole.
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
