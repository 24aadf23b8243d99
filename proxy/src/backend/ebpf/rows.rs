//! What [`Desired`] comes to as rows of the maps. Pure: where lists of endpoints lie in `slots` is decided by the diff.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use kubeferry_ebpf_common::config::{MAX_SERVICE_CIDRS, address_is};
use kubeferry_ebpf_common::frontend::draw;
use kubeferry_ebpf_common::{Address, Config, Frontend as Row, FrontendKey, Member, MemberKey, Prefix, RangeKey, Slot};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::backend::digest;
use crate::desired::Desired;
use crate::desired::node_view::{Detector, NodePorts};
use crate::desired::target::{Frontend, Role, ServicePortName, Target};
use crate::scheduler::slots::slots;
use crate::scheduler::{HashKey, Schedule, Scheduler};
use crate::settings::SocketLb;
use crate::state::objects::{Family, Protocol};

/// The Cluster list and the Local list, as indices.
pub const LISTS: [u32; 2] = [Member::CLUSTER, Member::LOCAL];

/// The rows of frontends that are looked at, and of the service ports that have them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wanted {
    /// Every frontend that is looked at; `None`: it has no row.
    pub frontends: BTreeMap<FrontendKey, Option<FrontendRow>>,
    /// The service ports of those that have a row, by [`service_number`].
    pub services: BTreeMap<u64, ServiceRows>,
    /// The service ports' names, for messages and for people.
    pub names: BTreeMap<u64, String>,
}

/// The value of a row of `frontends` but for the places of its lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrontendRow {
    /// The service port.
    pub service: u64,
    /// Bits of [`Row::REFUSE`] and so on.
    pub flags: u32,
    /// [`Row::affinity`].
    pub affinity: u32,
}

/// What all frontends of a service port in one family share.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServiceRows {
    /// The Cluster list and the Local list, without their rows of `backends`, which the diff gives.
    pub lists: [Vec<Slot>; 2],
    /// How their slots are drawn: [`draw::RANDOM`] and so on.
    pub draw: u32,
    /// With affinity: the endpoints. When they joined is left at 0, which the diff knows better.
    pub members: BTreeMap<MemberKey, Member>,
    /// Keys of `source_ranges`.
    pub ranges: BTreeSet<Range>,
    /// [`Row::NESTED`].
    pub nested: bool,
}

/// A key of `source_ranges` with its length in bits.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, FromBytes, IntoBytes, Immutable)]
pub struct Range {
    /// How many bits count.
    pub length: u32,
    /// The bits.
    pub key: RangeKey,
}

impl Range {
    /// The value of each; nobody but the check for what others have written asks for it.
    pub const VALUE: u32 = 1;
}

impl Wanted {
    /// Every frontend of a node.
    pub fn all(desired: &Desired) -> Self {
        Self::of(desired, desired.frontends())
    }

    /// These frontends.
    pub fn of(desired: &Desired, frontends: impl Iterator<Item = Frontend>) -> Self {
        let mut wanted = Self::default();
        for frontend in frontends {
            wanted.frontend(desired, &frontend);
        }
        wanted
    }

    fn frontend(&mut self, desired: &Desired, frontend: &Frontend) {
        let key = key_of(frontend);
        self.frontends.insert(key, None);
        let Some(claim) = desired.holder(frontend) else { return };
        let target = claim.target;
        let service = service_number(&target.name, target.family);
        let rows = self.services.entry(service).or_insert_with(|| service_rows(target, service, desired));
        let mut flags = 0;
        let mut set = |flag: u32, is: bool| flags |= if is { flag } else { 0 };
        set(Row::REFUSE, !target.endpoints.any);
        set(Row::EXTERNAL, claim.role != Role::ClusterIp);
        set(Row::LOCAL, if claim.role == Role::ClusterIp { target.internal_local } else { target.external_local });
        set(Row::RANGED, claim.role == Role::LoadBalancer && !target.source_ranges.is_empty());
        set(Row::NESTED, rows.nested);
        let affinity = target.affinity.map_or(0, |timeout| u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1));
        self.frontends.insert(key, Some(FrontendRow { service, flags, affinity }));
        self.names
            .entry(service)
            .or_insert_with(|| format!("{} ({} {})", target.name, target.name.protocol, target.family.as_str()));
    }
}

