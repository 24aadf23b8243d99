//! Whose UDP flows a change may have made stale, and what is looked at to find them. Not only endpoints that go do so: a frontend
//! that comes, or that another Service takes over, has clients already, whose flows lead elsewhere or to nobody.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use crate::conntrack::UdpService;
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::state::objects::{ObjectName, Protocol};

/// The Services that hold the UDP frontends that were touched. A frontend that nobody holds any more has nobody to go to.
pub fn holders(desired: &Desired, touched: &Touched) -> BTreeSet<ObjectName> {
    let udp = touched.frontends.iter().filter(|frontend| frontend.protocol() == Protocol::Udp);
    udp.filter_map(|frontend| Some(desired.holder(frontend)?.target.name.service.clone())).collect()
}

/// The Services that hold any UDP frontend: what somebody else did to the tables, until it was repaired, may concern each of them.
pub fn all(desired: &Desired) -> BTreeSet<ObjectName> {
    holders(desired, &Touched { frontends: desired.frontends().collect(), ..Touched::default() })
}

/// The UDP ports of these Services.
pub fn services(desired: &Desired, names: &BTreeSet<ObjectName>) -> Vec<UdpService> {
    let mut services = Vec::new();
    for (_, target, frontends) in names.iter().flat_map(|name| desired.targets_of(name)) {
        if target.name.protocol != Protocol::Udp {
            continue;
        }
        let mut service =
            UdpService { serving: target.endpoints.serving.iter().copied().collect(), ..UdpService::default() };
        // What another Service holds is not ours to clean.
        let held =
            |frontend: &&Frontend| desired.holder(frontend).is_some_and(|claim| claim.target.name == target.name);
        for frontend in frontends.iter().filter(held) {
            match frontend {
                Frontend::Address { ip, port, .. } => drop(service.addresses.insert(SocketAddr::new(*ip, *port))),
                Frontend::NodePort { port, .. } => drop(service.node_ports.insert(*port)),
            }
        }
        services.push(service);
    }
    services
}
