//! Laws of the way from events to rows, tried with generated histories: the maps in memory see every write, and a packet
//! looks at them after each.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use kubeferry_ebpf_common::config::address_is;
use kubeferry_ebpf_common::frontend::draw;
use kubeferry_ebpf_common::jhash::scale;
use kubeferry_ebpf_common::policy::{Source, choose};
use kubeferry_ebpf_common::{Address, Config, Frontend as Row, FrontendKey, Member, MemberKey, RangeKey, Slot};
use proptest::prelude::*;

use super::diff::{InForce, Phase, Room, Writes};
use super::following::Following;
use super::found::Found;
use super::rows::{Fixed, Range, key_of};
use crate::backend::nftables::laws::cluster::{event, history, settings};
use crate::desired::node_view::NodeView;
use crate::desired::target::Frontend;
use crate::desired::trace::{Flow, Outcome};
use crate::desired::{Desired, Touched};
use crate::scheduler::hash::hash;
use crate::settings::{DatapathSettings, SocketLb};
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{Family, Protocol};

const FIXED: Fixed = Fixed {
    host_netns: 1,
    masquerade_ports: (16_384, 29_999),
    socket_lb: SocketLb::Auto,
    established_elsewhere: false,
};
const ROOMY: Room =
    Room { frontends: 1_000, slots: 1_000, addresses: 1_000, source_ranges: 1_000, members: 1_000, backends: 1_000 };
const TIGHT: Room = Room { frontends: 6, slots: 7, addresses: 1_000, source_ranges: 3, members: 5, backends: 6 };

