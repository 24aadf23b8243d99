//! What is wrong between us and the API server, in a sentence that says what to do.

use std::error::Error as _;

use kube::Error;

use crate::state::event::Kind;
use crate::state::text::tame;

/// How much is said of an error; the server's own words are in it.
pub(super) const LONGEST: usize = 1000;

/// Whether the error says that the server does not have this kind (ServiceCIDRs before 1.33), or does not let us see it
/// where we can do without.
pub(super) fn lacks(kind: Kind, error: &Error) -> bool {
    kind == Kind::ServiceCidr && matches!(error, Error::Api(status) if matches!(status.code, 403 | 404))
}

/// Whether the account lacks a right.
pub(super) fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 403)
}

/// Whether only a new list can help where a watch failed, which had so many failures in a row.
pub(super) fn needs_list(error: &Error, failures: u32) -> bool {
    match error {
        Error::Api(status) => is_lost(status.code, failures),
        // An event that is no JSON: the change that it told of is lost.
        Error::SerdeError(_) => true,
        _ => false,
    }
}

/// Whether a version that was refused with this code is lost: gone (410), no number to this server (400), or ahead of all that
/// it has (504, "Too large resource version"). A server that goes on refusing for another reason is asked for a list, too, as
/// client-go does; not one that has too much to do.
pub(super) fn is_lost(code: u16, failures: u32) -> bool {
    match code {
        400 | 410 | 504 => true,
        429 => false,
        _ => failures > 2,
    }
}

/// Whether the answer to a list ended in the middle: cut off by us, or by whoever is between us and the server.
pub(super) fn is_cut(error: &Error) -> bool {
    matches!(error, Error::SerdeError(error) if error.is_eof())
}

/// An error of a request.
pub(super) fn asking(kind: Kind, error: &Error) -> String {
    tame(&asking_in_full(kind, error), LONGEST)
}

fn asking_in_full(kind: Kind, error: &Error) -> String {
    let plural = format!("{}s", kind.as_str());
    match error {
        Error::Api(status) => match status.code {
            401 => format!(
                "the API server does not know us (401) when asked for {plural}: check the token or certificate in the kubeconfig"
            ),
            403 => format!(
                "the API server forbids {plural} (403): let our account list and watch {} (ClusterRole system:node-proxier does)",
                plural.to_lowercase()
            ),
            code => format!("the API server answered {code} when asked for {plural}: {}", status.message),
        },
        Error::HyperError(_) | Error::Service(_) => {
            format!(
                "cannot reach the API server for {plural}: {}; is the address right, is it up, and does its certificate match?",
                causes(error)
            )
        }
        other => format!("cannot read {plural} from the API server: {}", causes(other)),
    }
}

/// The error and what is behind it, each once.
fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
