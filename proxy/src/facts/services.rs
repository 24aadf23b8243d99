//! The Services as a list: searched, sorted, a page at a time.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::searched::{Searched, Word};
use super::snapshot::{EndpointCounts, HealthFacts, Policies, ServiceEntry, Snapshot};
use crate::desired::target::Frontend;
use crate::traffic::{Counting, Total};

/// Rows of a page unless told otherwise, and at most.
const LIMIT: usize = 100;
const MOST: usize = 1_000;
/// Addresses and ports of a row, at most.
const NAMED: usize = 32;

/// What of the list is wanted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServicesQuery {
    /// Only Services whose `namespace/name`, type, scheduler, health or one of whose addresses or ports contains this, in small
    /// or large letters. Several words: all of them.
    pub search: String,
    /// The order.
    pub sort: Order,
    /// How many rows, 1 to 1,000; 100 unless told otherwise.
    pub limit: Option<usize>,
    /// The `continue` of the page before.
    #[serde(rename = "continue")]
    pub continue_at: Option<String>,
}

/// An order of Services. Those that are the same in it come by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// By namespace and name.
    #[default]
    Name,
    /// Those with the most new connections first.
    Connections,
    /// Those with the most new connections a second first.
    Rate,
    /// Those with the most active connections first.
    Active,
    /// Those with the most ready endpoints first.
    Endpoints,
    /// Those that are worst first.
    Health,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Name, Self::Connections, Self::Rate, Self::Active, Self::Endpoints, Self::Health];
}

/// What is made of a snapshot for the first who asks for it.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// The orders, of [`Order::ALL`]: indices of its Services.
    sorted: [OnceLock<Vec<u32>>; 6],
    /// What is searched, of each Service.
    searched: OnceLock<Vec<Searched>>,
}

/// Why there is no page.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `limit` is none.
    #[error("limit must be from 1 to {MOST}")]
    Limit,
    /// `continue` is none of ours.
    #[error("continue must be that of a page of the same search and sort")]
    Continue,
}

/// A port of a row.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RowPort {
    /// Its name, may be empty.
    pub name: String,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// Its number.
    pub port: u16,
    /// Its node port; absent: it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_port: Option<u16>,
}

/// A Service. Numbers of traffic are absent where they are not counted (`traffic` of `/api/v1/node` says what is).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `spec.type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its addresses: ClusterIPs, load balancer addresses, external IPs; 32 at most.
    pub addresses: Vec<String>,
    /// Its ports, 32 at most.
    pub ports: Vec<RowPort>,
    /// How many ports it has.
    pub ports_total: usize,
    /// Endpoints, those of the port and family that has the most.
    pub endpoints: EndpointCounts,
    /// How one of them is chosen.
    pub scheduler: String,
    /// Its policies.
    pub policies: Policies,
    /// How it is.
    pub health: HealthFacts,
    /// New connections to all of its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections: Option<u64>,
    /// New connections a second, over the last one to two seconds, or since the last time before that the counters were read; absent
    /// until they have been read twice, or if that was more than 30 s ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_second: Option<f64>,
    /// Connections that have not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active: Option<u64>,
    /// Packets, both ways.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    /// Their bytes, from the IP header on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// The answer of `/api/v1/services`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePage {
    /// How many Services there are.
    pub total: usize,
    /// How many of them the search finds.
    pub found: usize,
    /// How many of these come before this page.
    pub skipped: usize,
    /// The page.
    pub items: Vec<ServiceRow>,
    /// What to ask for to get the next page; absent: this is the last. Services that change their place meanwhile may be in
    /// two pages, or in none.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    pub continue_at: Option<String>,
}

impl ServiceEntry {
    /// All of its ports together; `None`: nobody counts.
    pub fn total(&self) -> Option<(Total, Option<f64>)> {
        let mut seen = self.ports.iter().filter_map(|port| port.seen.as_ref());
        let first = seen.next()?;
        Some(seen.fold((first.total, first.rate), |(total, rate), seen| {
            (total.plus(seen.total), rate.zip(seen.rate).map(|(a, b)| a + b))
        }))
    }

    /// Endpoints, those of the port and family that has the most.
    pub fn endpoints(&self) -> EndpointCounts {
        self.ports
            .iter()
            .map(|port| EndpointCounts::of(&port.target))
            .fold(EndpointCounts::default(), EndpointCounts::or_more)
    }

    fn addresses(&self) -> impl Iterator<Item = std::net::IpAddr> {
        let frontends = self.ports.iter().flat_map(|port| &port.frontends);
        frontends.filter_map(|frontend| match frontend {
            Frontend::Address { ip, .. } => Some(*ip),
            Frontend::NodePort { .. } => None,
        })
    }

    /// What it is in an order, as a number whose largest comes first.
    fn weight(&self, order: Order) -> u64 {
        let total = || self.total().unwrap_or_default();
        match order {
            Order::Name => 0,
            Order::Connections => total().0.connections,
            // Of positive numbers the bits are in order.
            Order::Rate => total().1.unwrap_or_default().to_bits(),
            Order::Active => total().0.active,
            Order::Endpoints => self.endpoints().ready as u64,
            Order::Health => self.health.state as u64,
        }
    }

