//! Which changes of a Service may wait: see `portions.rs`.

use super::target::Frontend;
use super::{Desired, limits};
use crate::state::objects::Service;

impl Desired {
    /// Whether a Service has a frontend, or its place among those that claim it, that by this object it has no more: somebody else may be to have
    /// it.
    pub fn gives_up(&self, service: &Service) -> bool {
        let ips = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
        let still = |frontend: &Frontend| match *frontend {
            Frontend::Address { ip, protocol, port } => {
                ips.iter().any(|ips| ips.contains(&ip))
                    && service.ports.iter().any(|one| (one.protocol, one.port) == (protocol, port))
            }
            Frontend::NodePort { protocol, port, .. } => {
                service.ports.iter().any(|one| (one.protocol, one.node_port) == (protocol, port))
            }
        };
        let had = self.services.get(&service.name).into_iter().flatten();
        had.into_iter().any(|(target, claimed)| target.created != service.created || !claimed.iter().all(still))
    }

    /// How many frontends a Service asks for.
    pub fn frontends_of(&self, service: &Service) -> usize {
        let addresses = service.cluster_ips.len() + service.external_ips.len() + service.load_balancer_ips.len();
        let node_ports = service.ports.iter().filter(|port| port.node_port > 0).count() * service.cluster_ips.len();
        service.ports.len() * addresses + node_ports
    }

    /// How many ports of a Service nftables needs chains of their own for.
    pub fn chains(&self, service: &Service) -> usize {
        limits::chains(service, &self.node)
    }
}