fn service_rows(target: &Target, service: u64, desired: &Desired) -> ServiceRows {
    let node = desired.node();
    let counts = target.schedule.scheduler.counts_connections();
    let list = |endpoints: &[SocketAddr], weights: &[u16]| -> Vec<Slot> {
        let slot = |index: u32| {
            let endpoint = endpoints.get(index as usize)?;
            Some(Slot {
                address: endpoint.ip().into(),
                port: endpoint.port().to_be(),
                flags: if node.holds(endpoint.ip()) { Slot::HOST } else { 0 },
                backend: 0,
                weight: if counts { weights.get(index as usize).map_or(1, |weight| u32::from(*weight)) } else { 0 },
            })
        };
        slots(&target.schedule, endpoints, weights).into_iter().filter_map(slot).collect()
    };
    let endpoints = &target.endpoints;
    let lists =
        [list(&endpoints.cluster, &endpoints.cluster_weights), list(&endpoints.local, &endpoints.local_weights)];
    let mut members = BTreeMap::new();
    if target.affinity.is_some() {
        for (list, bit) in lists.iter().zip(LISTS) {
            for slot in list {
                let key = MemberKey { service, address: slot.address, port: slot.port, reserved: [0; 3] };
                let new = Member { since: 0, lists: 0, backend: slot.backend, flags: slot.flags, reserved: [0; 3] };
                members.entry(key).or_insert(new).lists |= bit;
            }
        }
    }
    let mut ranges = target.source_ranges.to_vec();
    if target.allows_own_addresses(node) {
        ranges.extend(target.ranged_ips.iter().copied().map(IpNet::from));
    }
    let range = |net: IpNet| {
        let family_bits = if net.addr().is_ipv4() { 96 } else { 0 };
        let length = RangeKey::SERVICE_BITS + family_bits + u32::from(net.prefix_len());
        Range { length, key: RangeKey::new(service, net.network().into()) }
    };
    ServiceRows {
        lists,
        draw: draw_of(&target.schedule),
        members,
        ranges: IpNet::aggregate(&ranges).into_iter().map(range).collect(),
        nested: endpoints.used().any(|endpoint| desired.is_ours(target.name.protocol, endpoint)),
    }
}

/// The identity of a service port in one family, the same over restarts. Two with one number would share their endpoints.
pub fn service_number(name: &ServicePortName, family: Family) -> u64 {
    digest::narrow(&format!("{name} {} {}", name.protocol, family.as_str()))
}

/// How slots are drawn.
fn draw_of(schedule: &Schedule) -> u32 {
    match (schedule.scheduler, schedule.hash_key) {
        (Scheduler::Random, _) => draw::RANDOM,
        (Scheduler::Rr | Scheduler::Wrr, _) => draw::TURN,
        (Scheduler::Lc | Scheduler::Wlc, _) => draw::LEAST,
        (Scheduler::Sed, _) => draw::SHORTEST,
        (Scheduler::Nq, _) => draw::NEVER_QUEUE,
        (Scheduler::Dh, _) => draw::DESTINATION,
        (Scheduler::Sh | Scheduler::Mh, HashKey::Source) => draw::SOURCE,
        (Scheduler::Sh | Scheduler::Mh, HashKey::SourceAndPort) => draw::SOURCE_AND_PORT,
    }
}

/// Whether a list whose slots are drawn so has a turn.
pub fn needs_turn(how: u32) -> bool {
    matches!(how, draw::TURN | draw::LEAST | draw::SHORTEST | draw::NEVER_QUEUE)
}

/// The key of a frontend.
pub fn key_of(frontend: &Frontend) -> FrontendKey {
    let (address, kind) = match frontend {
        Frontend::Address { ip, .. } => ((*ip).into(), FrontendKey::ADDRESS),
        Frontend::NodePort { family: Family::V4, .. } => (Address::ZERO, FrontendKey::NODE_PORT4),
        Frontend::NodePort { family: Family::V6, .. } => (Address::ZERO, FrontendKey::NODE_PORT6),
    };
    FrontendKey { address, port: frontend.port().to_be(), protocol: frontend.protocol().number(), kind }
}

