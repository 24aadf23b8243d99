//! One Kubernetes object as a source reads it: decoded by its kind, then reduced to the compact form.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};

use crate::state::convert::{self, Converted};
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

    /// The compact form. Cluster-wide objects lose a namespace that somebody wrote.
    pub fn report(&self) -> Reported {
        let named = convert::object_name(self.metadata());
        let (kind, event, faults) = match self {
            Self::Service(object) => parts(Kind::Service, convert::service(object), Event::Service),
            Self::Slice(object) => parts(Kind::EndpointSlice, convert::endpoint_slice(object), Event::Slice),
            Self::Node(object) => parts(Kind::Node, convert::node(object), Event::Node),
            Self::ServiceCidr(object) => parts(Kind::ServiceCidr, convert::service_cidr(object), Event::ServiceCidr),
        };
        Reported { name: scoped(kind, named), kind, event, faults }
    }
}

fn parts<T>(kind: Kind, got: Converted<T>, event: fn(T) -> Event) -> (Kind, Option<Event>, Vec<Ignored>) {
    (kind, got.object.map(event), got.faults)
}

/// The name by which events speak of an object of `kind`: without a namespace where the kind is cluster-wide.
pub(super) fn scoped(kind: Kind, name: ObjectName) -> ObjectName {
    match kind {
        Kind::Node | Kind::ServiceCidr => ObjectName { namespace: "".into(), name: name.name },
        _ => name,
    }
}
