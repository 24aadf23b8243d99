//! What is said in both forms, on the screen and as plain text.

use super::data::Data;
use super::fit::{cut, width};
use super::lately::Spread;
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
    let goes_by = match (traffic.connections_per_second, traffic.counts_connections) {
        (None, false) => "--service-metrics off".to_owned(),
        (per_second, _) => format!("{} conn/s, {} active", rate(per_second), counted(traffic.active)),
    };
    let failed = sync.last.as_ref().and_then(|last| last.error.as_deref());
    let failed = failed.map(|error| format!(", THE LAST FAILED: {error}")).unwrap_or_default();
    let late = &sync.change_to_kernel;
    [
        format!("{} {} {health}", node.node, node.backend),
        format!(
            "{} services ({} degraded, {} down), {} endpoints ready, {goes_by}",
            counts.services, counts.degraded, counts.down, counts.ready,
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
    format!("{} {}", name(port), port.frontends.iter().map(address).collect::<Vec<_>>().join(" "))
}

fn name(port: &PortFacts) -> String {
    format!("{} {}", if port.name.is_empty() { "port" } else { &port.name }, port.protocol)
}

fn address(frontend: &FrontendFacts) -> String {
    match (frontend.state, &frontend.held_by) {
        (FrontendState::Served, _) => frontend.address.clone(),
        (FrontendState::Contested, Some(by)) => format!("{} (not served: {by} has it)", frontend.address),
        (FrontendState::Contested | FrontendState::LeftOut, _) => format!("{} (not served)", frontend.address),
    }
}

/// A service port in one line of so many columns: of its addresses as many as there is room for, each whole, and the number of the others.
pub fn port_in(port: &PortFacts, spread: &Spread, room: usize) -> String {
    let end = format!(", {}, {} ready{}", port.scheduler, port.counts.ready, came(port, spread));
    let addresses: Vec<_> = port.frontends.iter().map(address).collect();
    let line = |told: usize| {
        let more = if told < addresses.len() { format!(" +{} more", addresses.len() - told) } else { String::new() };
        let told: String = addresses[..told].iter().map(|address| format!(" {address}")).collect();
        format!("{}{told}{more}{end}", name(port))
    };
    // Those that fit are few: a line is short.
    let most = addresses.len().min(room);
    let fits = (0..=most).rev().map(line).find(|line| width(line) <= room);
    fits.unwrap_or_else(|| cut(&line(0), room))
}

/// How many connections came lately; nothing where nobody counts, or has not looked twice.
pub fn came(port: &PortFacts, spread: &Spread) -> String {
    match spread.over.as_secs() {
        _ if port.connections.is_none() => String::new(),
        0 => String::new(),
        seconds => format!(", {} in the last {seconds} s", spread.connections),
    }
}

/// Real share as a bar of so many characters, with the promised one as a stroke: the share of what came `lately`, or where nothing
/// came, of all that was counted.
pub fn bar(endpoint: &EndpointFacts, lately: Option<f64>, length: usize) -> String {
    let at = |share: f64| ((share * length as f64).round() as usize).min(length);
    let real = lately.or(endpoint.share).map_or(0, at);
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
        _ if endpoint.draining => "draining",
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
