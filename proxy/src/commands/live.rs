//! `kubeferry trace --live`: real packets, and the model's answer beside each.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::block_in_place;
use tokio::time::Instant;

use crate::args::{TraceArgs, TraceOutput};
use crate::commands::output::{self, OutputError};
use crate::commands::trace;
use crate::facts::TraceFacts;
use crate::live::filter::{Destination, Filter};
use crate::live::journey::{End, Journey};
use crate::live::judge::{Judgement, judge, short};
use crate::live::tap::Tap;
use crate::running::{RunningProxy, service_name};
use crate::state::text::tame;

/// `IFNAMSIZ`.
const LONGEST_NAME: usize = 16;
/// For how long after a write the model may know other rows than a packet met.
const CHANGING: SignedDuration = SignedDuration::from_secs(2);

/// What `--output json` prints of a packet.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    at: Timestamp,
    protocol: &'static str,
    /// Absent: of a socket that was translated before it had a source.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    iif: Option<&'a str>,
    steps: Vec<Steps<'a>>,
    /// `went`, `refused`, `dropped`, `stopped` or `unseen`.
    end: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    went_from: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    went_to: Option<SocketAddr>,
    says: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a TraceFacts>,
    /// Absent: what was seen does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    agrees: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<&'a str>,
}

#[derive(Serialize)]
struct Steps<'a> {
    place: &'a str,
    decision: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// Follows packets until there were enough of them, the time is over, or somebody ends it. False: a packet did not go where the
/// model sends it.
///
/// # Errors
/// No proxy runs here, or packets cannot be followed.
pub async fn live(args: &TraceArgs) -> anyhow::Result<bool> {
    let proxy = RunningProxy::new(&args.url);
    let node = block_in_place(|| proxy.node())?;
    let filter = block_in_place(|| filter(args, &proxy))?;
    let bpffs_root = node.settings.get("bpffsRoot").map(PathBuf::from).unwrap_or_default();
    let mut tap = Tap::open(&node.backend, &bpffs_root, &filter, args.rate)?;
    output::complain(&format!(
        "following new connections on {} ({}), {} a second at most; Ctrl-C ends it",
        node.node, node.backend, args.rate
    ));
    let deadline = args.r#for.map(|time| Instant::now() + time);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let (mut seen, mut differ) = (0, 0);
    let names = socket(AddressFamily::INET, SocketType::DGRAM, None).context("cannot ask for names of interfaces")?;
    let name = |index| match index_to_name(&names, index) {
        Ok(name) => tame(&name, LONGEST_NAME),
        Err(_) => format!("interface {index}"),
    };
    'following: loop {
        let journeys = tokio::select! {
            journeys = tap.next(name) => journeys?,
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = at(deadline) => break,
        };
        for journey in journeys.into_iter().filter(|journey| filter.takes(&journey.came) || !journey.has_source()) {
            let told = block_in_place(|| told(&proxy, &journey));
            let judgement = told.as_ref().map(|told| match judge(&journey, told) {
                Judgement::Differs(_) if block_in_place(|| is_changing(&proxy)) => Judgement::Open(
                    "rows were written at that moment, and the model may know other ones than the packet met",
                ),
                judgement => judgement,
            });
            differ += usize::from(matches!(judgement, Ok(Judgement::Differs(_))));
            let text = match args.output {
                TraceOutput::Json => json(&journey, told.as_ref().ok(), judgement.as_ref().ok())?,
                TraceOutput::Text => text(&journey, &told, judgement.as_ref().ok()),
            };
            match output::say(&format!("{text}\n")) {
                Err(OutputError::ReaderGone) => break 'following,
                result => result?,
            }
            seen += 1;
            if args.count.is_some_and(|count| seen >= count) {
                break 'following;
            }
        }
    }
    let lost = if tap.lost > 0 {
        format!("; events were lost {} times: more came than could be read", tap.lost)
    } else {
        String::new()
    };
    output::complain(&format!("{seen} connections followed, {differ} not as the model says{lost}"));
    Ok(differ == 0)
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn filter(args: &TraceArgs, proxy: &RunningProxy) -> anyhow::Result<Filter> {
    let mut to = BTreeSet::new();
    if let Some(text) = &args.to {
        let (protocol, at) = trace::destination(text)?;
        to.insert(Destination { protocol, ip: Some(at.ip()), port: at.port() });
    }
    if let Some(name) = &args.service {
        let (namespace, name) = service_name(name);
        let service = proxy.service(namespace, name)?;
        let service = service.with_context(|| format!("{namespace}/{name} is not served here"))?;
        for port in &service.ports {
            let protocol = port.protocol.parse().map_err(anyhow::Error::msg)?;
            for frontend in &port.frontends {
                let (ip, at) = match frontend.address.strip_prefix("*:") {
                    Some(at) => (None, at.parse()?),
                    None => frontend.address.parse().map(|at: SocketAddr| (Some(at.ip()), at.port()))?,
                };
                to.insert(Destination { protocol, ip, port: at });
            }
        }
        ensure!(!to.is_empty(), "{namespace}/{name} has no address that packets could go to");
    }
    let (from, from_port) = args.from.map_or((None, None), |(ip, port)| (Some(ip), port));
    Ok(Filter { from, from_port, to: to.into_iter().collect(), except: proxy.addresses()? })
}

