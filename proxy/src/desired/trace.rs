//! The executable meaning of [`Desired`]: where would a new connection go, and why.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;

use crate::scheduler::slots::slots;
use crate::scheduler::{HashKey, Schedule, Scheduler, hash};
use crate::state::objects::{Family, Protocol};

use super::target::{Frontend, Role, Target};
use super::{Claim, Desired};

/// A new connection, as its first packet arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Source address; unspecified: a socket that connects, and has none yet.
    pub from: IpAddr,
    /// Source port, where it is known: some hashes take it in.
    pub from_port: Option<u16>,
    /// The interface that the packet comes in by; `None` for a packet of the node itself, or if it is not known.
    pub iif: Option<String>,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination address and port.
    pub to: SocketAddr,
}

impl Flow {
    /// Whether the source is known.
    pub fn has_source(&self) -> bool {
        !self.from.is_unspecified()
    }
}

/// What happens to a flow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trace {
    /// The answer.
    pub outcome: Outcome,
    /// The service port that the destination belongs to.
    pub service: Option<String>,
    /// How an endpoint is chosen, where one is.
    pub schedule: Option<Schedule>,
    /// The candidates with their weights, as the scheduler uses them; empty: all are 1.
    pub weights: Vec<(SocketAddr, u16)>,
    /// Endpoints beside those of the outcome that it may go to: with ClientIP affinity a known client keeps its own, and of a source
    /// that is not known it is not known which of the lists counts.
    pub also: Vec<SocketAddr>,
    /// The source is not known: whether it is rewritten is not said.
    pub sourceless: bool,
    /// When rows for this destination were last written, if that is not long ago: only a running proxy knows.
    pub changed: Option<Timestamp>,
    /// One line per decision, in order.
    pub why: Vec<String>,
}

impl Trace {
    fn without_endpoints(outcome: Outcome, why: Vec<String>) -> Self {
        Self { outcome, why, ..Self::default() }
    }
}

/// The answer to a flow.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Outcome {
    /// One of the endpoints gets it.
    Endpoints {
        /// Any one of these may be chosen; with a scheduler that hashes, the one that is.
        endpoints: Vec<SocketAddr>,
        /// The source address is rewritten to the node's, whichever of them is chosen.
        masquerade: bool,
        /// The endpoint that is the source itself: if it is chosen, the source is rewritten in any case.
        hairpin: Option<SocketAddr>,
    },
    /// TCP reset, or ICMP port unreachable.
    Reject,
    /// Silence.
    Drop,
    /// Not ours: the packet goes on to whatever is at that address.
    #[default]
    None,
}

impl Desired {
    /// Says where a new connection goes.
    pub fn trace(&self, flow: &Flow) -> Trace {
        let mut why = Vec::new();
        let ip = flow.to.ip();
        let family = Family::of(ip);
        if Family::of(flow.from) != family {
            why.push("source and destination are not of one IP family".into());
            return Trace::without_endpoints(Outcome::None, why);
        }
        let address = Frontend::Address { ip, protocol: flow.protocol, port: flow.to.port() };
        let node_port = Frontend::NodePort { family, protocol: flow.protocol, port: flow.to.port() };
        let claim =
            self.holder(&address).or_else(|| self.holder(&node_port).filter(|_| self.node.answers_node_ports(ip)));
        if let Some(claim) = claim {
            why.push(format!("{} is {} of {}", flow.to, role_name(claim.role), claim.target.name));
            return self.answer(flow, claim, why);
        }
        let outcome = if self.is_cluster_ip(ip) {
            why.push(format!(
                "{ip} is a ClusterIP, but no Service has {} port {} there",
                flow.protocol,
                flow.to.port()
            ));
            Outcome::Reject
        } else if let Some(cidr) =
            self.service_cidrs.iter().find(|cidr| cidr.contains(&ip)).filter(|_| !self.node.holds(ip))
        {
            why.push(format!("{ip} lies in the ServiceCIDR {cidr}, but no Service has it"));
            Outcome::Drop
        } else {
            why.push(format!("no Service has {} {}", flow.protocol, flow.to));
            Outcome::None
        };
        Trace::without_endpoints(outcome, why)
    }

