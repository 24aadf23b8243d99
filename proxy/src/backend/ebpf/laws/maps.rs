//! The maps in memory, written row by row, and what the programs do with a packet that meets them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::frontend::draw;
use kubeferry_ebpf_common::jhash::scale;
use kubeferry_ebpf_common::policy::{Source, choose};
use kubeferry_ebpf_common::{Address, Config, Frontend as Row, FrontendKey, Member, MemberKey, RangeKey, Slot};

use crate::backend::ebpf::diff::{Phase, Room, Writes};
use crate::backend::ebpf::found::Found;
use crate::backend::ebpf::rows::Range;
use crate::desired::trace::{Flow, Outcome};
use crate::scheduler::hash::hash;

/// One row that is written or deleted.
#[allow(clippy::large_enum_variant)] // Few at a time, and `config` is one row.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::ebpf) enum Write {
    Address(Address, u32),
    Slot(u32, Slot),
    Member(MemberKey, Member),
    Range(Range),
    GoneFrontend(FrontendKey),
    Frontend(FrontendKey, Row),
    GoneMember(MemberKey),
    GoneRange(Range),
    Config(Config),
}

impl Write {
    /// Those of a phase, but for counters.
    pub(in crate::backend::ebpf) fn of(phase: &Phase<'_>) -> Vec<Self> {
        match *phase {
            Phase::Addresses(rows) => rows.iter().map(|(address, bits)| Self::Address(*address, *bits)).collect(),
            Phase::Fresh(_) => Vec::new(),
            Phase::Slots(rows) => rows.iter().map(|(number, slot)| Self::Slot(*number, *slot)).collect(),
            Phase::Members(rows) => rows.iter().map(|(key, member)| Self::Member(*key, *member)).collect(),
            Phase::Ranges(rows) => rows.iter().copied().map(Self::Range).collect(),
            Phase::GoneFrontends(keys) => keys.iter().copied().map(Self::GoneFrontend).collect(),
            Phase::Frontends(rows) => rows.iter().map(|(key, row)| Self::Frontend(*key, *row)).collect(),
            Phase::GoneMembers(keys) => keys.iter().copied().map(Self::GoneMember).collect(),
            Phase::GoneRanges(keys) => keys.iter().copied().map(Self::GoneRange).collect(),
            Phase::Config(config) => config.into_iter().copied().map(Self::Config).collect(),
        }
    }
}

/// The maps.
#[derive(Clone, Debug)]
pub(in crate::backend::ebpf) struct Maps {
    pub(in crate::backend::ebpf) frontends: BTreeMap<FrontendKey, Row>,
    pub(in crate::backend::ebpf) slots: Vec<Slot>,
    pub(super) addresses: BTreeMap<Address, u32>,
    pub(super) ranges: BTreeSet<Range>,
    pub(super) members: BTreeMap<MemberKey, Member>,
    pub(super) config: Config,
}

impl Maps {
    pub(in crate::backend::ebpf) fn new(room: &Room) -> Self {
        Self {
            frontends: BTreeMap::new(),
            slots: vec![Slot::default(); room.slots],
            addresses: BTreeMap::new(),
            ranges: BTreeSet::new(),
            members: BTreeMap::new(),
            config: Config::EMPTY,
        }
    }

    /// Makes the writes in their order.
    pub(super) fn write(&mut self, writes: &Writes) {
        self.write_phases(&writes.phases(), &mut |_| ());
    }

