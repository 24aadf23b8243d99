//! The kinds of objects that are served, and the paths that they are served at.

/// A kind of object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Resource {
    /// `v1` Services.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlices.
    EndpointSlice,
    /// `v1` Nodes.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDRs, which older clusters do not serve.
    ServiceCidr,
    /// `v1` Namespaces. Objects may lie in one that nobody has made.
    Namespace,
    /// `events.k8s.io/v1` Events. Faults that are for no kind of object do not hit requests about them: a proxy posts them when
    /// it likes.
    Event,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr, Self::Namespace, Self::Event];
    /// Those that a proxy watches.
    pub const WATCHED: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];

    /// `kind` of an object.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
            Self::Namespace => "Namespace",
            Self::Event => "Event",
        }
    }

    /// `apiVersion` of an object.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::Service | Self::Node | Self::Namespace => "v1",
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::ServiceCidr => "networking.k8s.io/v1",
            Self::Event => "events.k8s.io/v1",
        }
    }

    /// The name in paths.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Node => "nodes",
            Self::ServiceCidr => "servicecidrs",
            Self::Namespace => "namespaces",
            Self::Event => "events",
        }
    }

    /// Whether its objects lie in namespaces.
    pub fn is_namespaced(self) -> bool {
        matches!(self, Self::Service | Self::EndpointSlice | Self::Event)
    }

    /// The resource of a kind.
    pub fn of_kind(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kind() == kind)
    }

    /// The path of the group and version, without a slash at the end.
    pub fn group_path(self) -> String {
        match self.api_version() {
            "v1" => "/api/v1".into(),
            group => format!("/apis/{group}"),
        }
    }
}

/// What a path names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    pub resource: Resource,
    /// `None`: all namespaces, or a kind without.
    pub namespace: Option<String>,
    /// `None`: the collection.
    pub name: Option<String>,
    /// Its `status` alone.
    pub is_status: bool,
}

impl Target {
    /// Reads the path of a collection or of one object.
    pub fn of_path(path: &str) -> Option<Self> {
        Resource::ALL.into_iter().find_map(|resource| {
            let rest = path.strip_prefix(&resource.group_path())?.strip_prefix('/')?;
            let parts: Vec<_> = rest.split('/').collect();
            let (namespace, rest) = match parts.as_slice() {
                ["namespaces", namespace, rest @ ..] if resource.is_namespaced() => (Some(*namespace), rest),
                rest => (None, rest),
            };
            let (name, is_status) = match rest {
                [plural] if *plural == resource.plural() => (None, false),
                [plural, name] if *plural == resource.plural() => (Some((*name).to_owned()), false),
                [plural, name, "status"] if *plural == resource.plural() => (Some((*name).to_owned()), true),
                _ => return None,
            };
            Some(Self { resource, namespace: namespace.map(str::to_owned), name, is_status })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_collections_and_objects() {
        let target = |resource, namespace: Option<&str>, name: Option<&str>| {
            let (namespace, name) = (namespace.map(Into::into), name.map(Into::into));
            Some(Target { resource, namespace, name, is_status: false })
        };
        assert_eq!(Target::of_path("/api/v1/services"), target(Resource::Service, None, None));
        assert_eq!(Target::of_path("/api/v1/nodes/n1"), target(Resource::Node, None, Some("n1")));
        assert_eq!(
            Target::of_path("/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/b"),
            target(Resource::EndpointSlice, Some("a"), Some("b"))
        );
        assert_eq!(Target::of_path("/api/v1/namespaces/a"), target(Resource::Namespace, None, Some("a")));
        let status = Target::of_path("/api/v1/namespaces/a/services/b/status").unwrap();
        assert!(status.is_status);
        assert_eq!(Some(Target { is_status: false, ..status }), target(Resource::Service, Some("a"), Some("b")));
        assert_eq!(Target::of_path("/api/v1/pods"), None);
        assert_eq!(Target::of_path("/apis/networking.k8s.io/v1"), None);
    }
}
