//! Whether a series of numbers grows, more than by chance and by enough to matter.

/// Below so many samples nothing is said.
const FEWEST: usize = 20;
/// How many deviations from what chance gives count as a trend: one series of two hundred that do not grow seems to.
const CERTAIN: f64 = 2.6;

/// What a series does over time.
#[derive(Clone, Copy, PartialEq, Debug, serde::Serialize)]
pub struct Trend {
    /// Samples looked at.
    pub samples: usize,
    /// From the first to the last, in seconds.
    pub seconds: f64,
    /// The median, as the samples count.
    pub median: f64,
    /// The median of the slopes between any two samples (Theil and Sen), a minute.
    pub per_minute: f64,
    /// By how many deviations more pairs rise than fall (Mann and Kendall).
    pub deviations: f64,
}

impl Trend {
    /// Looks at pairs of seconds and numbers, in order of time; `None`: too few to say.
    pub fn of(series: &[(f64, f64)]) -> Option<Self> {
        let count = series.len();
        if count < FEWEST {
            return None;
        }
        let mut slopes = Vec::with_capacity(count * (count - 1) / 2);
        let mut balance = 0_i64;
        for (at, (then, before)) in series.iter().enumerate() {
            for (now, after) in &series[at + 1..] {
                if now > then {
                    slopes.push((after - before) / (now - then));
                }
                balance += i64::from(after > before) - i64::from(after < before);
            }
        }
        let mut numbers: Vec<_> = series.iter().map(|(_, number)| *number).collect();
        let median_number = median(&mut numbers);
        // Equal numbers are neither a rise nor a fall; what is left of chance is less by them.
        let ties = numbers.chunk_by(|one, other| one == other).map(|equal| variance(equal.len()));
        let deviation = (variance(count) - ties.sum::<f64>()).max(0.0).sqrt();
        let deviations = if deviation > 0.0 { (balance - balance.signum()) as f64 / deviation } else { 0.0 };
        Some(Self {
            samples: count,
            seconds: series[count - 1].0 - series[0].0,
            median: median_number,
            per_minute: median(&mut slopes) * 60.0,
            deviations,
        })
    }

    /// By how much it has grown in all.
    pub fn growth(&self) -> f64 {
        self.per_minute / 60.0 * self.seconds
    }

    /// Whether it grows: certainly, and in all by more than `tolerated`.
    pub fn grows(&self, tolerated: f64) -> bool {
        self.deviations > CERTAIN && self.growth() > tolerated
    }
}

/// 18 times less: of the balance of so many numbers in any order.
fn variance(count: usize) -> f64 {
    let n = count as f64;
    n * (n - 1.0) * (2.0 * n + 5.0) / 18.0
}

/// Sorts, and gives what is in the middle; 0 of nothing.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => 0.0,
        count if count % 2 == 1 => numbers[count / 2],
        count => f64::midpoint(numbers[count / 2 - 1], numbers[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Rng;

    /// Samples every 2 s that begin at 20,000 and grow so much a minute, and that are off by up to 500 by chance.
    fn series(seed: u64, count: usize, per_minute: f64) -> Vec<(f64, f64)> {
        let mut rng = Rng::new(seed);
        let number = |at: usize| {
            let seconds = at as f64 * 2.0;
            (seconds, 20_000.0 + per_minute * seconds / 60.0 + rng.below(1_000) as f64 - 500.0)
        };
        (0..count).map(number).collect()
    }

    #[test]
    fn a_leak_is_told_from_noise() {
        for seed in 0..20 {
            let level = Trend::of(&series(seed, 200, 0.0)).unwrap();
            assert!(!level.grows(200.0), "{level:?}");
            let leak = Trend::of(&series(seed, 200, 100.0)).unwrap();
            assert!(leak.grows(200.0), "{leak:?}");
            assert!((leak.per_minute - 100.0).abs() < 40.0, "{leak:?}");
            let shrinks = Trend::of(&series(seed, 200, -100.0)).unwrap();
            assert!(!shrinks.grows(0.0), "{shrinks:?}");
        }
    }

    #[test]
    fn one_step_is_no_leak() {
        let step: Vec<_> = (0..200).map(|at| (f64::from(at), if at < 40 { 100.0 } else { 500.0 })).collect();
        let trend = Trend::of(&step).unwrap();
        assert!(!trend.grows(1.0), "{trend:?}");
        // One that goes on is.
        let stairs: Vec<_> = (0..200).map(|at| (f64::from(at), f64::from(at / 20))).collect();
        assert!(Trend::of(&stairs).unwrap().grows(1.0));
    }

    #[test]
    fn few_or_equal_numbers_say_nothing() {
        assert_eq!(Trend::of(&series(1, FEWEST - 1, 100.0)), None);
        let equal: Vec<_> = (0..50).map(|at| (f64::from(at), 7.0)).collect();
        let trend = Trend::of(&equal).unwrap();
        assert_eq!((trend.deviations, trend.per_minute, trend.grows(0.0)), (0.0, 0.0, false));
    }
}
