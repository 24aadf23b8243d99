//! From what was touched to writes: which rows have to be looked at again, and what is left out. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use kubeferry_ebpf_common::config::{MAX_SERVICE_CIDRS, address_is};
use kubeferry_ebpf_common::{Address, FrontendKey};

use super::admission::{self, Barred};
use super::diff::{self, InForce, Refused, Room, Service, Writes};
use super::numbers::Owner;
use super::rows::{self, Fixed, Wanted};
use crate::desired::target::Frontend;
use crate::desired::{Desired, Touched};
use crate::state::objects::Ignored;

/// What is in the maps, and what is not though it is wanted.
#[derive(Clone, Debug)]
pub struct Following {
    /// What is in the maps once all writes were made.
    pub in_force: InForce,
    /// Without a place in the maps.
    pub refused: Refused<FrontendKey>,
    /// Addresses without a place.
    pub refused_addresses: Refused<Address>,
    /// ServiceCIDRs beyond those that the programs know.
    pub beyond: Vec<IpNet>,
    /// Ranges that frontends were told of ([`Row::NESTED`](kubeferry_ebpf_common::Frontend::NESTED)).
    service_cidrs: BTreeSet<IpNet>,
    /// Service ports that are left out for want of room, so that others have it.
    pub barred: Barred,
    /// The eighths of the maps that others may use.
    pub eighths: usize,
    room: Room,
    fixed: Fixed,
}

impl Following {
    /// Begins with what was found in the maps.
    pub fn new(in_force: InForce, room: Room, fixed: Fixed) -> Self {
        Self {
            in_force,
            refused: Refused::new(),
            refused_addresses: Refused::new(),
            beyond: Vec::new(),
            service_cidrs: BTreeSet::new(),
            barred: Barred::new(),
            eighths: admission::MOST,
            room,
            fixed,
        }
    }

    /// Looks at every row; `now` in nanoseconds since boot.
    pub fn full(&mut self, desired: &Desired, now: u64) -> Writes {
        let mut writes = Writes::default();
        self.service_cidrs.clone_from(desired.service_cidrs());
        let mut wanted = Wanted::all(desired);
        for key in self.in_force.frontends.keys() {
            wanted.frontends.entry(*key).or_insert(None);
        }
        self.refused = self.bar(&mut wanted);
        self.refused.append(&mut self.in_force.follow(&wanted, &self.room, now, &mut writes));
        self.in_force.drop_unused(&mut writes);
        let mut addresses: BTreeMap<Address, u32> =
            self.in_force.addresses.keys().map(|address| (*address, 0)).collect();
        addresses.extend(rows::addresses(desired));
        self.refused_addresses = self.in_force.addresses(&addresses, &self.room, &mut writes);
        self.config(desired, &mut writes);
        writes
    }

    /// Looks at the rows of what was touched; `now` as for [`Following::full`].
    pub fn incremental(&mut self, desired: &Desired, touched: &Touched, now: u64) -> Writes {
        let mut writes = Writes::default();
        let mut frontends = touched.frontends.clone();
        // Those without a place may find one now.
        frontends.extend(self.refused.keys().filter_map(rows::frontend_of));
        let mut addresses: BTreeMap<Address, u32> = BTreeMap::new();
        let mut look = |ip: IpAddr| {
            addresses.insert(ip.into(), rows::address_bits(desired, ip));
        };
        touched.cluster_ips.iter().copied().for_each(&mut look);
        self.refused_addresses.keys().map(|address| IpAddr::from(*address)).for_each(&mut look);
        if touched.node {
            let held = |bits: u32| bits & (address_is::HELD | address_is::NODE_PORTS) != 0;
            let before = self.in_force.addresses.iter().filter(|(_, bits)| held(**bits));
            before.map(|(address, _)| IpAddr::from(*address)).for_each(&mut look);
            desired.node().addresses.iter().copied().for_each(&mut look);
        }
        frontends.extend(self.leading_to_changes(desired, &addresses, touched));
        let mut wanted = Wanted::of(desired, frontends.into_iter());
        self.refused.retain(|key, _| !wanted.frontends.contains_key(key));
        let mut barred = self.bar(&mut wanted);
        self.refused.append(&mut barred);
        self.refused.append(&mut self.in_force.follow(&wanted, &self.room, now, &mut writes));
        self.refused_addresses = self.in_force.addresses(&addresses, &self.room, &mut writes);
        if touched.node || !touched.frontends.is_empty() {
            self.config(desired, &mut writes);
        }
        writes
    }

