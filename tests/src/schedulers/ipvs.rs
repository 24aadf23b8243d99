//! IPVS's schedulers, from net/netfilter/ipvs/ip_vs_{rr,wrr,lc,wlc,sed,nq}.c of Linux 6.12. Endpoints are in the order of
//! IPVS's list: who came last is first. An endpoint with too many connections (`ipvsadm --u-threshold`) is not known here.

use super::Endpoint;

/// A scheduler and what it remembers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ipvs {
    /// Round robin: who was last.
    Rr { last: Option<usize> },
    /// Weighted round robin.
    Wrr(Wrr),
    /// Least connections.
    Lc(OpenCounts),
    /// Weighted least connections.
    Wlc(OpenCounts),
    /// Shortest expected delay.
    Sed,
    /// Never queue.
    Nq,
}

/// As how many connections that are over an open one counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenCounts {
    /// 256.
    As256,
    /// 257: kernels that count open connections, and all. What /proc/net/ip_vs calls inactive is the difference, but the
    /// overhead goes on adding what was the inactive ones', and so counts an open connection once more. Debian's
    /// 6.12.113, 6.12.117 and 6.1.192 are such, 6.12.100 and 6.1.176 are not.
    As257,
}

/// The mark of `ip_vs_wrr.c`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wrr {
    /// Who was last; none: the list's head.
    last: Option<usize>,
    /// The weight that an endpoint has to have now, what it begins with, and by how much it sinks.
    current: i64,
    greatest: i64,
    step: i64,
}

impl Ipvs {
    /// A scheduler by its name, of a virtual service whose endpoints were added one after the other, the last of the list
    /// first. `None`: another scheduler.
    pub fn new(name: &str, weights: &[u32], open: OpenCounts) -> Option<Self> {
        Some(match name {
            "rr" => Self::Rr { last: None },
            "wrr" => {
                let mut wrr = Wrr::default();
                (0..weights.len()).rev().for_each(|first| wrr.change(&weights[first..]));
                Self::Wrr(wrr)
            }
            "lc" => Self::Lc(open),
            "wlc" => Self::Wlc(open),
            "sed" => Self::Sed,
            "nq" => Self::Nq,
            _ => return None,
        })
    }

    /// A weight has changed.
    pub fn change(&mut self, weights: &[u32]) {
        if let Self::Wrr(wrr) = self {
            wrr.change(weights);
        }
    }

    /// The endpoint of a new connection; `None` if all have the weight 0.
    pub fn choose(&mut self, endpoints: &[Endpoint]) -> Option<usize> {
        let overhead = |endpoint: &Endpoint, open: OpenCounts| {
            let weight = if open == OpenCounts::As256 { 256 } else { 257 };
            u64::from(endpoint.active) * weight + u64::from(endpoint.inactive)
        };
        let delay = |endpoint: &Endpoint| u64::from(endpoint.active) + 1;
        match self {
            Self::Rr { last } => {
                let from = last.map_or(0, |last| last + 1);
                let turn = (from..endpoints.len()).chain(0..from);
                *last = turn.into_iter().find(|at| endpoints[*at].weight > 0);
                *last
            }
            Self::Wrr(wrr) => wrr.choose(endpoints),
            Self::Lc(open) => least(endpoints, |endpoint| (overhead(endpoint, *open), 1)),
            Self::Wlc(open) => least(endpoints, |endpoint| (overhead(endpoint, *open), endpoint.weight)),
            Self::Sed => least(endpoints, |endpoint| (delay(endpoint), endpoint.weight)),
            Self::Nq => endpoints
                .iter()
                .position(|endpoint| endpoint.weight > 0 && endpoint.active == 0)
                .or_else(|| least(endpoints, |endpoint| (delay(endpoint), endpoint.weight))),
        }
    }
}