    /// Makes the writes in this order, `look` after each.
    pub(super) fn write_phases(&mut self, phases: &[Phase<'_>], look: &mut dyn FnMut(&Self)) {
        for phase in phases {
            for row in Write::of(phase) {
                self.make(row);
                look(self);
            }
        }
    }

    /// Makes one write, as the kernel does: whole or not at all.
    pub(in crate::backend::ebpf) fn make(&mut self, write: Write) {
        match write {
            Write::Address(address, 0) => drop(self.addresses.remove(&address)),
            Write::Address(address, bits) => drop(self.addresses.insert(address, bits)),
            Write::Slot(number, slot) => self.slots[number as usize] = slot,
            Write::Member(key, member) => drop(self.members.insert(key, member)),
            Write::Range(range) => drop(self.ranges.insert(range)),
            Write::GoneFrontend(key) => {
                assert!(self.frontends.remove(&key).is_some(), "only what is there is deleted");
            }
            Write::Frontend(key, frontend) => drop(self.frontends.insert(key, frontend)),
            Write::GoneMember(key) => assert!(self.members.remove(&key).is_some()),
            Write::GoneRange(range) => assert!(self.ranges.remove(&range)),
            Write::Config(config) => self.config = config,
        }
    }

    /// As they are read back.
    pub(in crate::backend::ebpf) fn found(&self) -> Found {
        Found {
            frontends: self.frontends.clone(),
            slots: self.slots.clone(),
            members: self.members.iter().map(|(key, member)| (*key, *member)).collect(),
            ranges: self.ranges.iter().map(|range| (*range, 1)).collect(),
            addresses: self.addresses.clone(),
            config: self.config,
            busy: Vec::new(),
        }
    }

    fn list(&self, first: u32, count: u32) -> BTreeSet<SocketAddr> {
        let slots = &self.slots[first as usize..(first + count) as usize];
        slots.iter().map(|slot| SocketAddr::new(slot.address.into(), u16::from_be(slot.port))).collect()
    }

    /// The lists of every frontend.
    pub(super) fn lists(&self) -> BTreeMap<FrontendKey, [BTreeSet<SocketAddr>; 2]> {
        let lists =
            |row: &Row| [self.list(row.cluster_first, row.cluster_count), self.list(row.local_first, row.local_count)];
        self.frontends.iter().map(|(key, row)| (*key, lists(row))).collect()
    }

    pub(super) fn bits(&self, ip: IpAddr) -> u32 {
        self.addresses.get(&ip.into()).copied().unwrap_or(0)
    }

    fn holds(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.bits(ip) & address_is::HELD != 0
    }

    /// What the programs do with a packet, as their documents tell.
    pub(super) fn outcome(&self, flow: &Flow) -> Outcome {
        let v4 = flow.to.is_ipv4();
        let key = |kind, address| FrontendKey {
            address,
            port: flow.to.port().to_be(),
            protocol: flow.protocol.number(),
            kind,
        };
        let ip = flow.to.ip();
        let (kind, all) = match v4 {
            true => (FrontendKey::NODE_PORT4, Config::ALL_NODE_PORTS4),
            false => (FrontendKey::NODE_PORT6, Config::ALL_NODE_PORTS6),
        };
        let answers = !ip.is_loopback()
            && (self.bits(ip) & address_is::NODE_PORTS != 0 || (self.config.flags & all != 0 && self.holds(ip)));
        let found = self.frontends.get(&key(FrontendKey::ADDRESS, ip.into()));
        let found = found.or_else(|| self.frontends.get(&key(kind, Address::ZERO)).filter(|_| answers));
        let Some(row) = found else {
            let unallocated =
                (0..self.config.service_cidr_count as usize).any(|n| self.config.service_cidrs[n].contains(&ip.into()));
            return match () {
                () if self.bits(ip) & address_is::CLUSTER_IP != 0 => Outcome::Reject,
                () if unallocated && !self.holds(ip) => Outcome::Drop,
                () => Outcome::None,
            };
        };
        if row.flags & Row::RANGED != 0 && !self.in_range(row.service, flow.from.into()) {
            return Outcome::Drop;
        }
        if row.flags & Row::REFUSE != 0 {
            return Outcome::Reject;
        }
        let is_node = self.holds(flow.from);
        let by_device = self.config.flags & Config::BY_DEVICE != 0;
        let detector = self.config.flags & if v4 { Config::DETECTOR4 } else { Config::DETECTOR6 } != 0;
        let is_pod = match by_device {
            true => !is_node && flow.iif.is_some(),
            false => self.config.pods[usize::from(!v4)].contains(&flow.from.into()),
        };
        let choice = choose(row, self.config.flags, Source { is_pod, is_node, detector });
        if choice.count == 0 {
            return Outcome::Drop;
        }
        let hash = match row.draw {
            draw::SOURCE => Some(hash(flow.from, None)),
            draw::SOURCE_AND_PORT => flow.from_port.map(|port| hash(flow.from, Some(port))),
            draw::DESTINATION => Some(hash(ip, None)),
            _ => None,
        };
        let (first, count) = match hash {
            Some(hash) => (choice.first + scale(hash, choice.count), 1),
            None => (choice.first, choice.count),
        };
        let endpoints: Vec<_> = self.list(first, count).into_iter().collect();
        let mut itself = endpoints.iter().filter(|endpoint| endpoint.ip() == flow.from).copied();
        let hairpin = itself.next();
        // Programs masquerade whatever goes back to its source.
        let always = usize::from(hairpin.is_some()) + itself.count() == endpoints.len();
        Outcome::Endpoints { endpoints, masquerade: choice.masquerade || always, hairpin }
    }

    fn in_range(&self, service: u64, source: Address) -> bool {
        let bits = |key: &RangeKey| {
            let words = key.service.map(u32::to_be).into_iter().chain(key.address.words);
            words
                .flat_map(u32::to_ne_bytes)
                .flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1))
                .collect::<Vec<_>>()
        };
        let source = bits(&RangeKey::new(service, source));
        self.ranges.iter().any(|range| {
            let length = range.length as usize;
            bits(&range.key)[..length] == source[..length]
        })
    }
}
