//! How often is synced.

use std::time::Duration;

use super::Check;
use crate::config::go_duration;
use crate::settings::ProxyMode;
use crate::settings::merge::{Given, text_of};

const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// kube-proxy's default of the least time between syncs, but in its mode ipvs. Here it is nothing.
const THEIR_MIN_SYNC_PERIOD: Duration = Duration::from_secs(1);

impl Check<'_> {
    /// The sync period, greater than zero, and the least time between syncs, not greater.
    pub(super) fn periods(&mut self, mode: ProxyMode) -> (Duration, Duration) {
        let serve = self.given.serve;
        let [sync_flag, min_flag] = ["--iptables-sync-period", "--iptables-min-sync-period"];
        let sync = self.period(serve.iptables_sync_period.as_ref(), sync_flag, mode, "syncPeriod");
        let min = self.period(serve.iptables_min_sync_period.as_ref(), min_flag, mode, "minSyncPeriod");
        if let Some(sync) = sync.as_ref().filter(|sync| sync.value.is_zero()) {
            self.problems.push(sync.problem("must be greater than 0".to_owned()));
        }
        let period = sync.as_ref().map_or(SYNC_PERIOD, |sync| sync.value);
        if let Some(min) = min.as_ref().filter(|min| min.value > period) {
            let than = sync.as_ref().map_or("the sync period", |sync| sync.what.as_str());
            let why = format!("must not be greater than {than}, which is {}", text_of(period));
            self.problems.push(min.problem(why));
        }
        let short = |sync: &&Given<Duration>| !sync.value.is_zero() && sync.value < THEIR_MIN_SYNC_PERIOD;
        if let (Some(sync), None) = (sync.as_ref().filter(short), &min)
            && mode != ProxyMode::Ipvs
        {
            let least = text_of(THEIR_MIN_SYNC_PERIOD);
            let why =
                format!("must not be less than minSyncPeriod, which is {least} in kube-proxy unless it is given, too");
            self.problems.push(sync.problem(why));
        }
        (period, min.map_or(Duration::ZERO, |min| min.value))
    }

    /// A period of the mode in force; kube-proxy's mode ipvs has flags of its own.
    fn period(&mut self, flag: Option<&String>, name: &str, mode: ProxyMode, field: &str) -> Option<Given<Duration>> {
        let flag = flag.filter(|_| {
            if mode == ProxyMode::Ipvs {
                let instead = name.replace("iptables", "ipvs");
                self.warnings.push(format!("{name} is not read: the mode is ipvs; use {instead}"));
            }
            mode != ProxyMode::Ipvs
        });
        let Some(text) = flag else { return self.given.period(&format!("{}.{field}", mode.name())) };
        let read = go_duration(text).and_then(|d| Duration::try_from(d).map_err(|_| "must not be negative".to_owned()));
        match read {
            Ok(value) => Some(Given { what: name.to_owned(), value }),
            Err(why) => {
                self.problems.push(Given { what: name.to_owned(), value: text.clone() }.problem(why));
                None
            }
        }
    }
}