/// The first of those whose cost for its weight is the least.
fn least(endpoints: &[Endpoint], cost: impl Fn(&Endpoint) -> (u64, u32)) -> Option<usize> {
    let usable = endpoints.iter().enumerate().filter(|(_, endpoint)| endpoint.weight > 0);
    let least = usable.map(|(at, endpoint)| (at, cost(endpoint))).reduce(|best, other| {
        let ((_, (best_cost, best_weight)), (_, (other_cost, other_weight))) = (best, other);
        if best_cost * u64::from(other_weight) > other_cost * u64::from(best_weight) { other } else { best }
    });
    least.map(|(at, _)| at)
}

impl Wrr {
    fn change(&mut self, weights: &[u32]) {
        let divisor = weights.iter().copied().filter(|weight| *weight > 0).reduce(divisor).unwrap_or(1);
        self.last = None;
        self.step = i64::from(divisor);
        self.greatest = i64::from(weights.iter().copied().max().unwrap_or(0)) - (self.step - 1);
        if self.current > self.greatest || self.current == 0 {
            self.current = self.greatest;
        } else if self.step > 1 {
            self.current = self.current / self.step * self.step + 1;
        }
    }

    fn choose(&mut self, endpoints: &[Endpoint]) -> Option<usize> {
        if endpoints.iter().all(|endpoint| endpoint.weight == 0) {
            return None;
        }
        loop {
            let from = self.last.map_or(0, |last| last + 1);
            let rest = endpoints.iter().enumerate().skip(from);
            let found = rest.map(|(at, endpoint)| (at, i64::from(endpoint.weight))).find(|(_, w)| *w >= self.current);
            self.last = found.map(|(at, _)| at);
            if self.last.is_some() {
                return self.last;
            }
            self.current -= self.step;
            if self.current <= 0 {
                self.current = self.greatest;
            }
        }
    }
}

fn divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::super::idle;
    use super::*;

    #[test]
    fn of_equals_the_first_is_chosen_and_a_weight_of_0_never() {
        let mut endpoints = idle(&[0, 2, 2]);
        for name in ["lc", "wlc", "sed", "nq"] {
            assert_eq!(Ipvs::new(name, &[0, 2, 2], OpenCounts::As256).unwrap().choose(&endpoints), Some(1), "{name}");
        }
        endpoints[1].inactive = 1;
        assert_eq!(Ipvs::Wlc(OpenCounts::As256).choose(&endpoints), Some(2), "what is over counts");
        assert_eq!(Ipvs::Sed.choose(&endpoints), Some(1), "not here");
        assert_eq!(Ipvs::new("wrr", &[0, 0], OpenCounts::As256).unwrap().choose(&idle(&[0, 0])), None);
        assert_eq!(Ipvs::Lc(OpenCounts::As256).choose(&idle(&[0])), None);
    }

    #[test]
    fn many_connections_that_are_over_weigh_like_an_open_one() {
        let mut endpoints = idle(&[1, 1]);
        endpoints[0].active = 1;
        endpoints[1].inactive = 256;
        let of = |weight| Ipvs::Lc(weight).choose(&endpoints);
        assert_eq!((of(OpenCounts::As256), of(OpenCounts::As257)), (Some(0), Some(1)));
    }

    #[test]
    fn never_queue_takes_who_is_idle_before_who_is_quick() {
        let mut endpoints = idle(&[9, 1]);
        endpoints[0].active = 1;
        assert_eq!(Ipvs::Nq.choose(&endpoints), Some(1));
        assert_eq!(Ipvs::Sed.choose(&endpoints), Some(0));
    }

    #[test]
    fn weighted_turns_begin_with_the_last_pass_of_the_list() {
        let endpoints = idle(&[3, 2, 1]);
        let mut wrr = Ipvs::new("wrr", &[3, 2, 1], OpenCounts::As256).unwrap();
        let chosen: Vec<_> = std::iter::repeat_with(|| wrr.choose(&endpoints).unwrap()).take(9).collect();
        assert_eq!(chosen, [0, 1, 2, 0, 0, 1, 0, 1, 2]);
    }
}
