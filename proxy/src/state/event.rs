//! The one stream that every source of objects speaks: a folder of manifests and the API server alike.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::objects::{EndpointSlice, Ignored, Node, ObjectName, Service, ServiceCidr};

/// The kinds of object that a source lists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// `v1 Service`.
    Service,
    /// `discovery.k8s.io/v1 EndpointSlice`.
    EndpointSlice,
    /// `v1 Node`.
    Node,
    /// `networking.k8s.io/v1 ServiceCIDR`.
    ServiceCidr,
    /// A file of manifests (only faults are reported of it; it is never listed).
    Manifest,
}

impl Kind {
    /// The kind as manifests write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Manifest => "Manifest",
        }
    }
}

/// One change of the cluster's objects, as a source reports it.
///
/// A relist (after 410 Gone, a reconnect, or a rewritten file) is reported as the differences that it makes: sources
/// remember the names they have reported and send deletions for the ones that are gone.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A Service appeared or changed.
    Service(Service),
    /// A Service is gone, or is no longer ours to serve.
    ServiceGone(ObjectName),
    /// An EndpointSlice appeared or changed.
    Slice(EndpointSlice),
    /// An EndpointSlice is gone, or is no longer ours to serve.
    SliceGone(ObjectName),
    /// Our own Node appeared or changed.
    Node(Node),
    /// Our own Node is gone.
    NodeGone,
    /// A ServiceCIDR appeared or changed.
    ServiceCidr(ServiceCidr),
    /// A ServiceCIDR is gone.
    ServiceCidrGone(ObjectName),
    /// Where we ourselves reach the API server, which no object says.
    ApiServer(BTreeSet<SocketAddr>),
    /// Everything of this kind that exists has been reported once.
    Listed(Kind),
    /// What is wrong with an object at the moment; replaces what was said of it before, an empty list takes it back.
    Ignored {
        /// The kind of the object.
        kind: Kind,
        /// The object.
        name: ObjectName,
        /// What of it is left out.
        faults: Vec<Ignored>,
    },
}
