//! What endpoints had counted in rows of `backends` that they gave back: a row begins anew, what its endpoint got does not.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kubeferry_ebpf_common::{Backend, Traffic};

use super::counters::Counted;
use super::numbers::{Numbers, Owner};
use crate::backend::EndpointCount;

/// By endpoint, what is not in its row any more. Kept for as long as somebody looks regularly, and an endpoint has a row.
#[derive(Debug)]
pub struct Retired {
    keeps: bool,
    counts: BTreeMap<Owner, Counted>,
}

/// What the endpoints of a service port got.
#[derive(Debug, Default)]
pub struct Told {
    /// Of those that have a row.
    pub here: Vec<EndpointCount>,
    /// Of those that have none any more.
    pub left: Vec<EndpointCount>,
}

impl Retired {
    /// `keeps`: counts are looked at regularly. Otherwise nothing is kept.
    pub fn new(keeps: bool) -> Self {
        Self { keeps, counts: BTreeMap::new() }
    }

    /// A row that this endpoint had has counted so much, and counts it no more.
    pub fn add(&mut self, owner: Owner, row: &Counted) {
        if self.keeps && (row.connections.opened > 0 || row.traffic != Traffic::default()) {
            let sum = self.counts.entry(owner).or_default();
            *sum = plus(sum, row);
            sum.connections.active = 0;
        }
    }

    /// What the endpoints of every service port got that is asked for by its number; what is known of others is forgotten.
    /// `rows` are the endpoints of each with their rows, `counted` what a row says.
    pub fn look<'a>(
        &mut self,
        services: impl Iterator<Item = (u64, BTreeMap<Owner, u32>)> + 'a,
        numbers: &Numbers,
        counted: impl Fn(u32) -> Counted,
    ) -> Vec<Told> {
        let mut past = std::mem::take(&mut self.counts);
        let mut tell = |(service, rows): (u64, BTreeMap<Owner, u32>)| {
            let mut now: BTreeMap<Owner, Counted> = BTreeMap::new();
            // Who has left and has connections yet goes on being counted.
            for (owner, row) in rows.into_iter().chain(numbers.waiting_of(service)) {
                let sum = now.entry(owner).or_default();
                *sum = plus(sum, &counted(row));
            }
            let mut told = Told::default();
            for (owner, row) in now {
                let before = past.remove(&owner);
                told.here.push(count(&owner, &before.map_or(row, |before| plus(&before, &row))));
                self.counts.extend(before.map(|before| (owner, before)));
            }
            let gone: Vec<Owner> = of(&past, service).map(|(owner, _)| *owner).collect();
            let gone = gone.into_iter().filter_map(|owner| Some((owner, past.remove(&owner)?)));
            told.left = gone.map(|(owner, past)| count(&owner, &past)).collect();
            told
        };
        services.map(&mut tell).collect()
    }
}

/// Those of a service port.
pub(super) fn of<T>(owners: &BTreeMap<Owner, T>, service: u64) -> impl Iterator<Item = (&Owner, &T)> {
    let first = (service, kubeferry_ebpf_common::Address::ZERO, 0);
    owners.range(first..).take_while(move |(owner, _)| owner.0 == service)
}

fn plus(one: &Counted, other: &Counted) -> Counted {
    let connections = Backend {
        opened: one.connections.opened.wrapping_add(other.connections.opened),
        active: one.connections.active.wrapping_add(other.connections.active),
    };
    let traffic = Traffic {
        packets: one.traffic.packets.wrapping_add(other.traffic.packets),
        bytes: one.traffic.bytes.wrapping_add(other.traffic.bytes),
    };
    Counted { connections, traffic }
}

fn count((_, address, port): &Owner, counted: &Counted) -> EndpointCount {
    let (Backend { opened, active }, Traffic { packets, bytes }) = (counted.connections, counted.traffic);
    let endpoint = SocketAddr::new((*address).into(), u16::from_be(*port));
    // Fewer than none are wrong, which the next sweeps put right.
    let active = u64::try_from(active.cast_signed()).unwrap_or(0);
    EndpointCount { endpoint, opened, active, packets, bytes }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn owner(last: u8) -> Owner {
        (7, IpAddr::from([10, 244, 1, last]).into(), 8080_u16.to_be())
    }

    fn backend(opened: u64) -> Counted {
        let traffic = Traffic { packets: opened * 10, bytes: opened * 100 };
        Counted { connections: Backend { opened, active: 1 }, traffic }
    }

    #[test]
    fn what_a_row_had_counted_stays_its_endpoints() {
        let mut numbers = Numbers::with(9, [], &[], 0);
        let [first, second] = [numbers.take().unwrap(), numbers.take().unwrap()];
        let mut rows = BTreeMap::from([(owner(1), first), (owner(2), second)]);
        let mut retired = Retired::new(true);
        let look = |retired: &mut Retired, rows: &BTreeMap<Owner, u32>, numbers: &Numbers, counts: [u64; 2]| {
            let told = retired.look([(7, rows.clone())].into_iter(), numbers, |row| backend(counts[row as usize - 1]));
            let numbers = |told: &[EndpointCount]| told.iter().map(|count| (count.opened, count.active)).collect();
            let Told { here, left } = &told[0];
            let both: [Vec<_>; 2] = [numbers(here), numbers(left)];
            both
        };
        assert_eq!(look(&mut retired, &rows, &numbers, [3, 4]), [vec![(3, 1), (4, 1)], vec![]]);
        // It leaves with 5, and one more connection is counted yet.
        rows.remove(&owner(2));
        retired.add(owner(2), &backend(5));
        numbers.give_back(second, Some(owner(2)));
        assert_eq!(look(&mut retired, &rows, &numbers, [3, 1]), [vec![(3, 1), (6, 1)], vec![]]);
        // It comes again, and goes for good.
        assert_eq!(numbers.take_back(&owner(2)), Some(second));
        rows.insert(owner(2), second);
        assert_eq!(look(&mut retired, &rows, &numbers, [3, 2]), [vec![(3, 1), (7, 1)], vec![]]);
        rows.remove(&owner(2));
        retired.add(owner(2), &backend(2));
        assert_eq!(look(&mut retired, &rows, &numbers, [3, 0]), [vec![(3, 1)], vec![(7, 0)]]);
        assert_eq!(look(&mut retired, &rows, &numbers, [3, 0]), [vec![(3, 1)], vec![]], "it was told");
        retired.add((8, kubeferry_ebpf_common::Address::ZERO, 1), &backend(2));
        look(&mut retired, &rows, &numbers, [3, 0]);
        assert!(retired.counts.is_empty(), "nobody asks about service port 8");
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut retired = Retired::new(false);
        retired.add(owner(1), &backend(5));
        assert!(retired.counts.is_empty());
    }
}
