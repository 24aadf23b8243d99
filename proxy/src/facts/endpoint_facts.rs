//! An endpoint of a service port: what the objects say of it, what the scheduler promises it, what it got.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::EndpointCount;
use crate::desired::Candidate;
use crate::desired::target::Target;
use crate::scheduler::slots::slots;
use crate::scheduler::weights::Weights;
use crate::traffic::Counting;

/// An endpoint. Numbers of traffic are absent where they are not counted.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointFacts {
    /// Its address and port.
    pub address: String,
    /// The Node that it is on; absent: nobody says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its zone; absent: nobody says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// It is on this node.
    pub local: bool,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// It is no endpoint any more, and is told of for connections that it has yet. Nothing but traffic is known of it: the
    /// conditions are false.
    pub draining: bool,
    /// Its weight as the scheduler uses it now; 0: no new connections.
    pub weight: u16,
    /// The part of new connections that the scheduler promises it where traffic policy Cluster chooses, 0 to 1; absent: nobody
    /// chooses so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised_share: Option<f64>,
    /// The same where traffic policy Local chooses among the endpoints of this node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promised_share_local: Option<f64>,
    /// Connections that it got since it became an endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// The part of the connections of this port and family that it got, 0 to 1; absent: nobody got any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Those of them that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// Packets, both ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Their bytes, from the IP header on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// What the scheduler promises each of a list: its part of the slots, or of the weights where it looks at connections.
fn promised(target: &Target, list: &[SocketAddr], weights: &[u16]) -> BTreeMap<SocketAddr, (f64, u16)> {
    let weight = |at: usize| weights.get(at).copied().unwrap_or(1);
    let parts: Vec<f64> = if target.schedule.scheduler.counts_connections() {
        let used = |at| if target.schedule.scheduler.uses_weights() { f64::from(weight(at)) } else { 1.0 };
        (0..list.len()).map(used).collect()
    } else {
        let mut parts = vec![0.0; list.len()];
        for slot in slots(&target.schedule, list, weights) {
            if let Some(part) = parts.get_mut(slot as usize) {
                *part += 1.0;
            }
        }
        parts
    };
    let all: f64 = parts.iter().sum();
    let share = |part: f64| if all > 0.0 { part / all } else { 0.0 };
    list.iter().enumerate().map(|(at, endpoint)| (*endpoint, (share(parts[at]), weight(at)))).collect()
}

/// The endpoints of a service port, by address; those of which only connections are left among them.
pub(super) fn endpoints(
    target: &Target,
    weights: Option<&Weights>,
    members: &BTreeMap<SocketAddr, Candidate<'_>>,
    counts: &[EndpointCount],
    counting: Counting,
) -> Vec<EndpointFacts> {
    let lists = &target.endpoints;
    let cluster = promised(target, &lists.cluster, &lists.cluster_weights);
    let local = promised(target, &lists.local, &lists.local_weights);
    let uses_local = target.internal_local || (target.external_local && target.accessible);
    let uses_cluster = !target.internal_local || target.accessible;
    let counts: BTreeMap<SocketAddr, &EndpointCount> = counts.iter().map(|count| (count.endpoint, count)).collect();
    let all: u64 = counts.values().map(|count| count.opened).sum();
    let facts = |address: &SocketAddr| {
        let count = counts.get(address);
        let opened = count.map_or(0, |count| count.opened);
        let number = |counted: bool, of: fn(&EndpointCount) -> u64| counted.then(|| count.map_or(0, |count| of(count)));
        let told = match members.get(address) {
            None => EndpointFacts { draining: true, ..EndpointFacts::default() },
            Some(Candidate { endpoint, local: is_local, .. }) => {
                let promise = |list: &BTreeMap<SocketAddr, (f64, u16)>, used: bool| {
                    used.then(|| list.get(address).map_or(0.0, |(share, _)| *share))
                };
                // Whom no list has keeps the weight that the Service gives it.
                let listed = cluster.get(address).or_else(|| local.get(address)).map(|(_, weight)| *weight);
                EndpointFacts {
                    node: endpoint.node.as_deref().map(str::to_owned),
                    zone: endpoint.zone.as_deref().map(str::to_owned),
                    local: *is_local,
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                    weight: listed.unwrap_or_else(|| weights.map_or(1, |weights| weights.of(endpoint))),
                    promised_share: promise(&cluster, uses_cluster),
                    promised_share_local: promise(&local, uses_local),
                    ..EndpointFacts::default()
                }
            }
        };
        EndpointFacts {
            address: address.to_string(),
            connections: number(counting.connections, |count| count.opened),
            share: (counting.connections && all > 0).then(|| opened as f64 / all as f64),
            active: number(counting.active, |count| count.active),
            packets: number(counting.packets, |count| count.packets),
            bytes: number(counting.packets, |count| count.bytes),
            ..told
        }
    };
    members.keys().chain(counts.keys()).collect::<BTreeSet<_>>().into_iter().map(facts).collect()
}