    /// Whether a packet to this address and port is a Service's, wherever it comes from: translated, refused or dropped.
    pub fn is_ours(&self, protocol: Protocol, to: SocketAddr) -> bool {
        let (ip, port) = (to.ip(), to.port());
        let node_port = Frontend::NodePort { family: Family::of(ip), protocol, port };
        // Nearly no endpoint has an address that is claimed.
        let address = self.frontends.claimed_at(ip).next().is_some()
            && (self.is_cluster_ip(ip) || self.holder(&Frontend::Address { ip, protocol, port }).is_some());
        address
            || (self.node.answers_node_ports(ip) && self.holder(&node_port).is_some())
            || (!self.node.holds(ip) && self.service_cidrs.iter().any(|cidr| cidr.contains(&ip)))
    }

    fn answer(&self, flow: &Flow, claim: Claim<'_>, mut why: Vec<String>) -> Trace {
        let target = claim.target;
        let sourceless = !flow.has_source();
        let mut trace = Trace { service: Some(target.name.to_string()), sourceless, ..Trace::default() };
        let (list, weights, masquerade) = match self.list(flow, claim, &mut why) {
            Ok(chosen) => chosen,
            Err(outcome) => return Trace { outcome, why, ..trace },
        };
        if let Some(timeout) = target.affinity {
            why.push(format!("ClientIP affinity: a known client keeps its endpoint for {} s", timeout.as_secs()));
        }
        trace.weights = list.iter().copied().zip(weights.iter().copied()).collect();
        let endpoints = choose(flow, target, list, weights, &mut why);
        let others: Vec<SocketAddr> = match (sourceless, target.affinity) {
            (true, _) => target.endpoints.used().collect(),
            (false, Some(_)) => list.to_vec(),
            (false, None) => Vec::new(),
        };
        trace.also = others.into_iter().filter(|endpoint| !endpoints.contains(endpoint)).collect();
        trace.also.sort();
        trace.also.dedup();
        if sourceless {
            let outcome = Outcome::Endpoints { endpoints, masquerade: false, hairpin: None };
            return Trace { outcome, why, schedule: Some(target.schedule), ..trace };
        }
        let itself: Vec<SocketAddr> = endpoints.iter().filter(|endpoint| endpoint.ip() == flow.from).copied().collect();
        let always = masquerade || itself.len() == endpoints.len();
        why.push(if masquerade {
            "the source address is masqueraded".into()
        } else if always {
            "the source address is masqueraded, as the endpoint is the source itself".into()
        } else if itself.is_empty() {
            "the source address is kept".into()
        } else {
            "the source address is kept, unless the endpoint is the source itself".into()
        });
        let (hairpin, masquerade) = (itself.first().copied(), always);
        let outcome = Outcome::Endpoints { endpoints, masquerade, hairpin };
        Trace { outcome, why, schedule: Some(target.schedule), ..trace }
    }

