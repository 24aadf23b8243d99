//! Slow start: an endpoint that becomes ready while others serve takes its whole weight bit by bit.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The least time between two steps of a ramp.
const STEP: Duration = Duration::from_secs(1);
/// Steps of a whole ramp, from 1 % to 100 %.
const STEPS: u32 = 99;

/// The ready endpoints of one Service, and which of them are on their way to their whole weight. Times are those of one
/// clock that only goes forward.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ramps {
    over: Duration,
    /// When it became ready; `None`: it has its whole weight.
    ready: BTreeMap<IpAddr, Option<Duration>>,
    /// When it was last looked who is ready.
    followed: Duration,
}

impl Ramps {
    /// For a Service whose endpoints are seen for the first time: none of them is new, for what this proxy can tell.
    pub fn new(over: Duration, ready: impl Iterator<Item = IpAddr>) -> Self {
        Self { over, ready: ready.map(|ip| (ip, None)).collect(), followed: Duration::ZERO }
    }

    /// These endpoints are ready now. Who was not before begins at 1 %.
    pub fn follow(&mut self, over: Duration, ready: impl Iterator<Item = IpAddr>, now: Duration) {
        (self.over, self.followed) = (over, now);
        let mut before = std::mem::take(&mut self.ready);
        let since = |since: Option<Duration>| since.filter(|since| now.saturating_sub(*since) < over);
        self.ready = ready.map(|ip| (ip, before.remove(&ip).map_or(Some(now), since))).collect();
    }

    /// The part of its weight that an endpoint has, in percent: 1 to 100.
    pub fn percent(&self, ip: IpAddr, now: Duration) -> u16 {
        let Some(since) = self.ready.get(&ip).copied().flatten() else { return 100 };
        let (elapsed, over) = (now.saturating_sub(since).as_millis(), self.over.as_millis().max(1));
        let steps = (u128::from(STEPS) * elapsed / over).min(u128::from(STEPS));
        1 + steps as u16
    }

    /// How long weights stay as they are while endpoints are on their way; `None`: none is.
    pub fn step(&self) -> Option<Duration> {
        self.ready.values().any(Option::is_some).then(|| STEP.max(self.over / STEPS))
    }

    /// When they change next, if nothing else does; `None`: no endpoint is on its way.
    pub fn next(&self) -> Option<Duration> {
        Some(self.followed + self.step()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVER: Duration = Duration::from_secs(30);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ips(last: &[u8]) -> impl Iterator<Item = IpAddr> {
        last.iter().map(|last| IpAddr::from([10, 0, 0, *last]))
    }

    #[test]
    fn who_comes_later_begins_at_one_percent() {
        let mut ramps = Ramps::new(OVER, ips(&[1, 2]));
        let percent = |ramps: &Ramps, now| [1, 2, 3].map(|last| ramps.percent(IpAddr::from([10, 0, 0, last]), at(now)));
        assert_eq!((percent(&ramps, 0), ramps.step()), ([100, 100, 100], None));
        ramps.follow(OVER, ips(&[1, 2, 3]), at(100));
        assert_eq!(percent(&ramps, 100), [100, 100, 1]);
        assert_eq!(ramps.step(), Some(at(1)));
        assert_eq!(percent(&ramps, 115), [100, 100, 50]);
        assert_eq!(percent(&ramps, 129), [100, 100, 96]);
        assert_eq!(percent(&ramps, 130), [100, 100, 100]);
        ramps.follow(OVER, ips(&[1, 2, 3]), at(129));
        assert!(ramps.step().is_some());
        ramps.follow(OVER, ips(&[1, 2, 3]), at(130));
        assert_eq!((percent(&ramps, 130), ramps.step()), ([100, 100, 100], None));
    }

    #[test]
    fn who_comes_back_begins_again() {
        let mut ramps = Ramps::new(OVER, ips(&[1, 2]));
        ramps.follow(OVER, ips(&[2]), at(10));
        ramps.follow(OVER, ips(&[1, 2]), at(20));
        assert_eq!(ramps.percent(IpAddr::from([10, 0, 0, 1]), at(20)), 1);
        assert_eq!(ramps.percent(IpAddr::from([10, 0, 0, 2]), at(20)), 100);
    }

    #[test]
    fn long_ramps_have_fewer_steps() {
        let mut ramps = Ramps::new(at(9_900), ips(&[]));
        ramps.follow(at(9_900), ips(&[1]), at(5));
        assert_eq!(ramps.step(), Some(at(100)));
    }
}
