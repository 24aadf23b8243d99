//! Which endpoints a service port may use: slices merged, then sorted into the Cluster list and the Local list.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::state::objects::{EndpointSlice, Family, Protocol, ServicePort, SliceEndpoint, SlicePort};

use super::limits;
use super::node_view::NodeView;
use super::scheduling::Choice;
use super::topology::Topology;

/// One endpoint of one service port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate<'a> {
    /// As its slice says it.
    pub endpoint: &'a SliceEndpoint,
    /// It is on this node.
    pub local: bool,
}

/// Every endpoint of a service port in one family, by address, whatever its conditions and the policies are.
pub fn members<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    port: &ServicePort,
    node: &str,
) -> BTreeMap<SocketAddr, Candidate<'a>> {
    SlicePorts::of(slices, family, std::slice::from_ref(port))
        .merge(port, node, (limits::ENDPOINTS, limits::LOOKS))
        .endpoints
}

impl Candidate<'_> {
    /// Whether it is on this node and ready.
    pub(super) fn is_local_ready(&self) -> bool {
        self.local && self.endpoint.ready
    }
}

/// The endpoints of one service port in one family, sorted by use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EndpointLists {
    /// For traffic policy Cluster (and the short circuits of Local): sorted, distinct.
    pub cluster: Arc<[SocketAddr]>,
    /// For traffic policy Local: sorted, distinct.
    pub local: Arc<[SocketAddr]>,
    /// Weights of `cluster`, in its order, as the scheduler is to use them, 1 and more; empty: all are 1.
    pub cluster_weights: Arc<[u16]>,
    /// Weights of `local`, likewise.
    pub local_weights: Arc<[u16]>,
    /// Whether any endpoint anywhere is usable under the policies that the service uses: decides reject or drop.
    pub any: bool,
    /// Endpoints that serve, ready or terminating, whatever policy and topology say: what stale UDP entries are held to.
    pub serving: Arc<[SocketAddr]>,
    /// Those of `serving` with weight 0: they get no new connections.
    pub idle: Arc<[SocketAddr]>,
    /// Distinct addresses of local ready endpoints with a weight, for the health check node port.
    pub local_ready: usize,
    /// Endpoints that are ready, anywhere.
    pub ready: usize,
    /// Endpoints that are terminating and still serve, anywhere.
    pub terminating: usize,
    /// Endpoints that neither are ready nor terminate while they still serve, anywhere.
    pub unusable: usize,
}

/// Which lists a service port asks for (kube-proxy's `UsesClusterEndpoints` and `UsesLocalEndpoints`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uses {
    /// The Cluster list is built.
    pub cluster: bool,
    /// The Local list is built.
    pub local: bool,
}

