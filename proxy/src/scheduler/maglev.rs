//! Maglev's lookup table (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//! section 3.4): each endpoint has a permutation of the slots of its own, and in turns each takes the first slot of its
//! permutation that is still free.

use std::net::SocketAddr;

use kubeferry_ebpf_common::jhash::jhash_bytes;

/// Initial values of the two hashes of an endpoint's name, the same on all nodes: "offs" and "skip" in ASCII.
const SEEDS: [u32; 2] = [0x6f66_6673, 0x736b_6970];

/// The table: which endpoint each of the `size` slots is. `size` is a prime; `weights` are 1 and more. Who has the greatest
/// weight takes a slot in each turn, the others as often as their part of it. The same set of endpoints gives the same
/// table whatever its order.
///
/// Where there are more endpoints than slots, the last of them by address get none.
pub(super) fn table(size: u32, endpoints: &[SocketAddr], weights: &[u32]) -> Vec<u32> {
    if endpoints.is_empty() {
        return Vec::new();
    }
    let mut order: Vec<u32> = (0..endpoints.len() as u32).collect();
    order.sort_by_key(|index| endpoints[*index as usize]);
    let mut walkers: Vec<_> = order
        .into_iter()
        .map(|index| Walker::new(index, &endpoints[index as usize], weights[index as usize], size))
        .collect();
    let greatest = u64::from(weights.iter().copied().max().unwrap_or(1));
    let (mut table, mut free) = (vec![None; size as usize], size);
    let mut turn = 0;
    while free > 0 {
        turn += 1;
        for walker in &mut walkers {
            if free == 0 {
                break;
            }
            if walker.taken * greatest < turn * walker.weight {
                walker.take(&mut table);
                free -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// An endpoint on its way through its permutation.
struct Walker {
    index: u32,
    weight: u64,
    taken: u64,
    next: u32,
    skip: u32,
}

impl Walker {
    fn new(index: u32, endpoint: &SocketAddr, weight: u32, size: u32) -> Self {
        let name = endpoint.to_string();
        let [offset, skip] = SEEDS.map(|seed| jhash_bytes(name.as_bytes(), seed));
        let skip = if size > 1 { skip % (size - 1) + 1 } else { 0 };
        Self { index, weight: weight.into(), taken: 0, next: offset % size, skip }
    }

    /// Takes the next free slot of the permutation; there is one.
    fn take(&mut self, table: &mut [Option<u32>]) {
        let size = table.len() as u32;
        loop {
            let slot = &mut table[self.next as usize];
            // Both are less than 2^31.
            self.next = (self.next + self.skip) % size;
            if slot.is_none() {
                *slot = Some(self.index);
                self.taken += 1;
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "maglev_tests.rs"]
mod tests;
