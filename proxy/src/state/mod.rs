//! What is known of the cluster: compact objects, and the events that change them.

pub mod convert;
pub mod event;
pub mod objects;