/// The ports that a service's slices of one family have, by what a service port is joined with: a service may have
/// thousands, and so may each slice, also such as the service has not.
#[derive(Debug)]
pub(super) struct SlicePorts<'a>(HashMap<(&'a str, Protocol), Vec<(&'a EndpointSlice, u16)>>);

impl<'a> SlicePorts<'a> {
    /// Those that these ports of the service are joined with.
    pub(super) fn of(slices: impl Iterator<Item = &'a EndpointSlice>, family: Family, ports: &[ServicePort]) -> Self {
        let wanted: HashSet<(&str, Protocol)> = ports.iter().map(|port| (&*port.name, port.protocol)).collect();
        Self::index(slices, family, |port| wanted.contains(&(&*port.name, port.protocol)))
    }

    /// All of them.
    pub(super) fn all(slices: impl Iterator<Item = &'a EndpointSlice>, family: Family) -> Self {
        Self::index(slices, family, |_| true)
    }

    fn index(
        slices: impl Iterator<Item = &'a EndpointSlice>,
        family: Family,
        is_wanted: impl Fn(&SlicePort) -> bool,
    ) -> Self {
        let mut ports: HashMap<_, Vec<_>> = HashMap::new();
        for slice in slices.filter(|slice| slice.family == family) {
            for port in slice.ports.iter().filter(|port| is_wanted(port)) {
                ports.entry((&*port.name, port.protocol)).or_default().push((slice, port.port));
            }
        }
        Self(ports)
    }

    /// The names of all ports, with their protocols.
    pub(super) fn names(&self) -> impl Iterator<Item = (&'a str, Protocol)> {
        self.0.keys().copied()
    }

    /// Merges the slices for one port of the service. Where two slices name the same address and port, the later wins,
    /// but a terminating endpoint never replaces one that is not. Of more than `most` distinct ones the first are taken, and of more than
    /// `looks` entries the first are looked at.
    pub(super) fn merge(&self, port: &ServicePort, node: &str, (most, looks): (usize, usize)) -> Merged<'a> {
        let mut merged = Merged::default();
        for (slice, number) in self.0.get(&(&*port.name, port.protocol)).into_iter().flatten() {
            let looked = slice.endpoints.len().min(looks - merged.entries);
            merged.entries += looked;
            merged.left_out += slice.endpoints.len() - looked;
            for endpoint in &slice.endpoints[..looked] {
                let candidate = Candidate { endpoint, local: endpoint.node.as_deref() == Some(node) };
                let has_room = merged.endpoints.len() < most;
                match merged.endpoints.entry(SocketAddr::new(endpoint.ip, *number)) {
                    Entry::Occupied(mut old) => {
                        if old.get().endpoint.terminating || !endpoint.terminating {
                            old.insert(candidate);
                        }
                    }
                    Entry::Vacant(new) if has_room => drop(new.insert(candidate)),
                    Entry::Vacant(_) => merged.left_out += 1,
                }
            }
        }
        merged
    }
}

/// The endpoints of a port, of all slices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Merged<'a> {
    pub(super) endpoints: BTreeMap<SocketAddr, Candidate<'a>>,
    /// Entries of slices that were looked at.
    pub(super) entries: usize,
    /// Those that are beyond the limits, looked at or not.
    pub(super) left_out: usize,
}

impl EndpointLists {
    /// The endpoints of both lists; those of both come twice.
    pub fn used(&self) -> impl Iterator<Item = SocketAddr> {
        self.cluster.iter().chain(self.local.iter()).copied()
    }

    /// Sorts the merged endpoints into lists (kube-proxy's `CategorizeEndpoints`). Traffic policies, topology and whether
    /// endpoints are ready say who is a candidate; then those of weight 0 leave, even if nobody is left.
    pub(super) fn new(
        merged: &BTreeMap<SocketAddr, Candidate<'_>>,
        uses: Uses,
        node: &NodeView,
        choice: &Choice<'_>,
    ) -> Self {
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
            idle: pick(&|candidate| (ready(candidate) || candidate.endpoint.serving) && !choice.admits(candidate)),
            ready: merged.values().filter(|candidate| ready(candidate)).count(),
            terminating: merged.values().filter(|c| c.endpoint.terminating && (ready(c) || c.endpoint.serving)).count(),
            unusable: merged.values().filter(|candidate| !ready(candidate) && !draining(candidate)).count(),
            local_ready: merged
                .values()
                .filter(|candidate| candidate.local && ready(candidate) && choice.admits(candidate))
                .map(|candidate| candidate.endpoint.ip)
                .collect::<BTreeSet<_>>()
                .len(),
            ..Self::default()
        };
        if uses.cluster {
            let topology = Topology::from_hints(merged.values().map(|candidate| candidate.endpoint), node);
            let near = pick(&|candidate| ready(candidate) && topology.admits(candidate.endpoint, node));
            (lists.cluster, lists.cluster_weights) = choice.weigh(or_draining(near, &draining), merged);
            lists.any = !lists.cluster.is_empty();
        }
        // Most often the same list: share it.
        if lists.cluster == lists.serving {
            lists.serving = lists.cluster.clone();
        }
        if uses.local {
            let near = pick(&|candidate| candidate.local && ready(candidate));
            let near = or_draining(near, &|candidate| candidate.local && draining(candidate));
            (lists.local, lists.local_weights) = choice.weigh(near, merged);
            let usable = |candidate: &Candidate<'_>| ready(candidate) || draining(candidate);
            lists.any |= merged.values().any(|candidate| usable(candidate) && choice.admits(candidate));
        }
        lists
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::state::objects::ObjectName;

