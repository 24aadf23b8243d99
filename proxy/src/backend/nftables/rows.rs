//! The rows of every map as typed values: what [`Desired`] comes to, and what is read back from the kernel.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::backend::digest;
use crate::desired::Desired;
use crate::desired::node_view::NodePorts;
use crate::desired::target::{Frontend, Role, ServicePortName, Target};
use crate::state::objects::Family;

use super::chains::{Chain, Choice, KNOWN_OFFSET, Keyed, LOCAL_OFFSET, List, Sticky};
use super::diff::in_order;
use super::draw::{Draw, Drawn, Turn};

/// The key of a row: which map, and the key in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// A row that belongs to one frontend.
    Of(Frontend, Part),
    /// `turns4`, `turns6`: the endpoint of a slot, for all frontends of a service port.
    Turn(Turn, u32),
    /// `hairpin4`, `hairpin6`: an endpoint's address, twice.
    Hairpin(IpAddr),
    /// `cluster_ips4`, `cluster_ips6`.
    ClusterIp(IpAddr),
    /// `service_cidrs4`, `service_cidrs6`.
    ServiceCidr(IpNet),
    /// `nodeport_addresses4`, `nodeport_addresses6`.
    NodePortAddress(IpAddr),
}

/// The rows that one frontend may have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Part {
    /// `frontends4`, `nodeports4` and so on: where its packets go.
    Verdict,
    /// `ranged4`, `ranged6`: where they go once the source has been found in `source_ranges`.
    Ranged,
    /// `source_ranges4`, `source_ranges6`: an allowed source.
    SourceRange(IpNet),
    /// `remember4` and so on: the chain that remembers clients.
    Remember,
    /// `endpoints4` and so on: the endpoint of a slot.
    Endpoint(u32),
}

impl Part {
    /// The first and the last part, in the order of keys.
    pub const ALL: [Self; 2] = [Self::Verdict, Self::Endpoint(u32::MAX)];
}

/// What a row says.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Value {
    /// A member of a set.
    Present,
    /// `goto` (or, in the `remember` maps, `jump`) a chain.
    Chain(Arc<str>),
    /// An endpoint.
    Endpoint(SocketAddr),
}

/// Rows in order.
pub type Rows = BTreeMap<Key, Value>;
/// Chains by name.
pub type Chains = BTreeMap<Arc<str>, Chain>;

/// Wanted rows, and the chains that they go to.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The rows.
    pub rows: Rows,
    /// Every chain that a row goes to, with those that it goes to in turn, without the skeleton's.
    pub chains: Chains,
    /// The known clients of service ports: one port may be at hundreds of frontends, and have thousands of endpoints.
    sticky: HashMap<(ServicePortName, Family, Whose), Arc<Sticky>>,
}

/// Whose clients are known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Whose {
    /// Those of a list's endpoints.
    One(List),
    /// Those of the endpoints of both.
    Both,
}

impl Wanted {
    /// The whole of a node's rows. `applied` is what the kernel has: an endpoint keeps its slot.
    pub fn all(desired: &Desired, applied: &Rows) -> Self {
        Self::without(desired, applied, &BTreeMap::new())
    }

    /// As [`Wanted::all`], but for these frontends.
    pub fn without(desired: &Desired, applied: &Rows, left_out: &BTreeMap<Frontend, String>) -> Self {
        let mut wanted = Self::default();
        for frontend in desired.frontends().filter(|frontend| !left_out.contains_key(frontend)) {
            wanted.frontend(desired, &frontend, applied);
        }
        wanted.rows.extend(desired.endpoint_ips().map(|ip| (Key::Hairpin(ip), Value::Present)));
        wanted.rows.extend(desired.cluster_ips().map(|ip| (Key::ClusterIp(ip), Value::Present)));
        wanted.node(desired);
        wanted
    }

