//! What is watched, and which objects of it: the server leaves out what is not ours.

use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking};
use kube::api::{Api, ApiResource, ListParams, WatchParams};
use kube::{Client, Resource};

use super::lenient::Lenient;
use crate::state::event::Kind;

/// How many objects come in one answer to a list; [`fewer`], once such an answer was longer than [`bounded::LONGEST`].
///
/// [`bounded::LONGEST`]: super::bounded::LONGEST
pub(super) const PAGE: u32 = 500;

/// How many objects to ask for at a time where an answer of so many was too long.
pub(super) fn fewer(page: u32) -> u32 {
    (page / 10).max(1)
}

/// One kind to watch.
#[derive(Debug)]
pub(super) struct Watched {
    pub kind: Kind,
    resource: ApiResource,
    /// Label selector.
    labels: Option<&'static str>,
    /// Field selector.
    fields: Option<String>,
}

impl Watched {
    /// Every kind, for the proxy of this node.
    pub fn all(node: &Arc<str>) -> [Self; 4] {
        [
            Self {
                kind: Kind::Node,
                resource: resource::<core::Node>(),
                labels: None,
                fields: Some(format!("metadata.name={node}")),
            },
            Self {
                kind: Kind::ServiceCidr,
                resource: resource::<networking::ServiceCIDR>(),
                labels: None,
                fields: None,
            },
            Self {
                kind: Kind::Service,
                resource: resource::<core::Service>(),
                labels: Some("!service.kubernetes.io/service-proxy-name"),
                fields: Some("spec.clusterIP!=None".to_owned()),
            },
            Self {
                kind: Kind::EndpointSlice,
                resource: resource::<discovery::EndpointSlice>(),
                labels: Some("!service.kubernetes.io/headless"),
                fields: None,
            },
        ]
    }

    /// For the first page of a list, of so many objects: of the newest objects there are (a quorum read).
    pub fn list_params(&self, page: u32) -> ListParams {
        ListParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            limit: Some(page),
            ..ListParams::default()
        }
    }

    /// For a watch, which the server ends after kube's 290 s.
    pub fn watch_params(&self) -> WatchParams {
        WatchParams {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            bookmarks: true,
            ..WatchParams::default()
        }
    }

    /// The objects of all namespaces.
    pub fn api(&self, client: &Client) -> Api<Lenient> {
        Api::all_with(client.clone(), &self.resource)
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}
