//! What is known of the running proxy, in one place: `/status`, `/metrics` and `/api/v1/` tell from here and agree.
//!
//! The run loop owns everything, so whoever serves asks it through [`Facts`]. What many ask for is a [`Snapshot`]: cheap to
//! take (shared pointers, no text), the same for all who ask at one time, and made at most ten times a second while things
//! change, once a second otherwise.

mod asking;
mod endpoint_facts;
pub mod history;
mod ignored;
mod node;
mod searched;
mod service;
mod services;
mod snapshot;
mod taking;
mod trace;

pub use asking::{Ask, Asks, Facts, Told, channel};
pub use endpoint_facts::EndpointFacts;
pub use history::{History, HistoryPage, Latency, SyncFacts, SyncKind};
pub use ignored::{IgnoredFacts, IgnoredPage};
pub use node::{Counts, NodeFacts, SyncSummary, TrafficSummary};
pub use service::{FrontendFacts, FrontendRole, FrontendState, PortFacts, ServiceFacts};
pub use services::{Order, Refusal, ServicePage, ServiceRow, ServicesQuery};
pub use snapshot::{EndpointCounts, HealthFacts, HealthState, Policies, PortEntry, ServiceEntry, Snapshot};
pub use taking::Watched;
pub use trace::{Step, StepKind, TraceFacts};

#[cfg(test)]
mod tests;