    /// The candidates, their weights, and whether the source is masqueraded; or why there are none.
    fn list<'a>(
        &self,
        flow: &Flow,
        claim: Claim<'a>,
        why: &mut Vec<String>,
    ) -> Result<(&'a [SocketAddr], &'a [u16], bool), Outcome> {
        let target = claim.target;
        if claim.role == Role::LoadBalancer && flow.has_source() && !self.source_allowed(flow, target) {
            why.push(format!("{} is outside loadBalancerSourceRanges", flow.from));
            return Err(Outcome::Drop);
        }
        let idle: Vec<String> = target.endpoints.idle.iter().map(ToString::to_string).collect();
        if !idle.is_empty() {
            why.push(format!("no new connections for those of weight 0: {}", idle.join(" ")));
        }
        if !target.endpoints.any {
            why.push("no usable endpoint anywhere in the cluster".into());
            return Err(Outcome::Reject);
        }
        let detector = self.node.detector(target.family);
        let from_pod = detector.is_pod(flow.from, flow.iif.as_deref().filter(|_| !self.node.holds(flow.from)));
        let from_node = self.node.holds(flow.from);
        let (local, masquerade) = match claim.role {
            Role::ClusterIp => (target.internal_local, self.node.masquerade_all || (detector.is_some() && !from_pod)),
            _ if !target.external_local => (false, true),
            // A socket of this node or of a pod here.
            _ if from_pod || !flow.has_source() => (false, false),
            _ if from_node => (false, true),
            _ => (true, false),
        };
        let policy = if local { "Local: endpoints of this node" } else { "Cluster: endpoints of the cluster" };
        let source = if from_pod {
            "a pod"
        } else if from_node {
            "this node"
        } else {
            "elsewhere"
        };
        why.push(match flow.has_source() {
            true => format!("the source is {source}; traffic policy {policy}"),
            false => format!("traffic policy {policy}"),
        });
        let lists = &target.endpoints;
        let (list, weights) =
            if local { (&lists.local, &lists.local_weights) } else { (&lists.cluster, &lists.cluster_weights) };
        if list.is_empty() {
            why.push("none of them is usable, though others in the cluster are".into());
            return Err(Outcome::Drop);
        }
        Ok((list, weights, masquerade))
    }

    fn source_allowed(&self, flow: &Flow, target: &Target) -> bool {
        target.source_ranges.is_empty()
            || target.source_ranges.iter().any(|range| range.contains(&flow.from))
            || (target.ranged_ips.contains(&flow.from) && target.allows_own_addresses(&self.node))
    }
}

/// Whom the scheduler gives a new connection: the one that the hash says, or any.
fn choose(
    flow: &Flow,
    target: &Target,
    list: &[SocketAddr],
    weights: &[u16],
    why: &mut Vec<String>,
) -> Vec<SocketAddr> {
    let schedule = &target.schedule;
    let Schedule { scheduler, hash_key, table_size } = *schedule;
    let hashes_port = scheduler != Scheduler::Dh && hash_key == HashKey::SourceAndPort;
    let mut text = format!("scheduler {scheduler}");
    match scheduler {
        Scheduler::Dh => text += ", by the destination address",
        Scheduler::Sh => text += &format!(", by the {hash_key}"),
        Scheduler::Mh => text += &format!(", by the {hash_key} in a table of {table_size}"),
        _ => {}
    }
    if !weights.is_empty() {
        let all: Vec<_> = list.iter().zip(weights).map(|(endpoint, weight)| format!("{endpoint}={weight}")).collect();
        text += &format!("; weights {}", all.join(" "));
    }
    why.push(text);
    if !scheduler.hashes() {
        return list.to_vec();
    }
    if !flow.has_source() && scheduler != Scheduler::Dh {
        why.push("a socket that connects has no source yet: any of them".into());
        return list.to_vec();
    }
    let Some(port) = flow.from_port.or((!hashes_port).then_some(0)) else {
        why.push("which endpoint gets it depends on the source port: say it (--from IP:PORT) to see the one".into());
        return list.to_vec();
    };
    let slots = slots(schedule, list, weights);
    let slot = hash::slot(schedule, SocketAddr::new(flow.from, port), flow.to.ip(), slots.len());
    let one = slot.and_then(|slot| Some((slot, *list.get(*slots.get(slot)? as usize)?)));
    let Some((slot, endpoint)) = one else { return list.to_vec() };
    let whom = if target.affinity.is_some() { ", to a client that is not known" } else { "" };
    why.push(format!("the hash gives slot {slot} of {}: {endpoint}{whom}", slots.len()));
    vec![endpoint]
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::ClusterIp => "the ClusterIP",
        Role::LoadBalancer => "a load balancer address",
        Role::ExternalIp => "an external IP",
        Role::NodePort => "a node port",
    }
}
