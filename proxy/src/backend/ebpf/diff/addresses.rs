//! Meanings of addresses: what one loses is written before everything else, what it gains after.

use std::collections::BTreeMap;

use kubeferry_ebpf_common::Address;
use kubeferry_ebpf_common::config::address_is;

use super::{InForce, Refused, Room, Writes};

impl InForce {
    /// Brings addresses to these meanings; 0: none. Those that do not fit are returned.
    pub fn addresses(&mut self, wanted: &BTreeMap<Address, u32>, room: &Room, writes: &mut Writes) -> Refused<Address> {
        let mut refused = BTreeMap::new();
        for (address, bits) in wanted {
            let old = self.addresses.get(address).copied().unwrap_or(0);
            let stays = old & bits;
            if stays != old {
                writes.less_addresses.insert(*address, stays);
                if stays == 0 {
                    self.addresses.remove(address)
                } else {
                    self.addresses.insert(*address, stays)
                };
            }
        }
        for (address, bits) in wanted {
            let old = self.addresses.get(address).copied().unwrap_or(0);
            if old == *bits {
                continue;
            }
            if old == 0 && self.addresses.len() >= room.addresses {
                let what = match bits & address_is::CLUSTER_IP != 0 {
                    true => "its undefined ports are not refused",
                    false => "it does not count as the node's",
                };
                refused
                    .insert(*address, format!("the map addresses is full: {what}; give --map-sizes addresses=N more"));
                continue;
            }
            self.addresses.insert(*address, *bits);
            writes.addresses.insert(*address, *bits);
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::MapSizes;

    #[test]
    fn what_an_address_loses_comes_first_and_what_it_gains_last() {
        let room = Room::of(&MapSizes::default());
        let mut in_force = InForce::new(&room);
        let address = Address::v4(1);
        let mut follow = |bits: u32| {
            let mut writes = Writes::default();
            assert!(in_force.addresses(&[(address, bits)].into(), &room, &mut writes).is_empty());
            assert_eq!(in_force.addresses.get(&address).copied().unwrap_or(0), bits);
            [writes.less_addresses, writes.addresses].map(|rows| rows.into_values().next())
        };
        let (held, ports, cluster) = (address_is::HELD, address_is::NODE_PORTS, address_is::CLUSTER_IP);
        assert_eq!(follow(held | ports), [None, Some(held | ports)]);
        // The ClusterIP's frontends come in between.
        assert_eq!(follow(held | cluster), [Some(held), Some(held | cluster)]);
        assert_eq!(follow(ports), [Some(0), Some(ports)]);
        assert_eq!(follow(0), [Some(0), None]);
    }
}
