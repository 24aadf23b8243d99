//! The cluster as the events tell it. Applying an event that changes nothing queues nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::changes::Changes;
use super::event::{Event, Kind};
use super::objects::{EndpointSlice, Ignored, Node, ObjectName, Service};

/// Every object in force, and what changed since [`State::take_changes`] was last called.
#[derive(Debug, Default)]
pub struct State {
    services: BTreeMap<ObjectName, Service>,
    /// By Service; sorted by the slice's name. Most Services have one: a map in a map would cost a node for each.
    slices: BTreeMap<ObjectName, Vec<EndpointSlice>>,
    slice_owner: BTreeMap<ObjectName, ObjectName>,
    /// As it was last; kept when it goes.
    node: Option<Node>,
    node_is_gone: bool,
    service_cidrs: BTreeMap<Arc<str>, Vec<IpNet>>,
    api_server: BTreeSet<SocketAddr>,
    listed: BTreeSet<Kind>,
    faults: BTreeMap<(Kind, ObjectName), Vec<Ignored>>,
    /// How often these have changed.
    fault_changes: u64,
    changes: Changes,
}

impl State {
    /// Takes one event in.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Service(service) => {
                if self.services.get(&service.name) != Some(&service) {
                    self.service_changed(&service.name);
                    self.services.insert(service.name.clone(), service);
                }
            }
            Event::ServiceGone(name) => {
                if self.services.remove(&name).is_some() {
                    self.service_changed(&name);
                }
            }
            Event::Slice(slice) => self.slice(slice),
            Event::SliceGone(name) => {
                if let Some(owner) = self.slice_owner.remove(&name) {
                    self.remove_slice(&owner, &name);
                }
            }
            Event::Node(node) => {
                self.changes.node |= self.node.as_ref() != Some(&node);
                (self.node, self.node_is_gone) = (Some(node), false);
            }
            Event::NodeGone => self.node_is_gone = self.node.is_some(),
            Event::ServiceCidr(cidr) => {
                if self.service_cidrs.get(&cidr.name) != Some(&cidr.cidrs) {
                    self.changes.service_cidrs = true;
                    self.service_cidrs.insert(cidr.name, cidr.cidrs);
                }
            }
            Event::ServiceCidrGone(name) => {
                self.changes.service_cidrs |= self.service_cidrs.remove(&name.name).is_some();
            }
            Event::ApiServer(addresses) => {
                if self.api_server != addresses {
                    self.api_server = addresses;
                    // Its Service is where it is looked at who may have these.
                    self.changes.services.insert(ObjectName::api_server());
                }
            }
            Event::Listed(kind) => {
                self.listed.insert(kind);
            }
            Event::Ignored { kind, name, faults } => {
                let changed = if faults.is_empty() {
                    self.faults.remove(&(kind, name)).is_some()
                } else {
                    self.faults.insert((kind, name), faults.into_iter().map(Ignored::tamed).collect());
                    true
                };
                self.fault_changes += u64::from(changed);
            }
        }
    }

    fn slice(&mut self, mut slice: EndpointSlice) {
        let moved = self.slice_owner.get(&slice.name).filter(|owner| **owner != slice.service).cloned();
        if let Some(owner) = moved {
            self.remove_slice(&owner, &slice.name);
        }
        self.slice_owner.insert(slice.name.clone(), slice.service.clone());
        let owner = slice.service.clone();
        let trigger = slice.trigger_time.map(|time| (slice.family, time, owner.clone()));
        let slices = self.slices.entry(owner.clone()).or_default();
        match slices.binary_search_by(|other| other.name.cmp(&slice.name)) {
            // The trigger time alone is no change: it says when something else changed.
            Ok(at) if slices[at].same_endpoints(&slice) => return,
            Ok(at) => {
                share_ports(slices, at, &mut slice);
                slices[at] = slice;
            }
            Err(at) => {
                share_ports(slices, at, &mut slice);
                slices.reserve_exact(1);
                slices.insert(at, slice);
            }
        }
        self.endpoints_changed(&owner);
        trigger.into_iter().for_each(|trigger| self.changes.triggered(trigger));
    }

    fn remove_slice(&mut self, owner: &ObjectName, name: &ObjectName) {
        if let Some(slices) = self.slices.get_mut(owner) {
            slices.retain(|slice| slice.name != *name);
            if slices.is_empty() {
                self.slices.remove(owner);
            }
            self.endpoints_changed(owner);
        }
    }

    fn service_changed(&mut self, name: &ObjectName) {
        self.changes.services.insert(name.clone());
        self.changes.service_changes += 1;
    }

    fn endpoints_changed(&mut self, service: &ObjectName) {
        self.changes.services.insert(service.clone());
        self.changes.endpoints_of.insert(service.clone());
        self.changes.endpoint_changes += 1;
    }

    /// What changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        mem::take(&mut self.changes)
    }

    /// What has changed so far and was not taken yet.
    pub fn changes(&self) -> &Changes {
        &self.changes
    }

    /// Whether Services and EndpointSlices have both been listed: nothing is written to the kernel before.
    pub fn is_complete(&self) -> bool {
        self.listed.contains(&Kind::Service) && self.listed.contains(&Kind::EndpointSlice)
    }

    /// Whether this kind has been listed once.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listed.contains(&kind)
    }

    /// Every Service in force, by name.
    pub fn services(&self) -> &BTreeMap<ObjectName, Service> {
        &self.services
    }

    /// The slices of a Service, by slice name.
    pub fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flatten()
    }

    /// Our own Node, once it is known. One that is gone stays as it was last: the machine goes on, and its addresses decide where node ports
    /// answer.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Whether our own Node was there and is gone.
    pub fn node_is_gone(&self) -> bool {
        self.node_is_gone
    }

    /// Where we ourselves reach the API server.
    pub fn api_server(&self) -> &BTreeSet<SocketAddr> {
        &self.api_server
    }

    /// The ranges of every ServiceCIDR.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flatten().copied().collect()
    }

    /// What is left out of objects at the moment, and why.
    pub fn faults(&self) -> impl Iterator<Item = &Ignored> {
        self.faults.values().flatten()
    }

    /// The same by object.
    pub fn faults_by_object(&self) -> impl Iterator<Item = (Kind, &ObjectName, &[Ignored])> {
        self.faults.iter().map(|((kind, name), faults)| (*kind, name, faults.as_slice()))
    }

    /// A number that is another one whenever they are others.
    pub fn fault_changes(&self) -> u64 {
        self.fault_changes
    }
}

