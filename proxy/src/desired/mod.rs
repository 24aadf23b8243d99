//! What the datapath should do, as a pure function of the cluster's objects and this node: for each frontend the one
//! service port that has it, with its endpoints and policies. [`Desired::trace`] is its executable meaning.

mod endpoints;
mod frontends;
mod health_checks;
mod late;
pub mod limits;
#[cfg(test)]
mod limits_tests;
mod lost;
pub mod node_view;
mod scheduling;
#[cfg(test)]
mod scheduling_tests;
pub mod target;
#[cfg(test)]
mod tests;
mod topology;
pub mod trace;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

pub use endpoints::{Candidate, EndpointLists, members};
use frontends::Frontends;
pub use frontends::{CONFLICTS_NAMED, Claim};
pub use health_checks::{HealthCheck, health_check};
use limits::Room;
use node_view::NodeView;
use scheduling::Choice;
use target::{Claiming, Frontend, ServicePortName, Target, targets};

use crate::scheduler::slow_start::Ramps;
use crate::state::objects::{EndpointSlice, Family, Ignored, ObjectName, Protocol, Service};
use crate::state::{Changes, State};

/// Endpoints of the API server that are looked at; no cluster has so many.
const MOST_API_SERVERS: usize = 1000;

/// A target and the frontends that it claims.
type Claimed = (Arc<Target>, Vec<Frontend>);

/// The wanted behaviour of this node.
#[derive(Debug)]
pub struct Desired {
    node: NodeView,
    services: BTreeMap<ObjectName, Vec<Claimed>>,
    frontends: Frontends,
    endpoint_ips: BTreeMap<IpAddr, u32>,
    service_cidrs: BTreeSet<IpNet>,
    without_local: WithoutLocal,
    /// Of Services that ask for a slow start.
    ramps: BTreeMap<ObjectName, Ramps>,
    /// What of the annotations is not done, and what is too much of a Service.
    unscheduled: BTreeMap<ObjectName, Vec<Ignored>>,
    /// The time of the last [`Desired::tick`].
    now: Duration,
}

/// How many service ports of a family (IPv4, IPv6) have a Local policy, no local endpoint, and endpoints elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WithoutLocal {
    /// By `internalTrafficPolicy`.
    pub internal: [usize; 2],
    /// By `externalTrafficPolicy`.
    pub external: [usize; 2],
}

/// What an update touched: whose rows have to be looked at again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    /// Frontends whose holder, or whose holder's target, may have changed.
    pub frontends: BTreeSet<Frontend>,
    /// Addresses that may have become, or stopped being, a ClusterIP.
    pub cluster_ips: BTreeSet<IpAddr>,
    /// Addresses that may have become, or stopped being, an endpoint's.
    pub endpoint_ips: BTreeSet<IpAddr>,
    /// Endpoints that a service port with ClientIP affinity has no more: their clients are to be forgotten.
    pub left: BTreeSet<(ServicePortName, SocketAddr)>,
    /// ServiceCIDRs or the node's addresses changed.
    pub node: bool,
}

impl Touched {
    /// Adds what a later update touched.
    pub fn merge(&mut self, later: Self) {
        self.frontends.extend(later.frontends);
        self.cluster_ips.extend(later.cluster_ips);
        self.endpoint_ips.extend(later.endpoint_ips);
        self.left.extend(later.left);
        self.node |= later.node;
    }
}

impl Desired {
    /// An empty cluster seen from this node.
    pub fn new(node: NodeView) -> Self {
        Self {
            node,
            services: BTreeMap::new(),
            frontends: Frontends::default(),
            endpoint_ips: BTreeMap::new(),
            service_cidrs: BTreeSet::new(),
            without_local: WithoutLocal::default(),
            ramps: BTreeMap::new(),
            unscheduled: BTreeMap::new(),
            now: Duration::ZERO,
        }
    }

    /// The whole of a cluster at once.
    pub fn of(state: &State, node: NodeView) -> Self {
        let mut desired = Self::new(node);
        desired.frontends.reserve(api_server(state), &mut Touched::default());
        for name in state.services().keys() {
            desired.service(state, name, &mut Touched::default());
        }
        desired.service_cidrs = state.service_cidrs();
        desired
    }

    /// Follows the changes of the state; `node` is this node as it is now. The cost depends on what changed.
    pub fn update(&mut self, state: &State, changes: &Changes, node: NodeView) -> Touched {
        let mut touched = Touched { node: changes.service_cidrs, ..Touched::default() };
        touched.node |= self.node != node;
        let same_targets = self.node.gives_same_targets(&node);
        self.node = node;
        if changes.service_cidrs {
            self.service_cidrs = state.service_cidrs();
        }
        if changes.services.contains(&ObjectName::api_server()) {
            self.frontends.reserve(api_server(state), &mut touched);
        }
        if same_targets {
            for name in &changes.services {
                self.service(state, name, &mut touched);
            }
        } else {
            let names: BTreeSet<_> = self.services.keys().chain(state.services().keys()).cloned().collect();
            for name in &names {
                self.service(state, name, &mut touched);
            }
        }
        touched
    }

