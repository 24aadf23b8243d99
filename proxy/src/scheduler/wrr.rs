//! Weighted round robin as IPVS has it (`ip_vs_wrr.c`).

/// One whole turn: which endpoint is next, and next. IPVS walks the list with a threshold that starts at the greatest
/// weight, sinks by the greatest common divisor at the end of the list, and starts again below 1; who has at least the
/// threshold is next. `weights` without a common divisor, 1 and more; the turn is as long as their sum.
pub(super) fn turn(weights: &[u32]) -> Vec<u32> {
    let greatest = weights.iter().copied().max().unwrap_or(0);
    let indexes = |threshold: u32| {
        let reached = weights.iter().enumerate().filter(move |(_, weight)| **weight >= threshold);
        reached.map(|(index, _)| index as u32)
    };
    (1..=greatest).rev().flat_map(indexes).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The kernel's loop, one choice at a time: `cl` is the endpoint chosen last, `cw` the threshold, `mw` where it
    /// starts, `di` by how much it sinks.
    struct Ipvs {
        weights: Vec<u32>,
        cl: Option<usize>,
        cw: i64,
        mw: i64,
        di: i64,
    }

    impl Ipvs {
        fn new(weights: &[u32]) -> Self {
            let di = i64::from(crate::scheduler::slots::divisor(weights.iter().copied()));
            let mw = i64::from(*weights.iter().max().unwrap()) - (di - 1);
            Self { weights: weights.to_vec(), cl: None, cw: mw, mw, di }
        }

        fn next(&mut self) -> usize {
            loop {
                let from = self.cl.map_or(0, |last| last + 1);
                if let Some(found) = (from..self.weights.len()).find(|at| i64::from(self.weights[*at]) >= self.cw) {
                    self.cl = Some(found);
                    return found;
                }
                self.cl = None;
                self.cw -= self.di;
                if self.cw <= 0 {
                    self.cw = self.mw;
                }
            }
        }
    }

    #[test]
    fn weights_are_spread_over_the_turn() {
        assert_eq!(turn(&[4, 3, 2]), [0, 0, 1, 0, 1, 2, 0, 1, 2], "the example of ip_vs_wrr's documentation");
        assert_eq!(turn(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(turn(&[]), [] as [u32; 0]);
    }

    proptest! {
        #[test]
        fn the_kernels_loop_gives_the_same(weights in proptest::collection::vec(1u32..40, 1..7), scale in 1u32..5) {
            let divisor = crate::scheduler::slots::divisor(weights.iter().copied());
            let turn = turn(&weights.iter().map(|weight| weight / divisor).collect::<Vec<_>>());
            let scaled: Vec<_> = weights.iter().map(|weight| weight * scale).collect();
            let mut ipvs = Ipvs::new(&scaled);
            for round in 0..2 {
                for (at, expected) in turn.iter().enumerate() {
                    prop_assert_eq!(ipvs.next(), *expected as usize, "round {}, step {}", round, at);
                }
            }
        }
    }
}