    fn port() -> impl Strategy<Value = (&'static str, Protocol, u16)> {
        let protocol = select(vec![Protocol::Tcp, Protocol::Udp]);
        (select(vec!["", "a", "b"]), protocol, select(vec![1, 2]))
    }

    fn slice() -> impl Strategy<Value = EndpointSlice> {
        let endpoint = (0..3u8, any::<bool>(), select(vec![None, Some("here"), Some("there")])).prop_map(
            |(number, terminating, node)| SliceEndpoint {
                ip: [10, 0, 0, number].into(),
                ready: true,
                serving: true,
                terminating,
                node: node.map(Arc::from),
                zone: None,
                pod: None,
                hints: None,
            },
        );
        let port = port().prop_map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port });
        (select(Family::BOTH.to_vec()), vec(port, 0..4), vec(endpoint, 0..4)).prop_map(|(family, ports, endpoints)| {
            let name = ObjectName::new("default", "web");
            EndpointSlice { service: name.clone(), name, family, ports: ports.into(), endpoints, trigger_time: None }
        })
    }

    /// The definition: every pair of a slice's port of that name and protocol and an endpoint of the slice, in order.
    fn simple<'a>(
        slices: &'a [EndpointSlice],
        port: &ServicePort,
        family: Family,
    ) -> BTreeMap<SocketAddr, Candidate<'a>> {
        let mut merged: BTreeMap<SocketAddr, Candidate<'a>> = BTreeMap::new();
        for slice in slices {
            for number in slice.ports.iter() {
                for endpoint in &slice.endpoints {
                    let ours = slice.family == family && number.name == port.name && number.protocol == port.protocol;
                    let address = SocketAddr::new(endpoint.ip, number.port);
                    let lives = merged.get(&address).is_some_and(|old| !old.endpoint.terminating);
                    if ours && !(lives && endpoint.terminating) {
                        let local = endpoint.node.as_deref() == Some("here");
                        merged.insert(address, Candidate { endpoint, local });
                    }
                }
            }
        }
        merged
    }

    proptest! {
        #[test]
        fn slices_are_merged_as_defined(slices in vec(slice(), 0..5), ports in vec(port(), 1..6)) {
            for family in Family::BOTH {
                let service_port = |(name, protocol, port): &(&str, Protocol, u16)| {
                    ServicePort { name: (*name).into(), protocol: *protocol, port: *port, node_port: 0 }
                };
                let of_service: Vec<_> = ports.iter().map(service_port).collect();
                let indexed = SlicePorts::of(slices.iter(), family, &of_service);
                let has = |name: &str, protocol| of_service.iter().any(|port| *port.name == *name && port.protocol == protocol);
                prop_assert!(indexed.names().all(|(name, protocol)| has(name, protocol)), "others take no room");
                let of_all = SlicePorts::all(slices.iter(), family);
                for port in &of_service {
                    let all = simple(&slices, port, family);
                    prop_assert_eq!(&of_all.merge(port, "here", (usize::MAX, usize::MAX)).endpoints, &all);
                    let merged = indexed.merge(port, "here", (usize::MAX, usize::MAX));
                    prop_assert_eq!((&merged.endpoints, merged.left_out), (&all, 0));
                    let few = indexed.merge(port, "here", (2, usize::MAX));
                    prop_assert_eq!(few.endpoints.len(), all.len().min(2));
                    prop_assert_eq!(few.left_out > 0, all.len() > 2);
                    prop_assert!(few.endpoints.iter().all(|(address, candidate)| all.get(address) == Some(candidate)));
                    let looked = indexed.merge(port, "here", (usize::MAX, 3));
                    prop_assert_eq!(looked.entries, merged.entries.min(3));
                    prop_assert_eq!(looked.entries + looked.left_out, merged.entries, "the others are counted");
                }
            }
        }
    }
}
