//! Kubeferry replaces kube-proxy on a Kubernetes node: it turns Services and EndpointSlices into rows of kernel tables.
//!
//! The flow, one stage a module: `watch` (objects in) → `state` (pure) → `desired` (pure) → `backend` (rows, diff,
//! kernel); `run` names every stage.

pub mod args;
pub mod backend;
pub mod commands;
pub mod config;
pub mod conntrack;
pub mod desired;
pub mod events;
pub mod facts;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod health;
mod input;
pub mod leftovers;
pub mod live;
pub mod lock;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod node;
pub mod observe;
pub mod pacing;
mod portions;
pub mod proxy;
pub mod run;
pub mod running;
pub mod scheduler;
pub mod settings;
pub mod start;
pub mod state;
pub mod status;
pub mod top;
pub mod traffic;
pub mod trial;
mod udp;
pub mod version;
pub mod watch;
pub mod written;

#[cfg(test)]
#[path = "../build/commit.rs"]
mod commit;
#[cfg(test)]
mod netns;
