//! Who has room in the maps when they are too small for all: the older Service before the younger, and whoever asks for more than
//! its share of a map after everybody else. So nobody who may make Services takes older ones of others out of force. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::diff::Room;
use super::rows::{Wanted, service_number};
use crate::desired::Desired;
use crate::state::objects::ObjectName;

/// Eighths of each map that may be used, at the most and at the least.
pub const MOST: usize = 8;
/// As [`MOST`].
pub const LEAST: usize = 5;
/// Of each map, the rows that count as a Service's share: one part in so many.
const SHARE: usize = 4;

/// Service ports, by number, without room, and the map that is too small for each.
pub type Barred = BTreeMap<u64, &'static str>;

/// How many rows are needed of each map: `frontends`, `slots`, `members`, `source_ranges`, `backends`.
type Needs = [usize; 5];

const MAPS: [&str; 5] = ["frontends", "slots", "members", "source_ranges", "backends"];

/// One Service's place in the order: absent creation times count as newest, as where two claim one address.
type Age<'a> = (bool, Option<Timestamp>, &'a ObjectName);

/// Those that have to be left out, if `eighths` of each map may be used: the rest is for old and new lists side by side, and for
/// gaps between lists.
pub fn barred(desired: &Desired, room: &Room, eighths: usize) -> Barred {
    let mut needs = needs(&Wanted::all(desired));
    let has = [room.frontends, room.slots, room.members, room.source_ranges, room.backends];
    let mut services: BTreeMap<Age<'_>, Vec<(u64, Needs)>> = BTreeMap::new();
    for (name, target, _) in desired.targets() {
        // Of one Service in turn, the ports of a family in the order of the object.
        if let Some((number, needs)) = needs.remove_entry(&service_number(&target.name, target.family)) {
            services.entry((target.created.is_none(), target.created, name)).or_default().push((number, needs));
        }
    }
    let mut left = has.map(|rows| rows * eighths / 8);
    let (mut out, mut greedy) = (Barred::new(), Vec::new());
    let mut admit = |number: u64, needs: Needs| match (0..MAPS.len()).find(|map| needs[*map] > left[*map]) {
        Some(map) => drop(out.insert(number, MAPS[map])),
        None => (0..MAPS.len()).for_each(|map| left[map] -= needs[map]),
    };
    for ports in services.into_values() {
        let mut own = Needs::default();
        for (number, needs) in ports {
            (0..MAPS.len()).for_each(|map| own[map] += needs[map]);
            if (0..MAPS.len()).any(|map| own[map] > has[map] / SHARE) {
                greedy.push((number, needs));
            } else {
                admit(number, needs);
            }
        }
    }
    greedy.into_iter().for_each(|(number, needs)| admit(number, needs));
    out
}

/// What each service port needs.
fn needs(wanted: &Wanted) -> BTreeMap<u64, Needs> {
    let mut needs: BTreeMap<u64, Needs> = wanted
        .services
        .iter()
        .map(|(number, rows)| {
            let slots: usize = rows.lists.iter().map(Vec::len).sum();
            let endpoints: BTreeSet<_> = rows.lists.iter().flatten().map(|slot| (slot.address, slot.port)).collect();
            // A list that is drawn in turn has a row for that.
            (*number, [0, slots, rows.members.len(), rows.ranges.len(), endpoints.len() + rows.lists.len()])
        })
        .collect();
    for row in wanted.frontends.values().flatten() {
        if let Some([frontends, ..]) = needs.get_mut(&row.service) {
            *frontends += 1;
        }
    }
    needs
}