    fn service(&mut self, state: &State, name: &ObjectName, touched: &mut Touched) {
        let slices = state.slices_of(name).collect::<Vec<_>>();
        let wanted = state.services().get(name).map(|service| self.wanted(service, &slices)).unwrap_or_else(|| {
            self.ramps.remove(name);
            self.unscheduled.remove(name);
            Vec::new()
        });
        for (target, _) in &wanted {
            self.without_local.count(target, usize::wrapping_add);
            for ip in hairpin_ips(target) {
                *self.endpoint_ips.entry(ip).or_default() += 1;
                touched.endpoint_ips.insert(ip);
            }
        }
        let sticky = wanted.iter().filter(|(target, _)| target.affinity.is_some());
        let sticky: HashMap<_, _> = sticky.map(|(target, _)| (target.port_key(), target.clone())).collect();
        let had = self.services.remove(name).unwrap_or_default();
        // Most often only endpoints are others. Who claims what matters for all claims at an address.
        let same = self.frontends.has_same(&had, &wanted);
        for (target, claimed) in had {
            self.without_local.count(&target, usize::wrapping_sub);
            if target.affinity.is_some() {
                let now = sticky.get(&target.port_key());
                let kept: HashSet<_> = now.into_iter().flat_map(|now| now.endpoints.used()).collect();
                let left = target.endpoints.used().filter(|endpoint| !kept.contains(endpoint));
                touched.left.extend(left.map(|endpoint| (target.name.clone(), endpoint)));
            }
            for ip in hairpin_ips(&target) {
                touched.endpoint_ips.insert(ip);
                if let Some(count) = self.endpoint_ips.get_mut(&ip) {
                    *count -= 1;
                    if *count == 0 {
                        self.endpoint_ips.remove(&ip);
                    }
                }
            }
            if !same {
                self.frontends.release(name, &claimed, touched);
            }
        }
        let mut kept = Vec::with_capacity(wanted.len());
        for (target, claims) in wanted {
            kept.push((target.clone(), claims.iter().map(|(frontend, _)| *frontend).collect()));
            for (frontend, rank) in claims {
                if same {
                    self.frontends.renew(frontend, &rank, &target, touched);
                } else {
                    self.frontends.claim(frontend, rank, target.clone(), touched);
                }
            }
        }
        if !kept.is_empty() {
            self.services.insert(name.clone(), kept);
        }
    }

    /// The targets of a Service, its ramps moved on to now.
    fn wanted(&mut self, service: &Service, slices: &[&EndpointSlice]) -> Vec<Claiming> {
        let scheduling = service.scheduling.as_deref();
        let starts_slowly = scheduling::schedule(scheduling, &self.node).scheduler.starts_slowly();
        let ramps = match scheduling.and_then(|scheduling| scheduling.slow_start).filter(|_| starts_slowly) {
            Some(over) => {
                let ready = slices.iter().flat_map(|slice| &slice.endpoints).filter(|endpoint| endpoint.ready);
                let ready = ready.map(|endpoint| endpoint.ip);
                match self.ramps.entry(service.name.clone()) {
                    Entry::Vacant(entry) => drop(entry.insert(Ramps::new(over, ready))),
                    Entry::Occupied(mut entry) => entry.get_mut().follow(over, ready, self.now),
                }
                self.ramps.get(&service.name).map(|ramps| (ramps, self.now))
            }
            None => {
                if !self.ramps.is_empty() {
                    self.ramps.remove(&service.name);
                }
                None
            }
        };
        let choice = Choice::new(service, &self.node, ramps);
        let mut room = Room::new();
        let wanted = targets(service, slices.iter().copied(), &self.node, &choice, &mut room);
        let mut faults = choice.faults(service, &wanted);
        faults.extend(room.faults(&service.name));
        if !faults.is_empty() {
            self.unscheduled.insert(service.name.clone(), faults);
        } else if !self.unscheduled.is_empty() {
            self.unscheduled.remove(&service.name);
        }
        wanted
    }

    /// It is now `now`, by a clock that only goes forward. Returns the Services with endpoints that start slowly whose weights are due to
    /// be moved on, by [`Desired::update`] or [`Desired::step`]; until they are, they are due again. To be called before each
    /// [`Desired::update`].
    pub fn tick(&mut self, now: Duration) -> BTreeSet<ObjectName> {
        self.now = now;
        let due = self.ramps.iter().filter(|(_, ramps)| ramps.next().is_some_and(|next| next <= now));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// Moves the weights of these Services on to now, after [`Desired::update`]: nothing else of them has changed.
    pub fn step(&mut self, state: &State, names: &BTreeSet<ObjectName>) -> Touched {
        let mut touched = Touched::default();
        for name in names {
            self.service(state, name, &mut touched);
        }
        touched
    }

    /// When [`Desired::tick`] next has something to tell; `None`: no endpoint is starting.
    pub fn next_tick(&self) -> Option<Duration> {
        self.ramps.values().filter_map(Ramps::next).min()
    }

    /// This node.
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// The claim that holds a frontend, if any.
    pub fn holder(&self, frontend: &Frontend) -> Option<Claim<'_>> {
        self.frontends.holder(frontend)
    }

