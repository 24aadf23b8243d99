//! The writes of a change, and their order.

use std::collections::{BTreeMap, BTreeSet};

use kubeferry_ebpf_common::{Address, Config, Frontend, FrontendKey, Member, MemberKey, Slot};

use crate::backend::ebpf::rows::Range;
use crate::backend::{ChangesByMap, RowChanges};

/// Writes, in the order in which they are to be made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Writes {
    /// Addresses that lose a meaning; 0: the row is deleted.
    pub less_addresses: BTreeMap<Address, u32>,
    /// Rows of `backends` that begin anew: nobody's before, or of an endpoint that leaves and may come again.
    pub fresh: BTreeSet<u32>,
    /// Slots that nobody reads yet, by number.
    pub slots: BTreeMap<u32, Slot>,
    /// New or changed rows of `members`.
    pub members: BTreeMap<MemberKey, Member>,
    /// New rows of `source_ranges`.
    pub ranges: BTreeSet<Range>,
    /// Frontends that go.
    pub gone_frontends: BTreeSet<FrontendKey>,
    /// New or changed frontends.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// Rows of `members` that go.
    pub gone_members: BTreeSet<MemberKey>,
    /// Rows of `source_ranges` that go.
    pub gone_ranges: BTreeSet<Range>,
    /// Addresses that gain a meaning.
    pub addresses: BTreeMap<Address, u32>,
    /// The row of `config`, where it changes.
    pub config: Option<Config>,
}

impl Writes {
    /// How many rows are written or deleted.
    pub fn len(&self) -> usize {
        self.less_addresses.len()
            + self.fresh.len()
            + self.slots.len()
            + self.members.len()
            + self.ranges.len()
            + self.gone_frontends.len()
            + self.frontends.len()
            + self.gone_members.len()
            + self.gone_ranges.len()
            + self.addresses.len()
            + usize::from(self.config.is_some())
    }

    /// The same by map; a row that gets another value counts as added.
    pub fn by_map(&self) -> ChangesByMap {
        let deleted = self.less_addresses.values().filter(|meaning| **meaning == 0).count();
        let all = [
            ("frontends", self.frontends.len(), self.gone_frontends.len()),
            ("slots", self.slots.len(), 0),
            ("backends", self.fresh.len(), 0),
            ("addresses", self.addresses.len() + self.less_addresses.len() - deleted, deleted),
            ("source_ranges", self.ranges.len(), self.gone_ranges.len()),
            ("members", self.members.len(), self.gone_members.len()),
            ("config", usize::from(self.config.is_some()), 0),
        ];
        let changed = all.into_iter().filter(|(_, added, deleted)| added + deleted > 0);
        changed.map(|(map, added, deleted)| (map, RowChanges { added, deleted })).collect()
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The writes in the order in which they are to be made; those of a phase in any order.
    pub fn phases(&self) -> [Phase<'_>; 11] {
        [
            Phase::Addresses(&self.less_addresses),
            Phase::Fresh(&self.fresh),
            Phase::Slots(&self.slots),
            Phase::Members(&self.members),
            Phase::Ranges(&self.ranges),
            Phase::GoneFrontends(&self.gone_frontends),
            Phase::Frontends(&self.frontends),
            Phase::GoneMembers(&self.gone_members),
            Phase::GoneRanges(&self.gone_ranges),
            Phase::Addresses(&self.addresses),
            Phase::Config(self.config.as_ref()),
        ]
    }
}

/// Writes to one map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase<'a> {
    /// `addresses`: with 0 the row is deleted.
    Addresses(&'a BTreeMap<Address, u32>),
    /// Rows of `backends` that begin anew.
    Fresh(&'a BTreeSet<u32>),
    /// `slots`.
    Slots(&'a BTreeMap<u32, Slot>),
    /// `members` that come or change.
    Members(&'a BTreeMap<MemberKey, Member>),
    /// `source_ranges` that come.
    Ranges(&'a BTreeSet<Range>),
    /// `frontends` that go.
    GoneFrontends(&'a BTreeSet<FrontendKey>),
    /// `frontends` that come or change.
    Frontends(&'a BTreeMap<FrontendKey, Frontend>),
    /// `members` that go.
    GoneMembers(&'a BTreeSet<MemberKey>),
    /// `source_ranges` that go.
    GoneRanges(&'a BTreeSet<Range>),
    /// `config`, where it changes.
    Config(Option<&'a Config>),
}
