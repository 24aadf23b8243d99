//! Which changes of a Service may wait: see `portions.rs`.

use std::collections::HashSet;
use std::net::IpAddr;

use super::target::Frontend;
use super::{Desired, limits};
use crate::state::objects::{Service, ServicePort};

impl Desired {
    /// Whether a Service has a frontend, or its place among those that claim it, that by this object it has no more: somebody else may be to have
    /// it.
    pub fn gives_up(&self, service: &Service) -> bool {
        let Some(had) = self.services.get(&service.name) else { return false };
        if had.iter().any(|(target, _)| target.created != service.created) {
            return true;
        }
        let ips = service.cluster_ips.iter().chain(&service.external_ips).chain(&service.load_balancer_ips);
        !asks_for_all(had.iter().flat_map(|(_, claimed)| claimed), ips, service.ports.iter())
    }

    /// How many frontends a Service asks for.
    pub fn frontends_of(&self, service: &Service) -> usize {
        let addresses = service.cluster_ips.len() + service.external_ips.len() + service.load_balancer_ips.len();
        let node_ports = service.ports.iter().filter(|port| port.node_port > 0).count() * service.cluster_ips.len();
        service.ports.len() * addresses + node_ports
    }

    /// What the chains of its own cost that nftables needs for a Service, in ports that have such. `work` is what [`limits::work`] says
    /// of it.
    pub fn chains(&self, service: &Service, work: usize) -> usize {
        limits::chains(service, &self.node, work)
    }
}

/// Whether all of these frontends are at these addresses and ports. There may be thousands of each.
fn asks_for_all<'a>(
    mut claimed: impl Iterator<Item = &'a Frontend>,
    ips: impl Iterator<Item = &'a IpAddr>,
    ports: impl Iterator<Item = &'a ServicePort> + Clone,
) -> bool {
    let ips: HashSet<_> = ips.copied().collect();
    let node_ports: HashSet<_> = ports.clone().map(|one| (one.protocol, one.node_port)).collect();
    let ports: HashSet<_> = ports.map(|one| (one.protocol, one.port)).collect();
    claimed.all(|frontend| match *frontend {
        Frontend::Address { ip, protocol, port } => ips.contains(&ip) && ports.contains(&(protocol, port)),
        Frontend::NodePort { protocol, port, .. } => node_ports.contains(&(protocol, port)),
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::desired::tests::{desired, ip, service, with_detector};
    use crate::state::objects::ObjectName;

    /// So many ports with node ports, at three addresses.
    fn many(count: u16) -> Service {
        let [port] = <[_; 1]>::try_from(service().ports).unwrap();
        let numbered =
            |n| ServicePort { name: format!("p{n}").into(), port: n + 1, node_port: 30_000 + n, ..port.clone() };
        Service { ports: (0..count).map(numbered).collect(), ..service() }
    }

    #[test]
    fn who_gives_up_a_port_a_node_port_an_address_or_its_age_is_known() {
        let had = many(3);
        let desired = desired(&with_detector(), had.clone(), vec![]);
        let but = |change: fn(&mut Service)| {
            let mut now = had.clone();
            change(&mut now);
            desired.gives_up(&now)
        };
        assert!(!but(|_| {}));
        assert!(!but(|now| now.ports.reverse()) && !but(|now| now.external_ips.push(ip("198.51.100.9"))));
        assert!(!but(|now| std::mem::swap(&mut now.external_ips, &mut now.load_balancer_ips)), "in another role");
        assert!(but(|now| drop(now.ports.pop())) && but(|now| now.ports[1].port = 99));
        assert!(but(|now| now.ports[1].node_port = 0) && but(|now| now.external_ips.clear()));
        assert!(but(|now| now.load_balancer_ips.clear()) && but(|now| now.cluster_ips.clear()));
        assert!(but(|now| now.created = Some(jiff::Timestamp::UNIX_EPOCH)));
        assert!(!but(|now| now.name = ObjectName::new("default", "other")), "who had nothing");
    }

    #[test]
    fn each_port_and_address_is_looked_at_a_few_times_and_not_for_each_frontend() {
        let had = many(500);
        let desired = desired(&with_detector(), had.clone(), vec![]);
        let claimed: Vec<_> = desired.services.values().flatten().flat_map(|(_, claimed)| claimed).collect();
        assert_eq!(claimed.len(), 2000);
        let looked = Cell::new(0);
        let count = || looked.set(looked.get() + 1);
        let ips = [&had.cluster_ips, &had.external_ips, &had.load_balancer_ips].into_iter().flatten();
        let ports = had.ports.iter().inspect(|_| count());
        assert!(asks_for_all(claimed.into_iter(), ips.inspect(|_| count()), ports));
        assert_eq!(looked.get(), 2 * 500 + 3);
    }
}
