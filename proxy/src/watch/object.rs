//! One Kubernetes object as a source reads it: decoded by its kind, then reduced to the compact form.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::state::convert::{self, Converted, SliceInParts};
use crate::state::event::{Event, Kind};
use crate::state::objects::{Ignored, ObjectName};

/// A decoded object of one of the kinds that are read.
#[derive(Debug)]
pub(super) enum Object {
    Service(Box<core::Service>),
    Slice(Box<discovery::EndpointSlice>),
    Node(Box<core::Node>),
    ServiceCidr(Box<networking::ServiceCIDR>),
}

/// What an object comes to.
#[derive(Debug)]
pub(super) struct Reported {
    pub kind: Kind,
    pub name: ObjectName,
    /// The event that brings the object; `None` when it is not ours to serve.
    pub event: Option<Event>,
    pub faults: Vec<Ignored>,
}

impl Object {
    /// Decodes an object of `kind`. The error is the deserializer's, and also comes where a field has the wrong type.
    pub fn decode<'de, D: Deserializer<'de>>(kind: Kind, from: D) -> Result<Self, D::Error> {
        match kind {
            Kind::Service => Ok(Self::Service(Box::new(Deserialize::deserialize(from)?))),
            Kind::EndpointSlice => Ok(Self::Slice(Box::new(Deserialize::deserialize(from)?))),
            Kind::Node => Ok(Self::Node(Box::new(Deserialize::deserialize(from)?))),
            Kind::ServiceCidr => Ok(Self::ServiceCidr(Box::new(Deserialize::deserialize(from)?))),
            Kind::Manifest => Err(serde::de::Error::custom("a manifest is a file, not an object")),
        }
    }

    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::Slice(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceCidr(object) => &object.metadata,
        }
    }

    /// The compact form. Cluster-wide objects lose a namespace that somebody wrote. An object whose name Kubernetes would not
    /// have is left out: names go into the log, series, messages and identities of rows.
    pub fn report(&self) -> Reported {
        let kind = self.kind();
        let name = scoped(kind, convert::object_name(self.metadata()));
        if let Some(none) = improper(kind, &name) {
            return none;
        }
        let (event, faults) = match self {
            Self::Service(object) => parts(convert::service(object), Event::Service),
            Self::Slice(object) => parts(convert::endpoint_slice(object), Event::Slice),
            Self::Node(object) => parts(convert::node(object), Event::Node),
            Self::ServiceCidr(object) => parts(convert::service_cidr(object), Event::ServiceCidr),
        };
        Reported { name, kind, event, faults }
    }

    fn kind(&self) -> Kind {
        match self {
            Self::Service(_) => Kind::Service,
            Self::Slice(_) => Kind::EndpointSlice,
            Self::Node(_) => Kind::Node,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }
}

/// The same of a slice whose endpoints `endpoints` brings, if there is a slice.
pub(super) fn report_in_parts<E>(
    object: &discovery::EndpointSlice,
    endpoints: impl FnOnce(&mut SliceInParts) -> Result<(), E>,
) -> Result<Reported, E> {
    let kind = Kind::EndpointSlice;
    let name = scoped(kind, convert::object_name(&object.metadata));
    if let Some(none) = improper(kind, &name) {
        return Ok(none);
    }
    let (event, faults) = match SliceInParts::begin(object) {
        Ok(mut slice) => {
            endpoints(&mut slice)?;
            parts(slice.end(), Event::Slice)
        }
        Err(faults) => (None, faults),
    };
    Ok(Reported { name, kind, event, faults })
}

/// What an object with this name comes to, if it is none that Kubernetes would have.
fn improper(kind: Kind, name: &ObjectName) -> Option<Reported> {
    if name.is_proper(matches!(kind, Kind::Service | Kind::EndpointSlice)) {
        return None;
    }
    let what = format!("{} {name}", kind.as_str());
    let why = "ignored: no object may be named so; use letters, digits, - and . in name and namespace".into();
    Some(Reported { kind, name: name.clone(), event: None, faults: vec![Ignored { what, why }] })
}

fn parts<T>(got: Converted<T>, event: fn(T) -> Event) -> (Option<Event>, Vec<Ignored>) {
    (got.object.map(event), got.faults)
}

/// The name by which events speak of an object of `kind`: without a namespace where the kind is cluster-wide.
pub(super) fn scoped(kind: Kind, name: ObjectName) -> ObjectName {
    match kind {
        Kind::Node | Kind::ServiceCidr => ObjectName { namespace: "".into(), name: name.name },
        _ => name,
    }
}