    /// The frontends whose packets may pass a chain.
    pub fn frontends_through(&self, chain: &Arc<str>) -> BTreeSet<Frontend> {
        let mut through = BTreeSet::from([chain.clone()]);
        for name in in_order(&self.chains) {
            if self.chains[name].needs().iter().any(|needed| through.contains(needed.to_string().as_str())) {
                through.insert(name.clone());
            }
        }
        let goes = |(key, value): (&Key, &Value)| match (key, value) {
            (Key::Of(frontend, _), Value::Chain(name)) if through.contains(name) => Some(*frontend),
            _ => None,
        };
        self.rows.iter().filter_map(goes).collect()
    }

    /// The frontends whose endpoints take this turn, in this list.
    pub fn frontends_of_turn(&self, turn: Turn, list: List) -> BTreeSet<Frontend> {
        let takes = |(key, value): (&Key, &Value)| match (key, value) {
            (Key::Of(frontend, _), Value::Chain(name)) if Turn::taken(name, frontend).contains(&(turn, list)) => {
                Some(*frontend)
            }
            _ => None,
        };
        self.rows.iter().filter_map(takes).collect()
    }

    /// The rows that follow from the node and the ServiceCIDRs.
    pub fn node(&mut self, desired: &Desired) {
        let cidrs: Vec<_> = desired.service_cidrs().iter().map(IpNet::trunc).collect();
        self.rows.extend(IpNet::aggregate(&cidrs).into_iter().map(|cidr| (Key::ServiceCidr(cidr), Value::Present)));
        for family in Family::BOTH {
            if let NodePorts::Only(ips) = desired.node().node_ports(family) {
                self.rows.extend(ips.iter().map(|ip| (Key::NodePortAddress(*ip), Value::Present)));
            }
        }
    }

    /// The rows of one frontend: none if nobody holds it.
    pub fn frontend(&mut self, desired: &Desired, frontend: &Frontend, applied: &Rows) {
        let Some(claim) = desired.holder(frontend) else { return };
        let (node, target) = (desired.node(), claim.target);
        let keyed = Keyed { family: frontend.family(), node_port: matches!(frontend, Frontend::NodePort { .. }) };
        let drawn = [List::Cluster, List::Local].map(|list| Drawn::new(target, list));
        let mut choice = |list: List| {
            let drawn = drawn[list as usize].as_ref()?;
            let sticky = target.affinity.map(|_| self.sticky(target, Whose::One(list)));
            Some(Choice { list, slots: drawn.slots(), draw: drawn.draw, sticky })
        };
        let (cluster, local) = (choice(List::Cluster), choice(List::Local));
        let masquerades = node.masquerade_all || node.detector(keyed.family).is_some();
        let chain = match (claim.role, target.endpoints.any) {
            (_, false) => Chain::Refuse,
            (Role::ClusterIp, _) => match if target.internal_local { local } else { cluster } {
                None => Chain::Discard,
                Some(choice) if masquerades => Chain::Internal(keyed, choice),
                Some(choice) => Chain::pick(keyed, choice),
            },
            (_, true) => match (cluster, local) {
                (None, None) => Chain::Discard,
                (cluster, local) if target.external_local => Chain::ExternalLocal(keyed, cluster, local),
                (None, _) => Chain::Discard,
                (Some(cluster), _) => Chain::External(keyed, cluster),
            },
        };
        self.endpoints(frontend, &chain, &drawn, applied, node.counts());
        if let (Some(timeout), false) = (target.affinity, matches!(chain, Chain::Refuse | Chain::Discard)) {
            let sticky = self.sticky(target, Whose::Both);
            self.verdict(Key::Of(*frontend, Part::Remember), Chain::Remember(keyed.family, sticky, timeout));
        }
        if claim.role == Role::LoadBalancer && !target.source_ranges.is_empty() {
            let mut ranges = target.source_ranges.to_vec();
            if target.allows_own_addresses(node) {
                ranges.extend(target.ranged_ips.iter().copied().map(IpNet::from));
            }
            for range in IpNet::aggregate(&ranges) {
                self.rows.insert(Key::Of(*frontend, Part::SourceRange(range)), Value::Present);
            }
            self.verdict(Key::Of(*frontend, Part::Ranged), chain);
            self.verdict(Key::Of(*frontend, Part::Verdict), Chain::Ranged(keyed.family));
        } else {
            self.verdict(Key::Of(*frontend, Part::Verdict), chain);
        }
    }