/// Slices of a Service have the same ports, nearly always, and may have thousands: they are kept once, or at least their names.
fn share_ports(slices: &[EndpointSlice], at: usize, slice: &mut EndpointSlice) {
    let near = [at.wrapping_sub(1), at, at + 1].map(|near| slices.get(near));
    if let Some(same) = near.into_iter().flatten().find(|near| near.ports == slice.ports) {
        slice.ports = same.ports.clone();
        return;
    }
    let others = near.into_iter().flatten().next().map(|near| &near.ports);
    let (Some(others), Some(ports)) = (others, Arc::get_mut(&mut slice.ports)) else { return };
    for (port, other) in ports.iter_mut().zip(&**others).filter(|(port, other)| port.name == other.name) {
        port.name = other.name.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::objects::{Family, Protocol, SlicePort};

    #[test]
    fn slices_with_the_same_ports_keep_them_once() {
        let service = ObjectName::new("default", "web");
        let slice = |name: &str, number: u16| EndpointSlice {
            name: ObjectName::new("default", name),
            service: service.clone(),
            family: Family::V4,
            ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: number }].into(),
            endpoints: Vec::new(),
            trigger_time: None,
        };
        let mut state = State::default();
        for (name, port) in [("b", 80), ("c", 80), ("a", 80), ("c", 81), ("c", 80), ("d", 80), ("e", 81)] {
            state.apply(Event::Slice(slice(name, port)));
        }
        let ports: Vec<_> = state.slices_of(&service).map(|slice| &slice.ports).collect();
        assert!(ports[..4].windows(2).all(|pair| Arc::ptr_eq(pair[0], pair[1])), "{ports:?}");
        assert_eq!((ports.len(), ports[4][0].port), (5, 81));
        assert!(Arc::ptr_eq(&ports[4][0].name, &ports[3][0].name), "the name at least");
    }
}
