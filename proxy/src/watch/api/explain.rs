//! What is wrong between us and the API server, in a sentence that says what to do.

use std::error::Error as _;

use kube::Error;
use kube::runtime::watcher;

use crate::state::event::Kind;

/// Whether the error says that the server does not have this kind (ServiceCIDRs before 1.33), or does not let us see it
/// where we can do without.
pub(super) fn is_unserved(kind: Kind, error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error) => lacks(kind, error),
        _ => false,
    }
}

/// As [`is_unserved`], for a plain request.
pub(super) fn lacks(kind: Kind, error: &Error) -> bool {
    kind == Kind::ServiceCidr && matches!(error, Error::Api(status) if matches!(status.code, 403 | 404))
}

/// Whether the account lacks a right.
pub(super) fn is_forbidden(error: &watcher::Error) -> bool {
    matches!(
        error,
        watcher::Error::InitialListFailed(Error::Api(status)) | watcher::Error::WatchStartFailed(Error::Api(status))
            if status.code == 403
    )
}

/// Whether only a new list can help, where kube's watcher would go on: it asks for a version that is gone for ever where
/// 410 comes as the status of the answer and not as an event, and it passes over an event that is no JSON, with the change
/// that it told of.
pub(super) fn needs_list(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            matches!(error, Error::Api(status) if status.code == 410) || matches!(error, Error::SerdeError(_))
        }
        _ => false,
    }
}

/// An error of a watch, which will be tried again.
pub(super) fn watching(kind: Kind, error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => asking(kind, error),
        watcher::Error::WatchError(status) => {
            format!("the watch of {}s ended: {}", kind.as_str(), status.message)
        }
        other => format!("the watch of {}s ended: {other}", kind.as_str()),
    }
}

/// An error of a request.
pub(super) fn asking(kind: Kind, error: &Error) -> String {
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
