//! The model: what `kubeferry trace` says of each row.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use kubeferry::desired::Desired;
use kubeferry::desired::target::Target;
use kubeferry::desired::trace::{Flow, Outcome, Trace};
use kubeferry::state::objects::Family;
use kubeferry::watch;
use serde::Deserialize;
use serde_json::json;

use super::live::{flow, fresh, settings};
use super::{Findings, Last, Source, named};
use crate::flows::{Expect, Row, Step};
use crate::netns::output;

/// One line of `kubeferry trace --stdin --output json`.
#[derive(Debug, Deserialize)]
pub struct Answer {
    /// `endpoints`, `reject`, `drop` or `none`.
    pub outcome: String,
    /// Where it may go.
    #[serde(default)]
    pub endpoints: Vec<SocketAddr>,
    /// Towards an endpoint other than the source itself.
    pub masquerade: bool,
    /// The endpoint that is the source itself.
    #[serde(default)]
    pub hairpin: Option<SocketAddr>,
    /// `namespace/name:port`, empty where none matched.
    pub service: String,
}

impl Answer {
    /// The answer as the right-hand side of a row; `affinity` where the service asks for it.
    pub fn expectation(&self, row: &Row, affinity: bool) -> Expect {
        match self.outcome.as_str() {
            "reject" => Expect::Reject,
            "drop" => Expect::Drop,
            "none" => Expect::None,
            _ => {
                let mut endpoints = self.endpoints.clone();
                endpoints.sort();
                // Where the source is the only endpoint, the hairpin is masqueraded and nothing else is said.
                let others = endpoints.iter().any(|endpoint| endpoint.ip() != row.from);
                Expect::Endpoints { endpoints, masquerade: self.masquerade && others, affinity }
            }
        }
    }
}

/// Asks the model about every row of a step, without a process of its own.
///
/// # Errors
/// The objects cannot be read.
pub fn answers(source: &Source, step: &Step) -> Result<Vec<Answer>> {
    let desired = desired(source)?;
    Ok(step.rows.iter().map(|row| Answer::from(desired.trace(&flow(row)))).collect())
}

/// Of every row of a step, whether the Service that it is to has an endpoint where a Service answers, too.
///
/// # Errors
/// The objects cannot be read.
pub(super) fn nested(source: &Source, step: &Step) -> Result<Vec<bool>> {
    let desired = desired(source)?;
    let is_nested = |row: &Row| {
        let to = flow(row);
        let service = desired.trace(&to).service;
        let of_row = |target: &Target| {
            service.as_ref() == Some(&target.name.to_string())
                && target.name.protocol == to.protocol
                && target.family == Family::of(to.to.ip())
        };
        let endpoints = desired
            .targets()
            .filter(|(_, target, _)| of_row(target))
            .flat_map(|(_, target, _)| target.endpoints.used());
        endpoints
            .map(|endpoint| Flow { to: endpoint, ..to.clone() })
            .any(|to| desired.trace(&to).outcome != Outcome::None)
    };
    Ok(step.rows.iter().map(is_nested).collect())
}

/// Has every row of a step expect what the model says. A source port is left out where no one endpoint
/// follows from it, as in the flow table.
pub(super) fn expect(source: &Source, step: &mut Step) -> Result<()> {
    let desired = desired(source)?;
    let sticky = |service: &str| {
        desired.targets().any(|(_, target, _)| target.affinity.is_some() && target.name.to_string() == service)
    };
    for row in &mut step.rows {
        let answer = Answer::from(desired.trace(&flow(row)));
        row.expect = answer.expectation(row, sticky(&answer.service));
        let one = matches!(&row.expect, Expect::Endpoints { endpoints, affinity: false, .. } if endpoints.len() == 1);
        if !one && row.from_port.take().is_some() {
            let answer = Answer::from(desired.trace(&flow(row)));
            row.expect = answer.expectation(row, sticky(&answer.service));
        }
    }
    Ok(())
}