/// The frontend of a key; `None` for what [`key_of`] never gives.
pub fn frontend_of(key: &FrontendKey) -> Option<Frontend> {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == key.protocol)?;
    let port = u16::from_be(key.port);
    match key.kind {
        FrontendKey::ADDRESS => Some(Frontend::Address { ip: key.address.into(), protocol, port }),
        FrontendKey::NODE_PORT4 => Some(Frontend::NodePort { family: Family::V4, protocol, port }),
        FrontendKey::NODE_PORT6 => Some(Frontend::NodePort { family: Family::V6, protocol, port }),
        _ => None,
    }
}

/// What an address is to the node; 0: it has no row.
pub fn address_bits(desired: &Desired, ip: IpAddr) -> u32 {
    let node = desired.node();
    let bit = |bit: u32, is: bool| if is { bit } else { 0 };
    bit(address_is::HELD, node.addresses.contains(&ip))
        | bit(address_is::NODE_PORTS, node.answers_node_ports(ip))
        | bit(address_is::CLUSTER_IP, desired.is_cluster_ip(ip))
}

/// Every address that has a row.
pub fn addresses(desired: &Desired) -> BTreeMap<Address, u32> {
    let ips = desired.cluster_ips().chain(desired.node().addresses.iter().copied());
    ips.map(|ip| (ip.into(), address_bits(desired, ip))).collect()
}

/// What is the same for a node all the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fixed {
    /// [`Config::host_netns`].
    pub host_netns: u64,
    /// The first and the last port of masqueraded connections.
    pub masquerade_ports: (u16, u16),
    /// `--socket-lb`.
    pub socket_lb: SocketLb,
    /// [`Config::ESTABLISHED_ELSEWHERE`].
    pub established_elsewhere: bool,
}

/// The row of `config`, and the ServiceCIDRs that have no room in it.
pub fn config(desired: &Desired, fixed: &Fixed) -> (Config, Vec<IpNet>) {
    let node = desired.node();
    let (first, last) = fixed.masquerade_ports;
    let mut config = Config {
        host_netns: fixed.host_netns,
        masquerade_first: first,
        masquerade_ports: last.saturating_sub(first).saturating_add(1),
        ..Config::EMPTY
    };
    let mut set = |flag: u32, is: bool| config.flags |= if is { flag } else { 0 };
    let [v4, v6] = Family::BOTH.map(|family| node.detector(family));
    let by_device = [v4, v6].iter().any(|d| matches!(d, Detector::Interface(_) | Detector::InterfacePrefix(_)));
    set(Config::MASQUERADE_ALL, node.masquerade_all);
    set(Config::DETECTOR4, v4.is_some());
    set(Config::DETECTOR6, v6.is_some());
    set(Config::BY_DEVICE, by_device);
    set(Config::ALL_NODE_PORTS4, *node.node_ports(Family::V4) == NodePorts::All);
    set(Config::ALL_NODE_PORTS6, *node.node_ports(Family::V6) == NodePorts::All);
    // With masquerading of all, no connection of a pod to a ClusterIP is left as it is.
    set(Config::PODS_AT_CONNECT, node.all_pods_detected && !node.masquerade_all);
    set(Config::ESTABLISHED_ELSEWHERE, fixed.established_elsewhere);
    set(Config::ALL_AT_CONNECT, fixed.socket_lb == SocketLb::All);
    for (prefix, detector) in config.pods.iter_mut().zip([v4, v6]) {
        if let Detector::Cidr(net) = detector {
            *prefix = Prefix::new(net.addr(), net.prefix_len());
        }
    }
    let cidrs = IpNet::aggregate(&desired.service_cidrs().iter().map(IpNet::trunc).collect::<Vec<_>>());
    let beyond = cidrs.get(MAX_SERVICE_CIDRS..).unwrap_or_default().to_vec();
    for (place, net) in config.service_cidrs.iter_mut().zip(&cidrs) {
        *place = Prefix::new(net.addr(), net.prefix_len());
        config.service_cidr_count += 1;
    }
    if let Some((first, last)) = desired.ports_at_node() {
        (config.own_first, config.own_ports) = (first, (last - first).saturating_add(1));
    }
    (config, beyond)
}
