//! What is told of a packet, held against its row, what was seen of it on the other side, and the model.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::followed::ServedBy;
use super::packets::{describe, judge_verdict};
use crate::flows::{Case, Expect, Row, UPLINK};
use crate::packets::{Arrival, Fate, Origin, Protocol};

/// A packet that was sent.
pub(super) struct Sent<'a> {
    pub(super) row: &'a Row,
    pub(super) from: SocketAddr,
    to: SocketAddr,
    expect: Expect,
    allowed: Vec<SocketAddr>,
    fate: Fate,
}

impl<'a> Sent<'a> {
    pub(super) fn new(row: &'a Row, allowed: &[SocketAddr], from: SocketAddr, fate: Fate) -> Self {
        Self { row, from, to: row.to, expect: row.expect.clone(), allowed: allowed.to_vec(), fate }
    }

    /// The same after its socket was translated: a packet to the endpoint, that no Service has.
    pub(super) fn translated(self) -> Result<Self> {
        let to = self.reached().context("it reached nobody")?;
        Ok(Self { to, expect: Expect::None, ..self })
    }

    /// As it was sent.
    pub(super) fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.from, self.to)
    }

    /// The endpoint that it came to.
    pub(super) fn reached(&self) -> Option<SocketAddr> {
        match &self.fate {
            Fate::Arrived(arrival) if self.expect != Expect::None => Some(arrival.to),
            _ => None,
        }
    }

    /// What was seen of it.
    pub(super) fn fate(&self) -> String {
        describe(&self.fate)
    }
}

/// The ends of a packet that is told of, as it came.
pub(super) fn ends(line: &Value) -> Option<(SocketAddr, SocketAddr)> {
    let end = |name: &str| line[name].as_str()?.parse().ok();
    Some((end("from")?, end("to")?))
}

