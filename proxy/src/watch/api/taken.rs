//! An object as it came from the server, reduced at once to its compact form. One that cannot be decoded is a fault of that
//! object and of no other.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::known::Known;
use super::super::object::{Reported, scoped};
use super::lenient::Lenient;
use super::value::MOST;
use crate::state::convert;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};

/// An object that was received.
#[derive(Debug)]
pub(super) struct Taken {
    kind: Kind,
    pub name: ObjectName,
    /// Stands for what is kept of it. The resourceVersion would not do: a server that is set back to an earlier state gives the
    /// same versions to other contents. Nor would the text: that of a watch has a kind, and that of a list has none.
    pub version: u64,
    object: Result<Box<Reported>, Ignored>,
}

impl Taken {
    /// Decodes it; its text is dropped.
    pub fn new(kind: Kind, object: Lenient) -> Self {
        let name = name_of(kind, &object);
        let what = || format!("{} {name}", kind.as_str());
        let (decoded, left_out) = object.decode(kind);
        let object = decoded.map_err(|error| {
            let why =
                format!("it is malformed: {error}; what was served of it before stays in force until it is mended");
            Ignored { what: what(), why }
        });
        let object = object.map(|mut report| {
            if left_out > 0 {
                let why = format!("it holds too much: {left_out} values are left out, beyond the first {MOST}");
                report.faults.push(Ignored { what: what(), why });
            }
            Box::new(report)
        });
        let version = object.as_deref().map_or(0, version_of);
        Self { kind, name, version, object }
    }

    /// Sends what it changes.
    pub fn put(self, known: &mut Known, send: &mut dyn FnMut(Event)) {
        match self.object {
            Ok(reported) => known.put(self.version, *reported, send),
            Err(fault) => known.unreadable(self.kind, self.name, fault, send),
        }
    }
}

/// The name by which events speak of an object.
pub(super) fn name_of(kind: Kind, object: &Lenient) -> ObjectName {
    scoped(kind, convert::object_name(&object.metadata))
}

fn version_of(report: &Reported) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&report.event, &report.faults).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn version(object: &Value) -> u64 {
        Taken::new(Kind::EndpointSlice, serde_json::from_str(&object.to_string()).unwrap()).version
    }

    #[test]
    fn an_object_of_a_list_is_known_from_the_watch_and_need_not_be_kept() {
        let mut object = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}],
            "metadata": {"name": "a", "namespace": "ns", "labels": {"kubernetes.io/service-name": "web"}}});
        let listed = version(&object);
        object["kind"] = "EndpointSlice".into();
        object["metadata"]["resourceVersion"] = "7".into();
        assert_eq!(version(&object), listed);
        object["endpoints"][0]["conditions"] = json!({"ready": false});
        assert_ne!(version(&object), listed);
    }
}
