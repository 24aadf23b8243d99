//! An object as it came from the server, reduced at once to its compact form. One that cannot be decoded is a fault of that
//! object and of no other.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::super::known::Known;
use super::super::object::{Object, Reported, scoped};
use super::lenient::Lenient;
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};

/// An object that was received.
#[derive(Debug)]
pub(super) struct Taken {
    kind: Kind,
    pub name: ObjectName,
    /// A number that stands for its resourceVersion.
    pub version: u64,
    object: Result<Box<Reported>, Ignored>,
}

impl Taken {
    pub fn new(kind: Kind, object: Lenient) -> Self {
        let name = name_of(kind, &object);
        let version = version_of(object.metadata.resource_version.as_deref());
        let object = Object::decode(kind, object.data).map(|decoded| Box::new(decoded.report())).map_err(|error| {
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
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    scoped(kind, ObjectName::new(namespace, name))
}

fn version_of(text: Option<&str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}