/// A packet.
pub(super) fn judge(case: &Case, by: ServedBy, sent: &Sent<'_>, line: &Value) -> Result<()> {
    ensure!(line["agrees"] == true && line["difference"].is_null(), "it is not as the model says");
    ensure!(line["protocol"] == sent.row.protocol.as_str(), "another protocol");
    let iif = match case.origin(sent.row) {
        Origin::Node => Value::Null,
        Origin::Cable(interface) => interface.into(),
    };
    ensure!(line["iif"] == iif, "it came in by {iif}");
    let steps = line["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(!steps.is_empty(), "no steps");
    let (outcome, end) = match &sent.expect {
        Expect::Reject => ("reject", "refused"),
        Expect::Drop => ("drop", "dropped"),
        Expect::None => ("none", "went"),
        Expect::Same { .. } | Expect::Endpoints { .. } => ("endpoints", "went"),
    };
    ensure!(line["model"]["outcome"] == outcome, "the model's outcome is not {outcome}");
    ensure!(line["end"] == end, "it has to end as {end}");
    let masquerade = match &sent.expect {
        Expect::Endpoints { masquerade, .. } | Expect::Same { masquerade } => *masquerade,
        Expect::None => return judge_untouched(sent, line, steps),
        Expect::Reject | Expect::Drop => {
            judge_verdict(&sent.expect, sent.row, sent.from, &sent.fate)?;
            judge_reason(by, line, steps)?;
            return if sent.expect == Expect::Drop { judge_first_hook(by, sent, line, steps) } else { Ok(()) };
        }
    };
    let Fate::Arrived(arrival) = &sent.fate else { bail!("{}", sent.fate()) };
    ensure!(sent.allowed.contains(&arrival.to), "it reached {}", arrival.to);
    ensure!(line["wentTo"] == arrival.to.to_string(), "it went to {}", arrival.to);
    judge_source(case, by, sent, arrival, masquerade, line, steps)?;
    judge_first_hook(by, sent, line, steps)
}

/// What no Service has.
fn judge_untouched(sent: &Sent<'_>, line: &Value, steps: &[Value]) -> Result<()> {
    let Fate::Arrived(arrival) = &sent.fate else { bail!("{}", sent.fate()) };
    ensure!((arrival.from, arrival.to) == sent.ends(), "{}", sent.fate());
    ensure!(line["wentFrom"] == line["from"] && line["wentTo"] == line["to"], "nothing of it was rewritten");
    ensure!(!masquerades(steps), "it is not masqueraded");
    Ok(())
}

/// The source that the endpoint sees is the one that is told, and it was rewritten if the row says so.
fn judge_source(
    case: &Case,
    by: ServedBy,
    sent: &Sent<'_>,
    arrival: &Arrival,
    masquerade: bool,
    line: &Value,
    steps: &[Value],
) -> Result<()> {
    // With eBPF the node's own connection to itself may come from the service, once it has left: see the backend's README.
    let loops = by != ServedBy::Nftables && arrival.at == Origin::Node && case.origin(sent.row) == Origin::Node;
    ensure!(loops || line["wentFrom"] == arrival.from.to_string(), "it went from {}", arrival.from);
    if arrival.at == Origin::Node {
        // No hook rewrites what comes to the node itself, whatever the row says.
        return Ok(());
    }
    let expected = Expect::masquerades(masquerade, sent.row.from, arrival.to);
    ensure!(masquerades(steps) == expected, "masqueraded: {expected}");
    ensure!(!expected || case.node.holds(arrival.from.ip()), "{} is not the node's", arrival.from);
    ensure!(expected || arrival.from == sent.from, "its source is kept");
    Ok(())
}

/// Whether a step says that the source is rewritten.
fn masquerades(steps: &[Value]) -> bool {
    let says = ["masquerade", "its source is rewritten where it leaves"];
    steps.iter().any(|step| says.iter().any(|says| step["reason"] == *says))
}

/// Why a packet was refused or dropped is told as the model tells it.
fn judge_reason(by: ServedBy, line: &Value, steps: &[Value]) -> Result<()> {
    let why = line["model"]["why"].as_array().and_then(|why| why.last()?.as_str()).unwrap_or_default();
    // The end of what the model says; what the rules say, and the programs.
    let reasons = [
        ("there", "no endpoint, or no such port of a ClusterIP", "a ClusterIP without this port"),
        (
            "no usable endpoint anywhere in the cluster",
            "no endpoint, or no such port of a ClusterIP",
            "no usable endpoint anywhere",
        ),
        (
            "none of them is usable, though others in the cluster are",
            "no endpoint that the policy allows",
            "no endpoint that the policy allows",
        ),
        (
            "is outside loadBalancerSourceRanges",
            "outside of loadBalancerSourceRanges",
            "outside of loadBalancerSourceRanges",
        ),
        (
            "but no Service has it",
            "an address of a ServiceCIDR that nobody has",
            "an address of a ServiceCIDR that nobody has",
        ),
    ];
    let known = reasons.iter().find(|(end, ..)| why.ends_with(end));
    let Some((_, rules, programs)) = known else { bail!("a reason that nothing is known of: {why}") };
    let reason = if by == ServedBy::Nftables { rules } else { programs };
    ensure!(steps.iter().any(|step| step["reason"] == *reason), "no step says {reason:?}");
    Ok(())
}

/// What comes by the uplink is decided about by XDP, where that is, but for SCTP and what is refused.
fn judge_first_hook(by: ServedBy, sent: &Sent<'_>, line: &Value, steps: &[Value]) -> Result<()> {
    let at_xdp = by == ServedBy::AllHooks && line["iif"] == UPLINK && sent.row.protocol != Protocol::Sctp;
    ensure!(!at_xdp || steps[0]["place"] == format!("XDP {UPLINK}"), "not told of at XDP");
    Ok(())
}

/// A socket that was translated.
pub(super) fn judge_socket(sent: &Sent<'_>, line: &Value) -> Result<()> {
    ensure!(line["agrees"] == true && line["difference"].is_null(), "it is not as the model says");
    let Fate::Arrived(arrival) = &sent.fate else { bail!("{}", sent.fate()) };
    ensure!(sent.allowed.contains(&arrival.to), "it reached {}", arrival.to);
    ensure!(line["end"] == "went" && line["wentTo"] == arrival.to.to_string(), "it went to {}", arrival.to);
    ensure!(line["steps"][0]["place"] == "socket" && line["steps"][1].is_null(), "one step, at the hook of sockets");
    ensure!(line["iif"].is_null() && line["wentFrom"].is_null(), "it has neither interface nor source");
    ensure!(
        line["model"]["outcome"] == "endpoints" && line["model"]["masquerade"].is_null(),
        "a source is not known yet"
    );
    Ok(())
}