    /// Takes those that are left out from what is wanted; their frontends.
    fn bar(&self, wanted: &mut Wanted) -> Refused<FrontendKey> {
        let mut refused = Refused::new();
        if self.barred.is_empty() {
            return refused;
        }
        for (key, row) in &mut wanted.frontends {
            let number = row.map(|row| row.service);
            if let Some((number, map)) = number.and_then(|number| self.barred.get_key_value(&number)) {
                *row = None;
                refused.insert(*key, diff::full(map, wanted.names.get(number)));
            }
        }
        wanted.services.retain(|number, _| !self.barred.contains_key(number));
        refused
    }

    /// Whether somebody is left out who is not to be.
    pub fn is_short(&self, desired: &Desired) -> bool {
        self.short(desired).next().is_some()
    }

    fn short(&self, desired: &Desired) -> impl Iterator<Item = u64> {
        let number = |frontend: &Frontend| {
            desired.holder(frontend).map(|claim| rows::service_number(&claim.target.name, claim.target.family))
        };
        let refused = self.refused.keys().filter_map(rows::frontend_of).filter_map(move |frontend| number(&frontend));
        refused.filter(|number| !self.barred.contains_key(number))
    }

    /// Gives room that has become free to those who are left out, where they find a place in it; nobody goes for them.
    pub fn readmit(&mut self, desired: &Desired, now: u64) -> Writes {
        let before = std::mem::take(&mut self.barred);
        self.barred = admission::barred(desired, &self.room, admission::MOST);
        self.barred.retain(|number, _| before.contains_key(number));
        let writes = self.incremental(desired, &Touched::default(), now);
        let without: Vec<u64> = self.short(desired).collect();
        self.barred.extend(without.into_iter().filter_map(|number| before.get_key_value(&number)));
        writes
    }

    /// The writes that take those out of force who are left out.
    pub fn clear_barred(&mut self, desired: &Desired, now: u64) -> Writes {
        let mut writes = Writes::default();
        let mut wanted = Wanted::default();
        let numbers = &self.barred;
        let theirs = self.in_force.frontends.iter().filter(|(_, row)| numbers.contains_key(&row.service));
        wanted.frontends.extend(theirs.map(|(key, _)| (*key, None)));
        // What nobody wants any more makes room, too.
        let gone =
            |key: &&FrontendKey| rows::frontend_of(key).is_none_or(|frontend| desired.holder(&frontend).is_none());
        wanted.frontends.extend(self.in_force.frontends.keys().filter(gone).map(|key| (*key, None)));
        self.in_force.follow(&wanted, &self.room, now, &mut writes);
        writes
    }

    /// Whether a map is so full that the next list may find no place: what is known is kept then while it is looked for, which
    /// costs a copy of all of it.
    pub fn may_be_short(&self) -> bool {
        let (counts, room, waits) = (self.counts(), &self.room, self.in_force.waits());
        [
            ("slots", room.slots),
            ("backends", room.backends),
            ("frontends", room.frontends),
            ("members", room.members),
            ("source_ranges", room.source_ranges),
        ]
        .iter()
        .any(|(map, room)| {
            let used = counts.get(map).copied().unwrap_or_default();
            used > room - room / 8 || (waits && used > room / 2)
        })
    }

    /// Who is left out now that something may have gone: never more than before.
    pub fn admit(&mut self, desired: &Desired) {
        if !self.barred.is_empty() {
            let now = admission::barred(desired, &self.room, self.eighths);
            self.barred.retain(|number, _| now.contains_key(number));
        }
    }