    /// Every frontend that somebody holds.
    pub fn frontends(&self) -> impl Iterator<Item = Frontend> {
        self.frontends.all().filter(|frontend| self.holder(frontend).is_some())
    }

    /// The least and the greatest port of the frontends at addresses that the node holds: node ports, and other addresses of
    /// Services that are the node's own. The cost does not grow with the Services.
    pub fn ports_at_node(&self) -> Option<(u16, u16)> {
        let spans = self.node.addresses.iter().filter_map(|ip| self.frontends.ports_at(*ip));
        spans.chain(self.frontends.node_ports()).reduce(frontends::wider)
    }

    /// Whether the address is some Service's ClusterIP.
    pub fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        self.frontends.is_cluster_ip(ip)
    }

    /// Every ClusterIP.
    pub fn cluster_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.frontends.cluster_ips()
    }

    /// Whether some endpoint that is in use here has this address.
    pub fn is_endpoint(&self, ip: IpAddr) -> bool {
        self.endpoint_ips.contains_key(&ip)
    }

    /// The address of every endpoint that is in use here.
    pub fn endpoint_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoint_ips.keys().copied()
    }

    /// The ranges of the ServiceCIDRs.
    pub fn service_cidrs(&self) -> &BTreeSet<IpNet> {
        &self.service_cidrs
    }

    /// The targets of every Service.
    pub fn targets(&self) -> impl Iterator<Item = (&ObjectName, &Arc<Target>, &[Frontend])> {
        self.services.iter().flat_map(|(name, targets)| {
            targets.iter().map(move |(target, frontends)| (name, target, frontends.as_slice()))
        })
    }

    /// The targets of one Service.
    pub fn targets_of(&self, name: &ObjectName) -> impl Iterator<Item = (&ObjectName, &Arc<Target>, &[Frontend])> {
        self.services.get_key_value(name).into_iter().flat_map(|(name, targets)| {
            targets.iter().map(move |(target, frontends)| (name, target, frontends.as_slice()))
        })
    }

    /// The endpoints of a Service whose clients are to be remembered, each with the name and the protocol of its port.
    pub fn remembered(&self, service: &ObjectName) -> HashSet<(&str, Protocol, SocketAddr)> {
        let targets = self.targets_of(service).map(|(_, target, _)| target);
        let all = targets.flat_map(|target| target.remembered().map(move |endpoint| (&target.name, endpoint)));
        all.map(|(name, endpoint)| (&*name.port, name.protocol, endpoint)).collect()
    }

    /// Service ports whose Local policy finds nothing here.
    pub fn without_local(&self) -> WithoutLocal {
        self.without_local
    }

    /// What of Services is not done here, and why: of their annotations, and what is beyond the [`limits`].
    pub fn unscheduled(&self) -> impl Iterator<Item = &Ignored> {
        self.unscheduled.values().flatten()
    }

    /// The same by Service.
    pub fn unscheduled_by_service(&self) -> impl Iterator<Item = (&ObjectName, &[Ignored])> {
        self.unscheduled.iter().map(|(service, faults)| (service, faults.as_slice()))
    }

    /// Claims that lost their frontend to another Service's.
    pub fn conflicts(&self) -> Vec<Ignored> {
        self.lost_claims().into_iter().map(|(_, conflict)| conflict).collect()
    }

    /// The same, each with the Service that lost.
    pub fn lost_claims(&self) -> Vec<(ObjectName, Ignored)> {
        self.frontends.conflicts()
    }
}

impl WithoutLocal {
    fn count(&mut self, target: &Target, change: fn(usize, usize) -> usize) {
        let without = target.endpoints.any && target.endpoints.local.is_empty();
        let external = target.external_local && target.accessible;
        let family = target.family as usize;
        self.internal[family] = change(self.internal[family], usize::from(without && target.internal_local));
        self.external[family] = change(self.external[family], usize::from(without && external));
    }
}

/// Where the API server answers: at the endpoints of its Service, where we reach it ourselves (a load balancer's address, of which no
/// object tells), and on its own nodes at these ports. Whoever could put an
/// external address or a node port in front of it would cut every node off from it, this proxy included, which would never
/// hear of the end of that (see CVE-2020-8554).
fn api_server(state: &State) -> BTreeSet<Frontend> {
    let service = ObjectName::api_server();
    let endpoints = state.slices_of(&service).flat_map(|slice| {
        let ports = slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        ports.flat_map(|port| slice.endpoints.iter().map(|endpoint| (endpoint.ip, port.port)))
    });
    let own = state.api_server().iter().map(|address| (address.ip(), address.port()));
    let frontends = endpoints.take(MOST_API_SERVERS).chain(own).flat_map(|(ip, port)| {
        let (family, protocol) = (Family::of(ip), Protocol::Tcp);
        [Frontend::Address { ip, protocol, port }, Frontend::NodePort { family, protocol, port }]
    });
    frontends.collect()
}

fn hairpin_ips(target: &Target) -> BTreeSet<IpAddr> {
    target.endpoints.used().map(|endpoint| endpoint.ip()).collect()
}
