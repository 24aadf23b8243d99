//! What is known of the cluster: compact objects, the events that change them, and what has changed since the last sync.

mod changes;
mod cluster;
pub mod convert;
pub mod event;
pub mod objects;
pub mod text;

pub use changes::{Changes, TRIGGERS};
pub use cluster::State;
