//! Where a packet would go, as `kubeferry trace --output json` and `/api/v1/trace` tell it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::desired::trace::{Flow, Outcome, Trace};
use crate::scheduler::Scheduler;

/// The model's answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TraceFacts {
    /// `endpoints`, `reject`, `drop`, or `none`: no Service has the destination.
    pub outcome: String,
    /// Whom the connection may go to; with a scheduler that hashes, whom it does.
    pub endpoints: Vec<String>,
    /// Whom it may go to beside these: with ClientIP affinity a known client keeps its endpoint, whatever the scheduler says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// The source address is rewritten to the node's; absent: the source is not known (`0.0.0.0` or `::`, a socket that connects).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade: Option<bool>,
    /// The endpoint that is the source itself: if it is chosen, the source is rewritten in any case.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hairpin: Option<String>,
    /// The service port, `namespace/name:port`; empty: none.
    pub service: String,
    /// How an endpoint is chosen, where one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// What `sh` and `mh` hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_key: Option<String>,
    /// The candidates with their weights; absent: all are 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, u16>,
    /// When rows for this destination were last written, if that was within the last 10 s: packets of then may have
    /// met others. Only `/api/v1/trace` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<Timestamp>,
    /// One sentence for each decision, in order.
    pub why: Vec<String>,
    /// The path from the packet to the outcome; only `/api/v1/trace` has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

/// A step of the path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What it is.
    pub kind: StepKind,
    /// What happens, as a sentence.
    pub text: String,
    /// The addresses that are meant: of a packet source and destination, of an endpoint its own.
    pub addresses: Vec<String>,
}

/// What a step of a path is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum StepKind {
    /// The packet as it comes.
    Packet,
    /// A decision.
    Decision,
    /// An endpoint that may get it.
    Endpoint,
    /// What becomes of it.
    Outcome,
}

impl From<&Trace> for TraceFacts {
    fn from(trace: &Trace) -> Self {
        let scheduler = trace.schedule.map(|schedule| schedule.scheduler);
        let takes_key = matches!(scheduler, Some(Scheduler::Sh | Scheduler::Mh));
        let hash_key = trace.schedule.filter(|_| takes_key).map(|schedule| schedule.hash_key.name());
        let mut facts = Self {
            outcome: "none".to_owned(),
            endpoints: Vec::new(),
            also: trace.also.iter().map(ToString::to_string).collect(),
            masquerade: (!trace.sourceless).then_some(false),
            hairpin: None,
            service: trace.service.clone().unwrap_or_default(),
            scheduler: scheduler.map(|scheduler| scheduler.name().to_owned()),
            hash_key: hash_key.map(str::to_owned),
            weights: trace.weights.iter().map(|(endpoint, weight)| (endpoint.to_string(), *weight)).collect(),
            changed: trace.changed,
            why: trace.why.clone(),
            steps: Vec::new(),
        };
        match &trace.outcome {
            Outcome::Endpoints { endpoints, masquerade, hairpin } => {
                facts.outcome = "endpoints".to_owned();
                facts.endpoints = endpoints.iter().map(ToString::to_string).collect();
                facts.masquerade = facts.masquerade.map(|_| *masquerade);
                facts.hairpin = hairpin.map(|endpoint| endpoint.to_string());
            }
            Outcome::Reject => facts.outcome = "reject".to_owned(),
            Outcome::Drop => facts.outcome = "drop".to_owned(),
            Outcome::None => {}
        }
        facts
    }
}

impl TraceFacts {
    /// The answer with the path of this packet.
    pub fn with_steps(flow: &Flow, trace: &Trace) -> Self {
        let mut facts = Self::from(trace);
        let from = match flow.from_port {
            _ if !flow.has_source() => "a socket here".to_owned(),
            Some(port) => SocketAddr::new(flow.from, port).to_string(),
            None => flow.from.to_string(),
        };
        let step = |kind, text: String, addresses: Vec<String>| Step { kind, text, addresses };
        let by = flow.iif.as_ref().map(|iif| format!(", in by {iif}")).unwrap_or_default();
        let packet = format!("{from} opens {} {}{by}", flow.protocol, flow.to);
        facts.steps.push(step(StepKind::Packet, packet, vec![from, flow.to.to_string()]));
        let decisions = facts.why.iter().map(|why| step(StepKind::Decision, why.clone(), Vec::new()));
        facts.steps.extend(decisions.collect::<Vec<_>>());
        let one = facts.endpoints.len() == 1;
        for endpoint in &facts.endpoints {
            let text = match (one, facts.also.is_empty()) {
                (true, true) => format!("{endpoint} gets it"),
                (true, false) => format!("{endpoint} gets it, unless the client is known"),
                (false, _) => format!("{endpoint} may get it"),
            };
            facts.steps.push(step(StepKind::Endpoint, text, vec![endpoint.clone()]));
        }
        let outcome = match facts.outcome.as_str() {
            "endpoints" => match facts.masquerade {
                Some(true) => "the endpoint sees an address of this node",
                Some(false) => "the endpoint sees the source address",
                None => "what the endpoint sees as the source is not known yet",
            },
            "reject" if flow.protocol == crate::state::objects::Protocol::Tcp => "refused: the client gets a TCP reset",
            "reject" => "refused: the client gets ICMP port unreachable",
            "drop" => "dropped: the client hears nothing",
            _ => "not ours: the packet goes on to whatever is at that address",
        };
        facts.steps.push(step(StepKind::Outcome, outcome.to_owned(), Vec::new()));
        facts
    }
}