fn desired(source: &Source) -> Result<Desired> {
    let settings = settings(source.offline("trace")?.arg("--stdin"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(fresh(&settings, runtime.block_on(watch::load_once(&settings))?, &[]))
}

impl From<Trace> for Answer {
    fn from(trace: Trace) -> Self {
        let service = trace.service.unwrap_or_default();
        let without = |outcome: &str| Self {
            outcome: outcome.to_owned(),
            service,
            endpoints: Vec::new(),
            masquerade: false,
            hairpin: None,
        };
        match trace.outcome {
            Outcome::Endpoints { endpoints, masquerade, hairpin } => {
                Self { endpoints, masquerade, hairpin, ..without("endpoints") }
            }
            Outcome::Reject => without("reject"),
            Outcome::Drop => without("drop"),
            Outcome::None => without("none"),
        }
    }
}

/// Asks the model about every row of a step.
pub(super) fn run(source: &Source, step: &Step, last: &mut Last) -> Result<Findings> {
    let questions: String = step.rows.iter().map(|row| format!("{}\n", question(row))).collect();
    let output = output(source.offline("trace")?.args(["--stdin", "--output", "json"]), &questions)?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || stdout.lines().count() != step.rows.len() {
        let (answers, rows) = (stdout.lines().count(), step.rows.len());
        let stderr = String::from_utf8_lossy(&output.stderr);
        let says = format!("{}, {answers} answers to {rows} rows, stderr:\n{}", output.status, stderr.trim_end());
        return Ok(vec![("kubeferry trace".into(), says)]);
    }
    let mut findings = Findings::new();
    for (row, line) in step.rows.iter().zip(stdout.lines()) {
        let right = serde_json::from_str(line).context("not the JSON of a trace").and_then(|answer: Answer| {
            let before = last.get(&row.from).cloned().unwrap_or_default();
            let right = judge(row, &answer, &before);
            if !answer.endpoints.is_empty() {
                last.insert(row.from, answer.endpoints);
            }
            right
        });
        findings.extend(right.err().map(|error| (named(row), format!("{line}\n{error:#}"))));
    }
    Ok(findings)
}

fn question(row: &Row) -> serde_json::Value {
    let from = row.from_port.map_or(row.from.to_string(), |port| SocketAddr::new(row.from, port).to_string());
    let mut question = json!({"from": from, "to": format!("{}:{}", row.protocol, row.to)});
    if let Some(iif) = &row.iif {
        question["iif"] = json!(iif);
    }
    question
}

fn judge(row: &Row, answer: &Answer, before: &[SocketAddr]) -> Result<()> {
    let outcome = match row.expect {
        Expect::Endpoints { .. } | Expect::Same { .. } => "endpoints",
        Expect::Reject => "reject",
        Expect::Drop => "drop",
        Expect::None => "none",
    };
    ensure!(answer.outcome == outcome, "the outcome is not {outcome}");
    let masquerade = match &row.expect {
        Expect::Endpoints { endpoints, masquerade, .. } => {
            let mut said = answer.endpoints.clone();
            said.sort();
            ensure!(said == *endpoints, "the endpoints differ");
            *masquerade
        }
        Expect::Same { masquerade } => {
            let common = answer.endpoints.iter().any(|endpoint| before.contains(endpoint));
            ensure!(common, "none of them could be the endpoint of the row before");
            *masquerade
        }
        Expect::Reject | Expect::Drop | Expect::None => {
            ensure!(!answer.masquerade, "a packet without an endpoint is never masqueraded");
            ensure!(answer.outcome != "none" || answer.service.is_empty(), "`none` names no service");
            return Ok(());
        }
    };
    ensure!(!answer.service.is_empty(), "the service is not named");
    for endpoint in &answer.endpoints {
        let expected = Expect::masquerades(masquerade, row.from, *endpoint);
        // Two endpoints may share the source's address; the answer names one of them.
        let hairpin = answer.hairpin.is_some_and(|hairpin| hairpin.ip() == endpoint.ip());
        let said = answer.masquerade || hairpin;
        ensure!(said == expected, "masquerade towards {endpoint} is {said}");
    }
    Ok(())
}
