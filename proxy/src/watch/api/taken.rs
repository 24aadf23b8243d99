//! An object as it came from the server, reduced at once to its compact form. One that cannot be decoded is a fault of that
//! object and of no other.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::known::Known;
use super::super::object::{Object, Reported, scoped};
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
    /// Stands for its content. The resourceVersion would not do: a server that is set back to an earlier state gives the same
    /// versions to other contents.
    pub version: u64,
    object: Result<Box<Reported>, Ignored>,
}

impl Taken {
    pub fn new(kind: Kind, object: Lenient) -> Self {
        let name = name_of(kind, &object);
        let version = version_of(&object);
        let left_out = object.left_out;
        let report = |decoded: Object| {
            let mut report = decoded.report();
            if left_out > 0 {
                let what = format!("{} {name}", kind.as_str());
                let why = format!("it holds too much: {left_out} values are left out, beyond the first {MOST}");
                report.faults.push(Ignored { what, why });
            }
            Box::new(report)
        };
        let object = Object::decode(kind, object.data).map(report).map_err(|error| {
            let what = format!("{} {name}", kind.as_str());
            let why =
                format!("it is malformed: {error}; what was served of it before stays in force until it is mended");
            Ignored { what, why }
        });
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

fn version_of(object: &Lenient) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&object.data, object.left_out).hash(&mut hasher);
    hasher.finish()
}
