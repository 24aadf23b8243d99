//! The executable meaning of [`Desired`]: where would a new connection go, and why.

use std::net::{IpAddr, SocketAddr};

use crate::state::objects::{Family, Protocol};

use super::target::{Frontend, Role, Target};
use super::{Claim, Desired};

/// A new connection, as its first packet arrives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Source address.
    pub from: IpAddr,
    /// The interface that the packet comes in by; `None` for a packet of the node itself, or if it is not known.
    pub iif: Option<String>,
    /// Protocol.
    pub protocol: Protocol,
    /// Destination address and port.
    pub to: SocketAddr,
}

/// What happens to a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// The answer.
    pub outcome: Outcome,
    /// The service port that the destination belongs to.
    pub service: Option<String>,
    /// One line per decision, in order.
    pub why: Vec<String>,
}

/// The answer to a flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// One of the endpoints gets it.
    Endpoints {
        /// Any one of these may be chosen.
        endpoints: Vec<SocketAddr>,
        /// The source address is rewritten to the node's.
        masquerade: bool,
        /// The endpoint that is the source itself: if it is chosen, the source is rewritten in any case.
        hairpin: Option<SocketAddr>,
    },
    /// TCP reset, or ICMP port unreachable.
    Reject,
    /// Silence.
    Drop,
    /// Not ours: the packet goes on to whatever is at that address.
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
            return Trace { outcome: Outcome::None, service: None, why };
        }
        let address = Frontend::Address { ip, protocol: flow.protocol, port: flow.to.port() };
        let node_port = Frontend::NodePort { family, protocol: flow.protocol, port: flow.to.port() };
        let claim =
            self.holder(&address).or_else(|| self.holder(&node_port).filter(|_| self.node.answers_node_ports(ip)));
        if let Some(claim) = claim {
            why.push(format!("{} is {} of {}", flow.to, role_name(claim.role), claim.target.name));
            let outcome = self.answer(flow, claim, &mut why);
            return Trace { outcome, service: Some(claim.target.name.to_string()), why };
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
        Trace { outcome, service: None, why }
    }

    fn answer(&self, flow: &Flow, claim: Claim<'_>, why: &mut Vec<String>) -> Outcome {
        let target = claim.target;
        if claim.role == Role::LoadBalancer && !self.source_allowed(flow, target) {
            why.push(format!("{} is outside loadBalancerSourceRanges", flow.from));
            return Outcome::Drop;
        }
        if !target.endpoints.any {
            why.push("no usable endpoint anywhere in the cluster".into());
            return Outcome::Reject;
        }
        let detector = self.node.detector(target.family);
        let from_pod = detector.is_pod(flow.from, flow.iif.as_deref().filter(|_| !self.node.holds(flow.from)));
        let from_node = self.node.holds(flow.from);
        let (local, masquerade) = match claim.role {
            Role::ClusterIp => (target.internal_local, self.node.masquerade_all || (detector.is_some() && !from_pod)),
            _ if !target.external_local => (false, true),
            _ if from_pod => (false, false),
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
        why.push(format!("the source is {source}; traffic policy {policy}"));
        let list = if local { &target.endpoints.local } else { &target.endpoints.cluster };
        if list.is_empty() {
            why.push("none of them is usable, though others in the cluster are".into());
            return Outcome::Drop;
        }
        if let Some(timeout) = target.affinity {
            why.push(format!("ClientIP affinity: a known client keeps its endpoint for {} s", timeout.as_secs()));
        }
        why.push(if masquerade {
            "the source address is masqueraded".into()
        } else {
            "the source address is kept".into()
        });
        let hairpin = list.iter().find(|endpoint| endpoint.ip() == flow.from).copied();
        Outcome::Endpoints { endpoints: list.to_vec(), masquerade, hairpin }
    }

    fn source_allowed(&self, flow: &Flow, target: &Target) -> bool {
        target.source_ranges.is_empty()
            || target.source_ranges.iter().any(|range| range.contains(&flow.from))
            || (target.ranged_ips.contains(&flow.from) && target.allows_own_addresses(&self.node))
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::ClusterIp => "the ClusterIP",
        Role::LoadBalancer => "a load balancer address",
        Role::ExternalIp => "an external IP",
        Role::NodePort => "a node port",
    }
}