    fn sticky(&mut self, target: &Target, whose: Whose) -> Arc<Sticky> {
        let make = || {
            let mut endpoints: Vec<SocketAddr> = match whose {
                Whose::One(List::Cluster) => target.endpoints.cluster.to_vec(),
                Whose::One(List::Local) => target.endpoints.local.to_vec(),
                Whose::Both => target.endpoints.used().collect(),
            };
            if whose == Whose::Both {
                endpoints.sort();
                endpoints.dedup();
            }
            let numbered = |endpoint| (endpoint, client_number(&target.name, endpoint));
            Arc::new(Sticky::new(target.name.protocol, endpoints.into_iter().map(numbered).collect()))
        };
        self.sticky.entry((target.name.clone(), target.family, whose)).or_insert_with(make).clone()
    }

    fn verdict(&mut self, key: Key, chain: Chain) {
        let name: Arc<str> = chain.to_string().into();
        self.chain(name.clone(), chain);
        self.rows.insert(key, Value::Chain(name));
    }

    fn chain(&mut self, name: Arc<str>, chain: Chain) {
        let in_skeleton = matches!(chain, Chain::Refuse | Chain::Discard | Chain::Ranged(_));
        if in_skeleton || self.chains.contains_key(&name) {
            return;
        }
        for needed in chain.needs() {
            self.chain(needed.to_string().into(), needed);
        }
        self.chains.insert(name, chain);
    }

    /// The endpoint rows of the lists that a chain chooses from.
    fn endpoints(
        &mut self,
        frontend: &Frontend,
        chain: &Chain,
        drawn: &[Option<Drawn>; 2],
        applied: &Rows,
        counts: bool,
    ) {
        let lists: Vec<&Choice> = match chain {
            Chain::Pick(_, choice) | Chain::Internal(_, choice) | Chain::External(_, choice) => vec![choice],
            Chain::ExternalLocal(_, cluster, local) => cluster.iter().chain(local).collect(),
            _ => Vec::new(),
        };
        for choice in lists {
            let Some(drawn) = &drawn[choice.list as usize] else { continue };
            let offset = if choice.list == List::Cluster { 0 } else { LOCAL_OFFSET };
            let key = |slot: u32| match drawn.draw {
                Draw::Turn(turn) => Key::Turn(turn, offset + slot),
                _ => Key::Of(*frontend, Part::Endpoint(offset + slot)),
            };
            if let (true, Some(sticky)) = (counts, &choice.sticky) {
                let known = sticky.endpoints.iter().zip(KNOWN_OFFSET..);
                self.rows.extend(known.map(|((endpoint, _), slot)| (key(slot), Value::Endpoint(*endpoint))));
            }
            // Another frontend of the service port may have put down those of its turn.
            if !self.rows.contains_key(&key(0)) {
                let placed = drawn.placed(key, applied).into_iter().zip(0..);
                self.rows.extend(placed.map(|(endpoint, slot)| (key(slot), Value::Endpoint(endpoint))));
            }
        }
    }
}

/// The number by which `affinity4` and `affinity6` know an endpoint of a service port. Two with one number (one chance
/// in four thousand million) would share their clients' memory, never their endpoints.
pub fn client_number(service_port: &ServicePortName, endpoint: SocketAddr) -> u32 {
    let digest = digest::narrow(&format!("{service_port} {} {endpoint}", service_port.protocol));
    // The kernel wants offset + modulus to fit in 32 bits.
    ((digest ^ (digest >> 32)) as u32).min(u32::MAX - 1)
}
