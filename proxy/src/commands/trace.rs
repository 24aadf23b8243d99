//! `kubeferry trace`: where a new connection would go, and why.

use std::io::BufRead;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::args::{TraceArgs, TraceOutput};
use crate::commands::{offline, output};
use crate::desired::Desired;
use crate::desired::trace::{Flow, Outcome, Trace};
use crate::settings::Settings;
use crate::state::convert::sloppy::parse_ip;

/// A flow as a line of `--stdin` gives it.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Asked {
    from: String,
    to: String,
    #[serde(default)]
    iif: Option<String>,
}

/// The answer as `--output json` gives it.
#[derive(Serialize, Debug)]
struct Answer<'a> {
    outcome: &'static str,
    endpoints: Vec<String>,
    masquerade: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hairpin: Option<String>,
    service: &'a str,
    why: &'a [String],
}

/// Answers the flow of the command line, or each line of standard input.
///
/// # Errors
/// The source cannot be read; a flow cannot be understood (of many, the others are answered first).
pub async fn trace(args: &TraceArgs, settings: &Settings) -> anyhow::Result<()> {
    let desired = offline::desired(settings).await?;
    if let (Some(from), Some(to)) = (args.from, &args.to) {
        let flow = flow(from, to, args.iif.clone())?;
        return Ok(output::say(&format!("{}\n", answer(&desired, &flow, args.output)?))?);
    }
    let mut wrong = 0;
    for (number, line) in std::io::stdin().lock().split(b'\n').enumerate() {
        let line = line.context("cannot read standard input")?;
        let answer = match asked(&line) {
            Ok(None) => continue,
            Ok(Some(flow)) => answer(&desired, &flow, args.output)?,
            Err(error) => {
                wrong += 1;
                serde_json::json!({ "error": format!("line {}: {error:#}", number + 1) }).to_string()
            }
        };
        output::say(&format!("{answer}\n"))?;
    }
    anyhow::ensure!(
        wrong == 0,
        "{wrong} lines were no flows; one is {{\"from\":\"10.0.0.2\",\"to\":\"tcp:172.30.0.41:80\"}}"
    );
    Ok(())
}

/// The flow of one line; `None` if nothing is on it.
fn asked(line: &[u8]) -> anyhow::Result<Option<Flow>> {
    let line = std::str::from_utf8(line)?;
    if line.trim().is_empty() {
        return Ok(None);
    }
    let asked: Asked = serde_json::from_str(line)?;
    let from = parse_ip(&asked.from).with_context(|| format!("{:?} is no source: write an IP address", asked.from))?;
    flow(from, &asked.to, asked.iif).map(Some)
}

/// `IP:PORT`, IPv6 in brackets, with addresses as [`parse_ip`] reads them.
fn socket(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip = match ip.strip_prefix('[') {
        Some(ip) => ip.strip_suffix(']').filter(|ip| ip.contains(':'))?,
        None => Some(ip).filter(|ip| !ip.contains(':'))?,
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    Some(SocketAddr::new(parse_ip(ip)?, port.parse().ok().filter(|_| digits)?))
}

fn flow(from: IpAddr, to: &str, iif: Option<String>) -> anyhow::Result<Flow> {
    let usage = || format!("{to:?} is no destination: write tcp:10.96.0.10:80, udp:[fd00::1]:53 or sctp:…");
    let (protocol, address) = to.split_once(':').with_context(usage)?;
    let protocol = protocol.parse().map_err(|error: String| anyhow::anyhow!(error)).with_context(usage)?;
    let to = socket(address).with_context(usage)?;
    Ok(Flow { from, iif: iif.filter(|iif| !iif.is_empty()), protocol, to })
}

fn answer(desired: &Desired, flow: &Flow, output: TraceOutput) -> anyhow::Result<String> {
    let trace = desired.trace(flow);
    Ok(match output {
        TraceOutput::Json => serde_json::to_string(&Answer::from(&trace))?,
        TraceOutput::Text => sentences(flow, &trace),
    })
}

impl<'a> From<&'a Trace> for Answer<'a> {
    fn from(trace: &'a Trace) -> Self {
        let service = trace.service.as_deref().unwrap_or_default();
        let mut answer =
            Self { outcome: "none", endpoints: Vec::new(), masquerade: false, hairpin: None, service, why: &trace.why };
        match &trace.outcome {
            Outcome::Endpoints { endpoints, masquerade, hairpin } => {
                answer.outcome = "endpoints";
                answer.endpoints = endpoints.iter().map(ToString::to_string).collect();
                answer.masquerade = *masquerade;
                answer.hairpin = hairpin.map(|endpoint| endpoint.to_string());
            }
            Outcome::Reject => answer.outcome = "reject",
            Outcome::Drop => answer.outcome = "drop",
            Outcome::None => {}
        }
        answer
    }
}

fn sentences(flow: &Flow, trace: &Trace) -> String {
    let mut text = format!("from {} {} {} → ", flow.from, flow.protocol, flow.to);
    match &trace.outcome {
        Outcome::Endpoints { endpoints, masquerade, hairpin } => {
            let all: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
            text += &all.join(" | ");
            if *masquerade {
                text += " masquerade";
            }
            if let Some(endpoint) = hairpin {
                text += &format!(" (masquerade if {endpoint}, which is the source itself)");
            }
        }
        Outcome::Reject => text += "reject",
        Outcome::Drop => text += "drop",
        Outcome::None => text += "none",
    }
    for why in &trace.why {
        text += &format!("\n  {why}");
    }
    text
}
