//! Which endpoints a service port may use: slices merged, then sorted into the Cluster list and the Local list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::state::objects::{EndpointSlice, Family, ServicePort, SliceEndpoint};

use super::node_view::NodeView;
use super::topology::Topology;

/// One endpoint of one service port.
pub(super) struct Candidate<'a> {
    pub(super) endpoint: &'a SliceEndpoint,
    local: bool,
}

/// The endpoints of one service port in one family, sorted by use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointLists {
    /// For traffic policy Cluster (and the short circuits of Local): sorted, distinct.
    pub cluster: Arc<[SocketAddr]>,
    /// For traffic policy Local: sorted, distinct.
    pub local: Arc<[SocketAddr]>,
    /// Whether any endpoint anywhere is usable under the policies that the service uses: decides reject or drop.
    pub any: bool,
    /// Endpoints that serve, ready or terminating, whatever policy and topology say: what stale UDP entries are held to.
    pub serving: Arc<[SocketAddr]>,
    /// Distinct addresses of local ready endpoints, for the health check node port.
    pub local_ready: usize,
    /// Endpoints that are ready, anywhere.
    pub ready: usize,
}

/// Which lists a service port asks for (kube-proxy's `UsesClusterEndpoints` and `UsesLocalEndpoints`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uses {
    /// The Cluster list is built.
    pub cluster: bool,
    /// The Local list is built.
    pub local: bool,
}

/// Merges the slices of a service for one of its ports. Where two slices name the same address and port, the later
/// wins, but a terminating endpoint never replaces one that is not.
pub(super) fn merge<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    port: &ServicePort,
    family: Family,
    node: &str,
) -> BTreeMap<SocketAddr, Candidate<'a>> {
    let mut merged: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let ports =
            slice.ports.iter().filter(|candidate| candidate.name == port.name && candidate.protocol == port.protocol);
        for number in ports.map(|port| port.port) {
            for endpoint in &slice.endpoints {
                let address = SocketAddr::new(endpoint.ip, number);
                let keep = merged.get(&address).is_some_and(|old| !old.endpoint.terminating && endpoint.terminating);
                if !keep {
                    merged.insert(address, Candidate { endpoint, local: endpoint.node.as_deref() == Some(node) });
                }
            }
        }
    }
    merged
}

impl EndpointLists {
    /// The endpoints of both lists; those of both come twice.
    pub fn used(&self) -> impl Iterator<Item = SocketAddr> {
        self.cluster.iter().chain(self.local.iter()).copied()
    }

    /// Sorts the merged endpoints into lists (kube-proxy's `CategorizeEndpoints`).
    pub(super) fn new(merged: &BTreeMap<SocketAddr, Candidate<'_>>, uses: Uses, node: &NodeView) -> Self {
        let ready = |candidate: &Candidate<'_>| candidate.endpoint.ready;
        let draining = |candidate: &Candidate<'_>| {
            candidate.endpoint.serving && candidate.endpoint.terminating && !candidate.endpoint.ready
        };
        let pick = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Arc<[SocketAddr]> {
            merged.iter().filter(|(_, candidate)| wanted(candidate)).map(|(address, _)| *address).collect()
        };
        let or_draining = |first: Arc<[SocketAddr]>, second: &dyn Fn(&Candidate<'_>) -> bool| {
            if first.is_empty() { pick(second) } else { first }
        };
        let mut lists = Self {
            serving: pick(&|candidate| candidate.endpoint.ready || candidate.endpoint.serving),
            ready: merged.values().filter(|candidate| ready(candidate)).count(),
            local_ready: merged
                .values()
                .filter(|candidate| candidate.local && ready(candidate))
                .map(|candidate| candidate.endpoint.ip)
                .collect::<BTreeSet<_>>()
                .len(),
            ..Self::default()
        };
        if uses.cluster {
            let topology = Topology::from_hints(merged.values().map(|candidate| candidate.endpoint), node);
            let near = pick(&|candidate| ready(candidate) && topology.admits(candidate.endpoint, node));
            lists.cluster = or_draining(near, &draining);
            lists.any = !lists.cluster.is_empty();
        }
        // Most often the same list: share it.
        if lists.cluster == lists.serving {
            lists.serving = lists.cluster.clone();
        }
        if uses.local {
            let near = pick(&|candidate| candidate.local && ready(candidate));
            lists.local = or_draining(near, &|candidate| candidate.local && draining(candidate));
            lists.any |= merged.values().any(|candidate| ready(candidate) || draining(candidate));
        }
        lists
    }
}
