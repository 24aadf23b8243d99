//! Connection tracking: UDP flows that a change leaves behind, and connections that it goes on to translate.
//!
//! The kernel keeps sending packets of a known UDP flow where its first packet went: to an endpoint that is gone, or
//! past the Service where it had no endpoint yet. Such entries are deleted after the rules of a change are in force
//! (kube-proxy: pkg/proxy/conntrack/cleanup.go). TCP and SCTP recover by themselves and are not touched, but for
//! connections that nobody has answered, whose first packet went by while rules were missing ([`forget_unanswered`]).

pub mod accounting;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod kernel;
mod stale;

pub mod established;

pub use kernel::{Cleaned, Conntrack, Family, TCP, UDP, clean, forget_unanswered, forget_untranslated, keep_answers};
pub use stale::{Entry, Tuple, UdpService, stale};
