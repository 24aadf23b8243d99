//! What one Service may come to on a node. A Service is written by a tenant, and its ports, addresses, endpoints and source
//! ranges multiply: an object of 1.5 MiB can ask for more rows than a kernel holds. What is beyond is left out and told;
//! the Services beside it are served. How many Services a tenant may have is for the cluster's quotas to say.

use std::mem;

use crate::scheduler::{Scheduler, slots};
use crate::state::objects::{EndpointSlice, Family, Ignored, ObjectName, Service};

use super::endpoints::{EndpointLists, Merged};
use super::node_view::NodeView;
use super::scheduling;
use super::target::{Role, Target};

/// Endpoints of a service port in one family. Kubernetes has 150,000 pods in all.
pub const ENDPOINTS: usize = 65_536;
/// Frontends of a Service: addresses × ports, and node ports.
pub const FRONTENDS: usize = 32_768;
/// Rows of a Service: for each frontend its slots, and the source ranges where it has any.
pub const ROWS: usize = 262_144;

/// Ports of a Service that nftables needs chains of their own for: those with ClientIP affinity or a turn. A chain with its rules
/// is a kilobyte or two of the kernel's memory, and for so many at once everybody's changes wait.
pub const CHAINS: usize = 1000;
/// Rules that nftables needs for ClientIP affinity: two or more for each endpoint of a port. They are in chains that are written anew
/// whenever one of the endpoints comes, goes or is not ready, and the kernel takes the square of a chain's length to read it back. So
/// many of one port …
pub const STICKY_OF_PORT: usize = 4096;
/// … and of a Service.
pub const STICKY: usize = 16_384;
/// Entries of slices that are looked at for a Service, once for each of its ports that they are of: most are looked at again at each
/// change of any, also those that are not ready, which have no rows.
pub const LOOKS: usize = ROWS;
/// So many rules of affinity cost as much as one more port with few: the largest Service has half of what one sync brings.
const STICKY_LIKE_A_PORT: usize = 16;
/// Of [`work`], what nobody notices.
const FEW: usize = 4096;

/// What a Service has left of it, and what did not fit.
#[derive(Debug)]
pub(super) struct Room {
    frontends: usize,
    rows: usize,
    looks: usize,
    chains: usize,
    chains_left_out: usize,
    sticky: usize,
    sticky_left_out: usize,
    frontends_left_out: usize,
    endpoints_left_out: usize,
    own_ports: Vec<u16>,
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            frontends: FRONTENDS,
            rows: ROWS,
            looks: LOOKS,
            chains: CHAINS,
            chains_left_out: 0,
            sticky: STICKY,
            sticky_left_out: 0,
            frontends_left_out: 0,
            endpoints_left_out: 0,
            own_ports: Vec::new(),
        }
    }

    /// Whether there is none: then nothing more of the Service need be looked at.
    pub(super) fn is_full(&self) -> bool {
        self.frontends == 0 || self.rows == 0 || self.looks == 0
    }

    /// How many entries of slices may still be looked at.
    pub(super) fn looks(&self) -> usize {
        self.looks
    }

    /// The endpoints of a service port were merged.
    pub(super) fn merged(&mut self, merged: &Merged<'_>) {
        self.looks = self.looks.saturating_sub(merged.entries);
        self.endpoints_left_out += merged.left_out;
    }

    /// Takes what a frontend of this role needs; whether it was there.
    pub(super) fn take(&mut self, rows: usize) -> bool {
        let fits = self.frontends > 0 && rows <= self.rows;
        if fits {
            self.frontends -= 1;
            self.rows -= rows;
        } else {
            // Whoever comes later must not fit where an earlier one did not: what is served is the beginning of the object.
            self.frontends = 0;
            self.frontends_left_out += 1;
        }
        fits
    }

    /// Whether a port may have chains of its own.
    pub(super) fn take_chain(&mut self) -> bool {
        let has = self.chains > 0;
        self.chains = self.chains.saturating_sub(1);
        self.chains_left_out += usize::from(!has);
        has
    }

    /// Whether the clients of a port may be remembered, which takes so many rules.
    pub(super) fn take_sticky(&mut self, rules: usize) -> bool {
        let has = rules <= STICKY_OF_PORT.min(self.sticky);
        if has {
            self.sticky -= rules;
        } else {
            self.sticky_left_out += 1;
            // As for frontends; but one port that is too large by itself takes nothing from the others.
            self.sticky = if rules > STICKY_OF_PORT { self.sticky } else { 0 };
        }
        has
    }

    /// Frontends that were not even looked at.
    pub(super) fn skipped(&mut self, frontends: usize) {
        self.frontends_left_out = self.frontends_left_out.saturating_add(frontends);
    }

    /// A node port that this process itself answers at.
    pub(super) fn own_port(&mut self, port: u16) {
        if self.own_ports.len() < 10 && !self.own_ports.contains(&port) {
            self.own_ports.push(port);
        }
    }

    /// What is to be told.
    pub(super) fn faults(&mut self, service: &ObjectName) -> Vec<Ignored> {
        let mut whys = Vec::new();
        if self.frontends_left_out > 0 {
            whys.push(format!(
                "{} frontends ignored: a Service has room for {FRONTENDS}, for {ROWS} rows (frontends × endpoints, and source \
                 ranges), and for {LOOKS} endpoints × ports, ready or not; make several Services of it",
                self.frontends_left_out
            ));
        }
        if self.endpoints_left_out > 0 {
            let left_out = self.endpoints_left_out;
            whys.push(format!(
                "{left_out} endpoints ignored: a port of a Service has room for {ENDPOINTS} of a family, all ports together for \
                 {LOOKS}, ready or not"
            ));
        }
        if self.chains_left_out > 0 {
            let left_out = self.chains_left_out;
            whys.push(format!(
                "{left_out} ports have no ClientIP affinity and no turn (rr, wrr): a Service has room for {CHAINS}"
            ));
        }
        if self.sticky_left_out > 0 {
            let left_out = self.sticky_left_out;
            whys.push(format!(
                "{left_out} ports have no ClientIP affinity: a port has room for {STICKY_OF_PORT} rules of it (two for each endpoint, \
                 three where it has a node port), a Service for {STICKY}"
            ));
        }
        let own_ports = mem::take(&mut self.own_ports);
        whys.extend(own_ports.iter().map(|port| {
            format!("nodePort {port} ignored: Kubeferry itself answers there (healthzBindAddress, metricsBindAddress)")
        }));
        let what = format!("Service {service}");
        whys.into_iter().map(|why| Ignored { what: what.clone(), why }).collect()
    }
}

