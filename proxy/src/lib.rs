//! Kubeferry replaces kube-proxy on a Kubernetes node: it turns Services and EndpointSlices into rows of kernel tables.
//!
//! The flow, one stage a module: `watch` (objects in) → `state` (pure) → `desired` (pure) → `backend` (rows, diff, kernel).

pub mod args;
pub mod backend;
pub mod config;
pub mod desired;
pub mod log;
pub mod settings;
pub mod state;

#[cfg(test)]
mod netns;
