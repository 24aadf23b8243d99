//! What the hashing schedulers hash, and the slot that comes of it: the same in every datapath.

use std::net::{IpAddr, SocketAddr};

use kubeferry_ebpf_common::jhash::{jhash, port_word, scale};

use super::{HASH_SEED, HashKey, Schedule, Scheduler};

/// The slot of a new connection from `source` to `service`, an address as it is before it is translated, among `slots`;
/// `None`: this scheduler does not hash, or there are no slots.
pub fn slot(schedule: &Schedule, source: SocketAddr, service: IpAddr, slots: usize) -> Option<usize> {
    let with_port = schedule.hash_key == HashKey::SourceAndPort;
    let hash = match schedule.scheduler {
        Scheduler::Sh | Scheduler::Mh => hash(source.ip(), with_port.then(|| source.port())),
        Scheduler::Dh => hash(service, None),
        _ => return None,
    };
    let slots = u32::try_from(slots).ok().filter(|slots| *slots > 0)?;
    Some(scale(hash, slots) as usize)
}

/// The hash of an address as it is in the packet, with a port if one is asked for.
pub fn hash(ip: IpAddr, port: Option<u16>) -> u32 {
    match (ip, port) {
        (IpAddr::V4(ip), None) => jhash([u32::from_ne_bytes(ip.octets())], HASH_SEED),
        (IpAddr::V4(ip), Some(port)) => jhash([u32::from_ne_bytes(ip.octets()), port_word(port)], HASH_SEED),
        (IpAddr::V6(ip), port) => {
            let bytes = ip.octets();
            let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
            let [a, b, c, d] = [word(0), word(4), word(8), word(12)];
            match port {
                None => jhash([a, b, c, d], HASH_SEED),
                Some(port) => jhash([a, b, c, d, port_word(port)], HASH_SEED),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kubeferry_ebpf_common::jhash::jhash_bytes;

    use super::*;

    #[test]
    fn addresses_and_ports_are_hashed_as_in_the_packet() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.244.1.5".parse().unwrap(), "fd00:10:244::1:5".parse().unwrap());
        assert_eq!(hash(v4, None), jhash_bytes(&[10, 244, 1, 5], HASH_SEED));
        assert_eq!(hash(v4, Some(40_001)), jhash_bytes(&[10, 244, 1, 5, 0x9c, 0x41, 0, 0], HASH_SEED));
        let mut bytes = vec![0xfd, 0, 0, 0x10, 2, 0x44, 0, 0, 0, 0, 0, 0, 0, 1, 0, 5];
        assert_eq!(hash(v6, None), jhash_bytes(&bytes, HASH_SEED));
        bytes.extend([0x9c, 0x41, 0, 0]);
        assert_eq!(hash(v6, Some(40_001)), jhash_bytes(&bytes, HASH_SEED));
    }

    #[test]
    fn each_scheduler_hashes_its_part() {
        let of = |scheduler, hash_key, source: &str, service: &str| {
            let schedule = Schedule { scheduler, hash_key, ..Schedule::default() };
            slot(&schedule, source.parse().unwrap(), service.parse().unwrap(), 1009)
        };
        let (one, other) = ("10.0.0.1:1000", "10.0.0.1:1001");
        for scheduler in [Scheduler::Sh, Scheduler::Mh] {
            let key = HashKey::Source;
            assert_eq!(of(scheduler, key, one, "10.96.0.1"), of(scheduler, key, other, "10.96.0.2"));
            assert_ne!(of(scheduler, key, one, "10.96.0.1"), of(scheduler, key, "10.0.0.2:1000", "10.96.0.1"));
            let key = HashKey::SourceAndPort;
            assert_ne!(of(scheduler, key, one, "10.96.0.1"), of(scheduler, key, other, "10.96.0.1"));
        }
        let key = HashKey::SourceAndPort;
        assert_eq!(of(Scheduler::Dh, key, one, "10.96.0.1"), of(Scheduler::Dh, key, "10.9.9.9:9", "10.96.0.1"));
        assert_ne!(of(Scheduler::Dh, key, one, "10.96.0.1"), of(Scheduler::Dh, key, one, "10.96.0.2"));
        assert_eq!(of(Scheduler::Random, key, one, "10.96.0.1"), None);
        let schedule = Schedule { scheduler: Scheduler::Sh, ..Schedule::default() };
        assert_eq!(slot(&schedule, one.parse().unwrap(), "10.96.0.1".parse().unwrap(), 0), None);
    }
}