/// Whether endpoints are taken in turn.
pub(super) fn takes_turns(scheduler: Scheduler) -> bool {
    matches!(scheduler, Scheduler::Rr | Scheduler::Wrr)
}

/// How many rules know the clients of a port again, in each list by each way that it is looked up, and remember them.
pub(super) fn sticky_rules(endpoints: &EndpointLists, node_port: bool) -> usize {
    (endpoints.cluster.len() + endpoints.local.len()) * (2 + usize::from(node_port))
}

/// How much of a Service is looked at when any of it changes, at most: its endpoints, ready or not, at each of their ports and each
/// address. What this costs to know depends on the number of slices alone.
pub fn work<'a>(service: &Service, slices: impl Iterator<Item = &'a EndpointSlice>) -> usize {
    let entries = slices.map(|slice| slice.endpoints.len().saturating_mul(slice.ports.len()));
    let entries = entries.fold(0_usize, usize::saturating_add);
    // A ClusterIP and node ports are there once for each family, of which a slice has one.
    let addresses = 2 + service.external_ips.len() + service.load_balancer_ips.len();
    entries.saturating_mul(addresses).min(ROWS)
}

/// What of [`work`] anybody notices, apart from what is written for it.
pub fn noticed(work: usize) -> usize {
    if work > FEW { work } else { 0 }
}

/// How many ports of a Service nftables needs chains of their own for, as far as there is room; or how many such ports its chains come
/// to where they are long. `work` is what [`work`] says of it.
pub(super) fn chains(service: &Service, node: &NodeView, work: usize) -> usize {
    let scheduler = scheduling::schedule(service.scheduling.as_deref(), node).scheduler;
    if service.affinity.is_none() && !takes_turns(scheduler) {
        return 0;
    }
    let of_family = |family| service.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
    let families = Family::BOTH.into_iter().filter(|family| of_family(*family)).count();
    let ports = (service.ports.len() * families).min(CHAINS);
    let rules = if service.affinity.is_some() { work.saturating_mul(3).min(STICKY) } else { 0 };
    ports.max(rules / STICKY_LIKE_A_PORT)
}

/// How many rows a frontend of this role needs on the datapath that needs most.
pub(super) fn rows(target: &Target, role: Role) -> usize {
    let EndpointLists { cluster, cluster_weights, local, local_weights, .. } = &target.endpoints;
    let slots = slots::count(&target.schedule, cluster.len(), cluster_weights)
        + slots::count(&target.schedule, local.len(), local_weights);
    let ranges = if role == Role::LoadBalancer { target.source_ranges.len() } else { 0 };
    1 + slots + ranges
}
