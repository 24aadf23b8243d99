//! The sources' parsers, for the fuzzer: from bytes to events.

use serde_json::Value;

use super::object::Object;
pub(crate) use super::{api::fuzzing::*, manifests::fuzzing::*};
use crate::state::event::{Event, Kind};

/// One object.
pub(crate) fn object(kind: Kind, value: Value) -> Option<Event> {
    Object::decode(kind, value).ok()?.report().event
}
