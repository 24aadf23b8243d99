//! Kubeferry's schedulers, by their documentation and the code that both datapaths share.

use std::net::{IpAddr, SocketAddr};

use kubeferry::scheduler::hash::slot;
use kubeferry::scheduler::slots::slots;
use kubeferry::scheduler::{Schedule, Scheduler};

use super::Endpoint;

/// The endpoints that a scheduler may give a new connection, by how many connections are open: more than one are equals, which
/// get connections in turn. Empty: all have the weight 0, or the scheduler counts no connections.
pub fn candidates(scheduler: Scheduler, endpoints: &[Endpoint]) -> Vec<usize> {
    let usable = || endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.weight > 0);
    let idle: Vec<usize> = usable().filter(|(_, endpoint)| endpoint.active == 0).map(|(at, _)| at).collect();
    let cost = |endpoint: &Endpoint| match scheduler {
        Scheduler::Lc => (u64::from(endpoint.active), 1),
        Scheduler::Wlc => (u64::from(endpoint.active), u64::from(endpoint.weight)),
        _ => (u64::from(endpoint.active) + 1, u64::from(endpoint.weight)),
    };
    match scheduler {
        Scheduler::Nq if !idle.is_empty() => idle,
        Scheduler::Lc | Scheduler::Wlc | Scheduler::Sed | Scheduler::Nq => {
            let no_more =
                |(cost, weight): (u64, u64), (other, other_weight): (u64, u64)| cost * other_weight <= other * weight;
            let costs = || usable().map(|(at, endpoint)| (at, cost(endpoint)));
            costs().filter(|(_, own)| costs().all(|(_, other)| no_more(*own, other))).map(|(at, _)| at).collect()
        }
        _ => Vec::new(),
    }
}

/// The endpoints of one whole turn of `rr` or `wrr`.
pub fn turn(scheduler: Scheduler, weights: &[u32]) -> Vec<usize> {
    let usable = usable(weights);
    listed(scheduler, weights, &usable).into_iter().map(|at| usable[at as usize]).collect()
}

/// The endpoint that `sh`, `dh` or `mh` gives a connection.
pub fn hashed(scheduler: Scheduler, weights: &[u32], source: SocketAddr, service: IpAddr) -> Option<usize> {
    let usable = usable(weights);
    let slots = listed(scheduler, weights, &usable);
    let at = slot(&Schedule { scheduler, ..Schedule::default() }, source, service, slots.len())?;
    Some(usable[slots[at] as usize])
}

/// Endpoints without weight are not in the list that a scheduler gets.
fn usable(weights: &[u32]) -> Vec<usize> {
    (0..weights.len()).filter(|at| weights[*at] > 0).collect()
}

fn listed(scheduler: Scheduler, weights: &[u32], usable: &[usize]) -> Vec<u32> {
    let address = |at: usize| SocketAddr::from(([10, 9, 0, u8::try_from(at + 1).unwrap_or(u8::MAX)], 80));
    let endpoints: Vec<SocketAddr> = usable.iter().map(|at| address(*at)).collect();
    let weights: Vec<u16> = usable.iter().map(|at| u16::try_from(weights[*at]).unwrap_or(u16::MAX)).collect();
    slots(&Schedule { scheduler, ..Schedule::default() }, &endpoints, &weights)
}

#[cfg(test)]
mod tests {
    use super::super::idle;
    use super::*;

    #[test]
    fn candidates_are_equals() {
        let mut endpoints = idle(&[2, 1, 0, 4]);
        for scheduler in [Scheduler::Lc, Scheduler::Wlc, Scheduler::Nq] {
            assert_eq!(candidates(scheduler, &endpoints), [0, 1, 3], "{scheduler}");
        }
        assert_eq!(candidates(Scheduler::Sed, &endpoints), [3]);
        endpoints[3].active = 2;
        endpoints[0].active = 1;
        endpoints[1].active = 1;
        assert_eq!(candidates(Scheduler::Lc, &endpoints), [0, 1]);
        assert_eq!(candidates(Scheduler::Wlc, &endpoints), [0, 3]);
        assert_eq!(candidates(Scheduler::Nq, &endpoints), [3]);
        endpoints[0].inactive = 9;
        assert_eq!(candidates(Scheduler::Lc, &endpoints), [0, 1], "what is over does not count");
        assert!(candidates(Scheduler::Random, &endpoints).is_empty());
    }

    #[test]
    fn turns_are_of_those_with_weight() {
        assert_eq!(turn(Scheduler::Wrr, &[2, 0, 1]), [0, 0, 2]);
        assert_eq!(turn(Scheduler::Rr, &[2, 0, 1]), [0, 2]);
    }
}
