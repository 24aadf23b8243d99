//! What is printed of a packet.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::Serialize;

use crate::facts::TraceFacts;
use crate::live::journey::{End, Journey};
use crate::live::judge::{Judgement, short};

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

/// A paragraph for people.
pub fn text(
    at: Timestamp,
    journey: &Journey,
    told: &anyhow::Result<TraceFacts>,
    judgement: Option<&Judgement>,
) -> String {
    let mut text = format!("{} {journey}", at.strftime("%H:%M:%S%.3f"));
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

/// An object in one line.
///
/// # Errors
/// It cannot be written.
pub fn json(
    at: Timestamp,
    journey: &Journey,
    told: Option<&TraceFacts>,
    judgement: Option<&Judgement>,
) -> anyhow::Result<String> {
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
        at,
        protocol: journey.came.protocol.as_str(),
        from: journey.came.has_source().then(|| journey.came.from.to_string()),
        to: journey.came.to.to_string(),
        iif: journey.iif.as_deref(),
        steps: steps.collect(),
        end,
        went_from: went.filter(|_| journey.came.has_source()).map(|ends| ends.from),
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
