//! What is said in both forms, on the screen and as plain text.

use super::data::Data;
use crate::facts::{EndpointFacts, FrontendFacts, FrontendState, Order, PortFacts};

/// How the node is, in four parts: who and how, what is served and what goes by, syncs, drift.
pub fn parts(data: &Data) -> [String; 4] {
    let node = &data.node;
    let health = match (&node.problem, node.healthy) {
        (Some(problem), _) => format!("not well: {problem}"),
        (None, true) => "healthy".to_owned(),
        (None, false) => "not healthy".to_owned(),
    };
    let (counts, traffic) = (&node.counts, &node.traffic);
    let (sync, drift) = (&node.sync, &node.drift);
    let failed = sync.last.as_ref().and_then(|last| last.error.as_deref());
    let failed = failed.map(|error| format!(", THE LAST FAILED: {error}")).unwrap_or_default();
    let late = &sync.change_to_kernel;
    [
        format!("{} {} {health}", node.node, node.backend),
        format!(
            "{} services ({} degraded, {} down), {} endpoints ready, {} conn/s, {} active",
            counts.services,
            counts.degraded,
            counts.down,
            counts.ready,
            rate(traffic.connections_per_second),
            counted(traffic.active),
        ),
        format!(
            "syncs {}, change to kernel {} (99 of 100: {}), {} waiting{failed}",
            sync.succeeded,
            seconds(late.p50_seconds),
            seconds(late.p99_seconds),
            sync.pending,
        ),
        format!("drift: {} repairs of {} rows, {} differ now", drift.repairs, drift.rows, drift.unrepaired),
    ]
}

/// A service port: its name, protocol, and the addresses at which it is or should be reached.
pub fn port(port: &PortFacts) -> String {
    let name = if port.name.is_empty() { "port" } else { &port.name };
    let address = |frontend: &FrontendFacts| match (frontend.state, &frontend.held_by) {
        (FrontendState::Served, _) => frontend.address.clone(),
        (FrontendState::Contested, Some(by)) => format!("{} (not served: {by} has it)", frontend.address),
        (FrontendState::Contested | FrontendState::LeftOut, _) => format!("{} (not served)", frontend.address),
    };
    let addresses: Vec<_> = port.frontends.iter().map(address).collect();
    format!("{name} {} {}", port.protocol, addresses.join(" "))
}

/// Real share as a bar of so many characters, with the promised one as a stroke.
pub fn bar(endpoint: &EndpointFacts, length: usize) -> String {
    let at = |share: f64| ((share * length as f64).round() as usize).min(length);
    let real = endpoint.share.map_or(0, at);
    let promise = endpoint.promised_share.or(endpoint.promised_share_local);
    let promised = promise.map(|share| at(share).min(length.saturating_sub(1)));
    (0..length)
        .map(|place| match () {
            () if promised == Some(place) => '|',
            () if place < real => '█',
            () => '·',
        })
        .collect()
}

/// The promised share in percent; where both traffic policies choose and promise differently, Cluster's and Local's.
pub fn promised(endpoint: &EndpointFacts) -> String {
    match (endpoint.promised_share, endpoint.promised_share_local) {
        (Some(cluster), Some(local)) if percent(Some(cluster)) != percent(Some(local)) => {
            format!("{}/{}", percent(Some(cluster)), percent(Some(local)))
        }
        (cluster, local) => percent(cluster.or(local)),
    }
}

/// A share in percent.
pub fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

/// In one word.
pub fn state(endpoint: &EndpointFacts) -> &'static str {
    match (endpoint.terminating, endpoint.serving, endpoint.ready) {
        (true, true, _) => "ending",
        (true, false, _) => "ended",
        (false, _, true) => "ready",
        (false, ..) => "unready",
    }
}

/// The name of an order.
pub fn order_name(order: Order) -> &'static str {
    match order {
        Order::Name => "name",
        Order::Connections => "connections",
        Order::Rate => "connections/s",
        Order::Active => "active",
        Order::Endpoints => "endpoints",
        Order::Health => "health",
    }
}

/// A number, or that nobody counts.
pub fn counted(number: Option<u64>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

/// So many a second, or that nobody counts.
pub fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn seconds(value: f64) -> String {
    match value {
        _ if value < 1e-3 => format!("{:.0} µs", value * 1e6),
        _ if value < 1.0 => format!("{:.1} ms", value * 1e3),
        _ => format!("{value:.1} s"),
    }
}