    /// The frontends with an endpoint at an address that has become something else, or where a Service has begun to answer, or
    /// does no more: its slot, or the frontend, says so.
    fn leading_to_changes(
        &mut self,
        desired: &Desired,
        addresses: &BTreeMap<Address, u32>,
        touched: &Touched,
    ) -> BTreeSet<Frontend> {
        let changed = addresses
            .iter()
            .filter(|(address, bits)| self.in_force.addresses.get(*address).copied().unwrap_or(0) != **bits);
        let mut changed: BTreeSet<Address> = changed.map(|(address, _)| *address).collect();
        let comes_or_goes = |frontend: &&Frontend| {
            self.in_force.frontends.contains_key(&rows::key_of(frontend)) != desired.holder(frontend).is_some()
        };
        for frontend in touched.frontends.iter().filter(comes_or_goes) {
            match frontend {
                Frontend::Address { ip, .. } => drop(changed.insert((*ip).into())),
                Frontend::NodePort { .. } => {
                    changed.extend(desired.node().addresses.iter().map(|ip| Address::from(*ip)));
                }
            }
        }
        if touched.node && self.service_cidrs != *desired.service_cidrs() {
            let before = std::mem::replace(&mut self.service_cidrs, desired.service_cidrs().clone());
            let differ = before.symmetric_difference(&self.service_cidrs).copied().collect::<Vec<_>>();
            let inside = desired.endpoint_ips().filter(|ip| differ.iter().any(|cidr| cidr.contains(ip)));
            changed.extend(inside.map(Address::from));
        }
        changed.retain(|address| desired.is_endpoint((*address).into()));
        match changed.is_empty() {
            true => BTreeSet::new(),
            false => self.in_force.frontends_to(&changed).iter().filter_map(rows::frontend_of).collect(),
        }
    }

    fn config(&mut self, desired: &Desired, writes: &mut Writes) {
        let (config, beyond) = rows::config(desired, &self.fixed);
        self.beyond = beyond;
        self.in_force.config(config, writes);
    }

    /// Frontends without a place in the maps.
    pub fn refused(&self) -> BTreeMap<Frontend, String> {
        self.refused.iter().filter_map(|(key, why)| Some((rows::frontend_of(key)?, why.clone()))).collect()
    }

    /// What is wanted and not in force, and why.
    pub fn ignored(&self) -> Vec<Ignored> {
        let frontend = |(frontend, why)| Ignored { what: format!("frontend {frontend}"), why };
        let mut ignored: Vec<Ignored> = self.refused().into_iter().map(frontend).collect();
        ignored.extend(
            self.refused_addresses.iter().map(|(address, why)| Ignored {
                what: format!("address {}", IpAddr::from(*address)),
                why: why.clone(),
            }),
        );
        ignored.extend(self.beyond.iter().map(|cidr| Ignored {
            what: format!("ServiceCIDR {cidr}"),
            why: format!(
                "the eBPF datapath knows {MAX_SERVICE_CIDRS} ranges of ServiceCIDRs: packets to addresses of this one \
                 that nobody has are not dropped"
            ),
        }));
        ignored
    }

    /// Frees what was given back and no program can be about to read, those that began before `ended` having ended
    /// ([`InForce::release`]); whether that was anything. `freed` is told of rows of `backends` whose endpoints are known.
    pub fn release(&mut self, ended: u64, is_idle: impl Fn(u32) -> bool, freed: &mut dyn FnMut(Owner, u32)) -> bool {
        let used = |in_force: &InForce| (in_force.slots.used(), in_force.numbers.used());
        let before = used(&self.in_force);
        self.in_force.release(ended, is_idle).into_iter().for_each(|(owner, row)| freed(owner, row));
        before != used(&self.in_force)
    }

    /// The number of rows of each map.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let in_force = &self.in_force;
        let sum = |of: fn(&Service) -> usize| in_force.services.values().map(of).sum::<usize>();
        BTreeMap::from([
            ("frontends", in_force.frontends.len()),
            ("slots", in_force.slots.used() as usize),
            ("backends", in_force.numbers.used()),
            ("addresses", in_force.addresses.len()),
            ("members", sum(|service| service.members.len())),
            ("source_ranges", sum(|service| service.ranges.len())),
        ])
    }

    /// The node ports in force.
    pub fn node_ports(&self) -> BTreeSet<u16> {
        // Those without an address come first.
        let keys = self.in_force.frontends.keys().take_while(|key| key.address.is_zero());
        keys.filter(|key| key.kind != FrontendKey::ADDRESS).map(|key| u16::from_be(key.port)).collect()
    }
}
