//! `kubeferry trace`: where a new connection would go, and why.

use std::io::BufRead;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use serde::Deserialize;

use crate::args::{TraceArgs, TraceOutput};
use crate::commands::{offline, output};
use crate::desired::Desired;
use crate::desired::trace::{Flow, Outcome, Trace};
use crate::facts::TraceFacts;
use crate::settings::Settings;
use crate::state::convert::sloppy::{parse_socket, parse_source};
use crate::state::objects::Protocol;

/// A flow as a line of `--stdin` gives it.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
struct Asked {
    from: String,
    to: String,
    #[serde(default)]
    iif: Option<String>,
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
    let from =
        parse_source(&asked.from).with_context(|| format!("{:?} is no source: write IP or IP:PORT", asked.from))?;
    flow(from, &asked.to, asked.iif).map(Some)
}

/// The packet that the words of a command line or a query mean.
///
/// # Errors
/// `to` is no destination.
pub(crate) fn flow((from, from_port): (IpAddr, Option<u16>), to: &str, iif: Option<String>) -> anyhow::Result<Flow> {
    let (protocol, to) = destination(to)?;
    Ok(Flow { from, from_port, iif: iif.filter(|iif| !iif.is_empty()), protocol, to })
}

/// A protocol, an address and a port, as `--to` has them.
///
/// # Errors
/// It is none.
pub(crate) fn destination(to: &str) -> anyhow::Result<(Protocol, SocketAddr)> {
    let usage = || format!("{to:?} is no destination: write tcp:10.96.0.10:80, udp:[fd00::1]:53 or sctp:…");
    let (protocol, address) = to.split_once(':').with_context(usage)?;
    let protocol = protocol.parse().map_err(|error: String| anyhow::anyhow!(error)).with_context(usage)?;
    Ok((protocol, parse_socket(address).with_context(usage)?))
}

fn answer(desired: &Desired, flow: &Flow, output: TraceOutput) -> anyhow::Result<String> {
    let trace = desired.trace(flow);
    Ok(match output {
        TraceOutput::Json => serde_json::to_string(&TraceFacts::from(&trace))?,
        TraceOutput::Text => sentences(flow, &trace),
    })
}

fn sentences(flow: &Flow, trace: &Trace) -> String {
    let from =
        flow.from_port.map_or_else(|| flow.from.to_string(), |port| SocketAddr::new(flow.from, port).to_string());
    let mut text = format!("from {from} {} {} → ", flow.protocol, flow.to);
    match &trace.outcome {
        Outcome::Endpoints { endpoints, masquerade, hairpin } => {
            let all: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
            text += &all.join(" | ");
            if *masquerade {
                text += " masquerade";
            }
            if flow.has_source() && !trace.also.is_empty() {
                let also: Vec<_> = trace.also.iter().map(ToString::to_string).collect();
                text += &format!(" (a known client keeps its own, which may be {})", also.join(" | "));
            }
            let itself = endpoints.iter().filter(|endpoint| endpoint.ip() == flow.from).map(ToString::to_string);
            let itself = itself.collect::<Vec<_>>().join(" or ");
            match hairpin {
                None => {}
                Some(_) if *masquerade => text += &format!(" ({itself} is the source itself)"),
                Some(_) => text += &format!(" (masquerade if {itself}, which is the source itself)"),
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