/// One row that is written or deleted.
#[allow(clippy::large_enum_variant)] // Few at a time, and `config` is one row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Write {
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
    pub(super) fn of(phase: &Phase<'_>) -> Vec<Self> {
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
pub(super) struct Maps {
    pub(super) frontends: BTreeMap<FrontendKey, Row>,
    pub(super) slots: Vec<Slot>,
    addresses: BTreeMap<Address, u32>,
    ranges: BTreeSet<Range>,
    members: BTreeMap<MemberKey, Member>,
    config: Config,
}

impl Maps {
    pub(super) fn new(room: &Room) -> Self {
        Self {
            frontends: BTreeMap::new(),
            slots: vec![Slot::default(); room.slots],
            addresses: BTreeMap::new(),
            ranges: BTreeSet::new(),
            members: BTreeMap::new(),
            config: Config::EMPTY,
        }
    }

    /// Makes the writes in their order, `look` after each.
    pub(super) fn write(&mut self, writes: &Writes, look: &mut dyn FnMut(&Self)) {
        for phase in writes.phases() {
            for row in Write::of(&phase) {
                self.make(row);
                look(self);
            }
        }
    }

    /// Makes one write, as the kernel does: whole or not at all.
    pub(super) fn make(&mut self, write: Write) {
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
    pub(super) fn found(&self) -> Found {
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
    fn lists(&self) -> BTreeMap<FrontendKey, [BTreeSet<SocketAddr>; 2]> {
        let lists =
            |row: &Row| [self.list(row.cluster_first, row.cluster_count), self.list(row.local_first, row.local_count)];
        self.frontends.iter().map(|(key, row)| (*key, lists(row))).collect()
    }

    fn bits(&self, ip: IpAddr) -> u32 {
        self.addresses.get(&ip.into()).copied().unwrap_or(0)
    }

    fn holds(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.bits(ip) & address_is::HELD != 0
    }

    /// What the programs do with a packet, as their documents tell.
    fn outcome(&self, flow: &Flow) -> Outcome {
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

/// The stages from events to maps.
struct World {
    settings: DatapathSettings,
    held: BTreeSet<IpAddr>,
    state: State,
    desired: Desired,
    following: Following,
    maps: Maps,
    now: u64,
}

impl World {
    fn new(settings: DatapathSettings, room: Room) -> Self {
        let held = ["192.168.0.2", "192.168.0.3", "fd00:1::2"].map(|ip| ip.parse().unwrap()).into();
        let desired = Desired::new(NodeView::new("here".into(), &settings, None, &held));
        let mut world = Self {
            settings,
            held,
            state: State::default(),
            following: Following::new(InForce::new(&room), room, FIXED),
            desired,
            maps: Maps::new(&room),
            now: 0,
        };
        let writes = world.following.full(&world.desired, 0);
        world.maps.write(&writes, &mut |_| ());
        world.following.in_force.written(0);
        world
    }

    fn follow(&mut self, event: Option<Event>) -> Touched {
        event.into_iter().for_each(|event| self.state.apply(event));
        let changes = self.state.take_changes();
        let view = NodeView::new("here".into(), &self.settings, self.state.node(), &self.held);
        self.desired.update(&self.state, &changes, view)
    }

    /// Follows one event. While it is written, every frontend has its old lists whole or its new ones, or is not there.
    fn step(&mut self, event: Option<Event>) -> usize {
        let touched = self.follow(event);
        self.now += 2;
        self.following.in_force.release(self.now, |_| true);
        let writes = self.following.incremental(&self.desired, &touched, self.now);
        let before = self.maps.lists();
        let mut seen = Vec::new();
        self.maps.write(&writes, &mut |maps| seen.push(maps.lists()));
        self.following.in_force.written(self.now);
        let after = self.maps.lists();
        for lists in seen {
            for (key, lists) in lists {
                let whole = before.get(&key) == Some(&lists) || after.get(&key) == Some(&lists);
                assert!(whole, "{key:?} met {lists:?}, neither {:?} nor {:?}", before.get(&key), after.get(&key));
            }
        }
        writes.len()
    }

    /// The maps and what is known of them agree.
    fn assert_known(&self) {
        let known = &self.following.in_force;
        assert_eq!(self.maps.frontends, known.frontends);
        assert_eq!(self.maps.addresses, known.addresses);
        assert_eq!(self.maps.config, known.config);
        let members = known.services.values().flat_map(|service| service.members.iter().map(|(k, m)| (*k, *m)));
        assert_eq!(self.maps.members, members.collect());
        let ranges = known.services.values().flat_map(|service| service.ranges.iter().copied());
        assert_eq!(self.maps.ranges, ranges.collect());
        assert!(known.services.values().all(|service| !service.frontends.is_empty()));
    }

    /// Packets from everywhere to everything end as the model says.
    fn assert_answers(&self) {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut to: BTreeSet<(Protocol, SocketAddr)> = BTreeSet::new();
        for frontend in self.desired.frontends() {
            match frontend {
                Frontend::Address { ip, protocol, port } => {
                    to.extend([port, 1].map(|port| (protocol, SocketAddr::new(ip, port))));
                }
                Frontend::NodePort { family, protocol, port } => {
                    let held = self.desired.node().addresses.iter().filter(|ip| Family::of(**ip) == family);
                    to.extend(held.map(|ip| (protocol, SocketAddr::new(*ip, port))));
                }
            }
        }
        to.insert((Protocol::Tcp, "10.96.7.7:80".parse().unwrap()));
        let sources = ["10.244.0.1", "192.168.0.2", "192.168.7.7", "8.8.8.8", "10.200.0.1", "203.0.113.1"];
        let sources6 = ["fd00:244::1", "fd00:1::2", "2001:db8::1", "fd00:7::7"];
        for (protocol, to) in to {
            for from in if to.is_ipv4() { &sources[..] } else { &sources6[..] } {
                for iif in [None, Some("cbr0".to_owned())] {
                    let flow = Flow { from: ip(from), from_port: None, iif, protocol, to };
                    let (model, maps) = (self.desired.trace(&flow).outcome, self.maps.outcome(&flow));
                    assert_eq!(maps, model, "{flow:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn packets_end_as_the_model_says(settings in settings(), history in history()) {
        let mut world = World::new(settings, ROOMY);
        for event in history {
            world.step(Some(event));
            world.assert_known();
            prop_assert!(world.following.refused.is_empty());
            world.assert_answers();
        }
        prop_assert_eq!(world.step(None), 0, "the same once more is nothing");
        let full = world.following.full(&world.desired, world.now);
        prop_assert!(full.is_empty(), "following equals looking at everything: {:?}", full);
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole_and_comes_back(settings in settings(), history in history(), last in event()) {
        let mut world = World::new(settings, TIGHT);
        for event in history {
            world.step(Some(event));
            world.assert_known();
            prop_assert!(world.maps.frontends.len() <= TIGHT.frontends);
            prop_assert!(world.maps.members.len() <= TIGHT.members && world.maps.ranges.len() <= TIGHT.source_ranges);
            // Of a service port either all frontends are in force or none.
            for frontend in world.desired.frontends() {
                let key = key_of(&frontend);
                let left_out = world.following.refused.contains_key(&key);
                prop_assert_eq!(world.maps.frontends.contains_key(&key), !left_out, "{}", frontend);
            }
        }
        let everything: Vec<_> = world.state.services().keys().cloned().collect();
        for name in everything {
            world.step(Some(Event::ServiceGone(name)));
        }
        prop_assert!(world.following.refused.is_empty() && world.maps.frontends.is_empty());
        world.step(Some(last));
        world.assert_known();
        world.following.in_force.release(world.now + 1, |_| true);
        let used: usize = world.following.in_force.services.values().flat_map(|s| &s.lists).map(|(_, l)| l.len()).sum();
        prop_assert_eq!(world.following.in_force.slots.used() as usize, used, "no slot is lost");
    }

    #[test]
    fn who_ends_between_two_writes_is_followed_by_another(settings in settings(), history in history(), last in event(), at in any::<prop::sample::Index>()) {
        let mut world = World::new(settings, ROOMY);
        for event in history {
            world.step(Some(event));
        }
        let touched = world.follow(Some(last));
        let writes = world.following.incremental(&world.desired, &touched, world.now);
        let all: Vec<Write> = writes.phases().iter().flat_map(Write::of).collect();
        all.iter().take(at.index(all.len() + 1)).for_each(|write| world.maps.make(*write));
        world.following = Following::new(world.maps.found().in_force(&ROOMY, world.now), ROOMY, FIXED);
        let writes = world.following.full(&world.desired, world.now);
        world.maps.write(&writes, &mut |_| ());
        world.following.in_force.written(world.now);
        world.assert_known();
        world.assert_answers();
    }

    #[test]
    fn an_address_that_comes_or_goes_is_followed(settings in settings(), history in history(), hold in any::<bool>()) {
        let mut world = World::new(settings, ROOMY);
        for event in history {
            world.step(Some(event));
        }
        // One of the endpoints' addresses.
        for ip in ["10.244.1.1", "192.168.0.2"] {
            let ip: IpAddr = ip.parse().unwrap();
            if hold { world.held.insert(ip) } else { world.held.remove(&ip) };
            world.step(None);
        }
        world.assert_known();
        let full = world.following.full(&world.desired, world.now);
        prop_assert!(full.is_empty(), "{:?}", full);
        world.assert_answers();
    }
}