    fn row(&self, counting: Counting) -> ServiceRow {
        let addresses: BTreeSet<_> = self.addresses().collect();
        let ports: BTreeSet<RowPort> = self.ports.iter().map(row_port).collect();
        let total = self.total();
        let policies = self.ports.first().map_or_else(Policies::default, |port| Policies::of(&port.target));
        let connections = total.filter(|_| counting.connections);
        ServiceRow {
            namespace: self.name.namespace.to_string(),
            name: self.name.name.to_string(),
            kind: self.kind.to_string(),
            addresses: addresses.into_iter().take(NAMED).map(|ip| ip.to_string()).collect(),
            ports_total: ports.len(),
            ports: ports.into_iter().take(NAMED).collect(),
            endpoints: self.endpoints(),
            scheduler: self.ports.first().map_or_else(String::new, |port| port.target.schedule.scheduler.to_string()),
            policies,
            health: self.health.clone(),
            connections: connections.map(|(total, _)| total.connections),
            connections_per_second: connections.and_then(|(_, rate)| rate),
            active: total.filter(|_| counting.active).map(|(total, _)| total.active),
            packets: total.filter(|_| counting.packets).map(|(total, _)| total.packets),
            bytes: total.filter(|_| counting.packets).map(|(total, _)| total.bytes),
        }
    }
}

fn row_port(port: &super::PortEntry) -> RowPort {
    let (mut number, mut node_port) = (0, None);
    for frontend in &port.frontends {
        match frontend {
            Frontend::Address { port, .. } => number = *port,
            Frontend::NodePort { port, .. } => node_port = Some(*port),
        }
    }
    let name = &port.target.name;
    RowPort { name: name.port.to_string(), protocol: name.protocol.to_string(), port: number, node_port }
}

impl Snapshot {
    fn order(&self, order: Order) -> &[u32] {
        let at = Order::ALL.iter().position(|one| *one == order).unwrap_or_default();
        self.made.sorted[at].get_or_init(|| {
            let mut all: Vec<u32> = (0..self.services.len() as u32).collect();
            if order != Order::Name {
                all.sort_by_cached_key(|at| std::cmp::Reverse(self.services[*at as usize].weight(order)));
            }
            all
        })
    }

    fn searched(&self) -> &[Searched] {
        self.made.searched.get_or_init(|| self.services.iter().map(Searched::of).collect())
    }

    /// What is counted.
    pub fn counting(&self) -> Counting {
        let traffic = &self.node.traffic;
        Counting {
            connections: traffic.counts_connections,
            active: traffic.counts_active,
            packets: traffic.counts_packets,
            forgets: false,
        }
    }
}

impl ServicePage {
    /// A page of the list.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn of(snapshot: &Snapshot, query: &ServicesQuery) -> Result<Self, Refusal> {
        let limit = query.limit.unwrap_or(LIMIT);
        if limit == 0 || limit > MOST {
            return Err(Refusal::Limit);
        }
        let words = Word::all(&query.search);
        let searched = if words.is_empty() { &[] } else { snapshot.searched() };
        let after = query.continue_at.as_deref().map(|text| Place::parse(text).ok_or(Refusal::Continue)).transpose()?;
        let mut page =
            Self { total: snapshot.services.len(), found: 0, skipped: 0, items: Vec::new(), continue_at: None };
        let mut last: Option<&ServiceEntry> = None;
        for at in snapshot.order(query.sort) {
            let Some(service) = snapshot.services.get(*at as usize) else { continue };
            if !searched.get(*at as usize).is_none_or(|one| one.has(&words)) {
                continue;
            }
            page.found += 1;
            if after.as_ref().is_some_and(|after| after.is_at_or_behind(service, query.sort)) {
                page.skipped += 1;
            } else if page.items.len() < limit {
                page.items.push(service.row(snapshot.counting()));
                last = Some(service);
            }
        }
        if page.found > page.skipped + page.items.len() {
            page.continue_at = last.map(|service| Place::text(service, query.sort));
        }
        Ok(page)
    }
}

/// The place of a Service in an order.
struct Place {
    weight: u64,
    name: String,
}

impl Place {
    fn text(service: &ServiceEntry, order: Order) -> String {
        format!("{:x}~{}", service.weight(order), service.name)
    }

    fn parse(text: &str) -> Option<Self> {
        let (weight, name) = text.split_once('~')?;
        Some(Self { weight: u64::from_str_radix(weight, 16).ok()?, name: name.to_owned() })
    }

    /// Whether the service's place is this one or before it.
    fn is_at_or_behind(&self, service: &ServiceEntry, order: Order) -> bool {
        match service.weight(order).cmp(&self.weight) {
            Ordering::Greater => true,
            Ordering::Less => false,
            // As the names of objects are ordered: by namespace, then by name.
            Ordering::Equal => {
                let (namespace, name) = self.name.split_once('/').unwrap_or(("", &self.name));
                (&*service.name.namespace, &*service.name.name) <= (namespace, name)
            }
        }
    }
}

/// The rows of all Services.
impl Snapshot {
    /// The Service of this name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceEntry> {
        let wanted = (namespace, name);
        let at = self.services.binary_search_by(|one| (&*one.name.namespace, &*one.name.name).cmp(&wanted)).ok()?;
        self.services.get(at)
    }

    /// Empty, of this node.
    pub fn new(node: super::NodeFacts) -> Self {
        Self {
            number: 0,
            node,
            services: Vec::new(),
            history: Vec::<Arc<_>>::new(),
            ignored: super::IgnoredPage::default(),
            made: Made::default(),
        }
    }
}
