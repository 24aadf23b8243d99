//! Kubernetes objects to the compact structs of [`super::objects`]: pure functions of one object each. What an object gets
//! wrong is left out and named in [`Converted::faults`]; everything else of it is kept.

pub mod annotations;
mod cidr;
mod node;
mod service;
mod slice;
pub mod sloppy;

use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::event::Kind;
use super::objects::{Ignored, ObjectName, Protocol};
use super::text::{self, Quoted, is_label};

pub use cidr::service_cidr;
pub use node::node;
pub use service::{SERVICE_PROXY_NAME_LABEL, service};
pub use slice::{HEADLESS_LABEL, SERVICE_NAME_LABEL, SliceInParts, endpoint_slice};

/// The faults of one object that are named one by one; the rest are counted, so that a hostile object cannot fill the log.
const NAMED_FAULTS: usize = 10;

/// What became of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted<T> {
    /// The compact form; `None` when the object is not ours to serve (headless, ExternalName, another proxy's, ...), which
    /// for a watch is the same as its being gone.
    pub object: Option<T>,
    /// What was left out of it; also says why there is no object where that is somebody's mistake.
    pub faults: Vec<Ignored>,
}

/// The name of an object from its metadata, as it is kept (see [`text::name`]); absent parts are empty.
pub fn object_name(metadata: &ObjectMeta) -> ObjectName {
    let part = |part: &Option<String>| text::name(part.as_deref().unwrap_or_default());
    ObjectName::new(&part(&metadata.namespace), &part(&metadata.name))
}

/// Collects the faults of one object.
#[derive(Debug)]
struct Faults {
    what: String,
    named: Vec<Ignored>,
    more: usize,
}

impl Faults {
    fn of(kind: Kind, name: &ObjectName) -> Self {
        Self { what: format!("{} {name}", kind.as_str()), named: Vec::new(), more: 0 }
    }

    fn add(&mut self, why: impl Display) {
        if self.named.len() < NAMED_FAULTS {
            self.named.push(Ignored { what: self.what.clone(), why: why.to_string() }.tamed());
        } else {
            self.more += 1;
        }
    }

    fn into_vec(mut self) -> Vec<Ignored> {
        if self.more > 0 {
            self.named.push(Ignored { what: self.what, why: format!("and {} more faults of this object", self.more) });
        }
        self.named
    }

    fn converted<T>(self, object: Option<T>) -> Converted<T> {
        Converted { object, faults: self.into_vec() }
    }

    /// The name of a port; `None` where it is none that a port may have.
    fn port_name<'a>(&mut self, name: &'a str) -> Option<&'a str> {
        if is_label(name) {
            return Some(name);
        }
        self.add(format_args!("port {} ignored: no port may be named so", Quoted(name)));
        None
    }

    /// The protocol of the port `of`; absent is TCP.
    fn protocol(&mut self, text: Option<&str>, of: impl Display) -> Option<Protocol> {
        match text.unwrap_or("TCP").parse() {
            Ok(protocol) => Some(protocol),
            Err(error) => {
                self.add(format_args!("{of} ignored: {error}"));
                None
            }
        }
    }
}

/// A port number in 1 to 65535.
fn port_number(value: i32) -> Option<u16> {
    u16::try_from(value).ok().filter(|port| *port != 0)
}