/// The model's answer to a packet.
fn told(proxy: &RunningProxy, journey: &Journey) -> anyhow::Result<TraceFacts> {
    let came = &journey.came;
    let from = match (journey.has_source(), came.to.ip().is_ipv4()) {
        (true, _) => came.from.to_string(),
        // What a socket connects to does not depend on its source where it is translated.
        (false, true) => "127.0.0.1".to_owned(),
        (false, false) => "::1".to_owned(),
    };
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("from", &from)
        .append_pair("to", &format!("{}:{}", came.protocol, came.to))
        .append_pair("iif", journey.iif.as_deref().unwrap_or_default())
        .finish();
    proxy.get(&format!("/api/v1/trace?{query}"))?.context("it has no /api/v1/trace")
}

/// Whether rows were written just now.
fn is_changing(proxy: &RunningProxy) -> bool {
    let last = proxy.node().ok().and_then(|node| node.sync.last);
    last.is_some_and(|last| last.rows_written > 0 && Timestamp::now().duration_since(last.at) < CHANGING)
}

fn text(journey: &Journey, told: &anyhow::Result<TraceFacts>, judgement: Option<&Judgement>) -> String {
    let mut text = format!("{} {journey}", Timestamp::now().strftime("%H:%M:%S%.3f"));
    match told {
        Ok(told) => {
            text += &format!("\n  the model says: {}", short(told));
            told.why.iter().for_each(|why| text += &format!("\n    {why}"));
        }
        Err(error) => text += &format!("\n  the model cannot be asked: {error:#}"),
    }
    match judgement {
        Some(Judgement::Agrees) => text += "\n  as the model says",
        Some(Judgement::Differs(why)) => text += &format!("\n  !!! NOT AS THE MODEL SAYS: {why} !!!"),
        Some(Judgement::Open(why)) => text += &format!("\n  not judged: {why}"),
        None => {}
    }
    text
}

fn json(journey: &Journey, told: Option<&TraceFacts>, judgement: Option<&Judgement>) -> anyhow::Result<String> {
    let (end, went) = match &journey.end {
        End::Went { ends, .. } => ("went", Some(ends)),
        End::Refused => ("refused", None),
        End::Dropped => ("dropped", None),
        End::Stopped { .. } => ("stopped", None),
        End::Unseen => ("unseen", None),
    };
    let steps = journey.steps.iter().map(|step| Steps {
        place: &step.place,
        decision: &step.decision,
        reason: step.reason.as_deref(),
    });
    Ok(serde_json::to_string(&Line {
        at: Timestamp::now(),
        protocol: journey.came.protocol.as_str(),
        from: journey.has_source().then(|| journey.came.from.to_string()),
        to: journey.came.to.to_string(),
        iif: journey.iif.as_deref(),
        steps: steps.collect(),
        end,
        went_from: went.filter(|_| journey.has_source()).map(|ends| ends.from),
        went_to: went.map(|ends| ends.to),
        says: journey.end_text(),
        model: told,
        agrees: match judgement {
            Some(Judgement::Agrees) => Some(true),
            Some(Judgement::Differs(_)) => Some(false),
            _ => None,
        },
        difference: match judgement {
            Some(Judgement::Differs(why)) => Some(why),
            _ => None,
        },
    })?)
}
