//! Kubeferry's own annotations of a Service. One that is wrong is left out with a fault; the others count.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Faults;
use crate::config::go_duration;
use crate::scheduler::HashKey;
use crate::state::objects::{Ignored, Scheduling};

/// The scheduler, by its name.
pub const SCHEDULER: &str = "kubeferry.dev/scheduler";
/// What `sh` and `mh` hash.
pub const HASH_KEY: &str = "kubeferry.dev/hash-key";
/// Weights of endpoints.
pub const WEIGHTS: &str = "kubeferry.dev/weights";
/// How long a new endpoint takes to come to its whole weight.
pub const SLOW_START: &str = "kubeferry.dev/slow-start";

/// The longest slow start.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What a Service's annotations say about schedulers; `None`: nothing.
pub(super) fn scheduling(
    annotations: Option<&BTreeMap<String, String>>,
    faults: &mut Faults,
) -> Option<Box<Scheduling>> {
    let mut read = Reader { annotations: annotations?, faults };
    let scheduling = Scheduling {
        scheduler: read.value(SCHEDULER, "the node's scheduler is used", |text| text.trim().parse()),
        hash_key: read.value(HASH_KEY, "the source address is used", |text| text.trim().parse::<HashKey>()),
        weights: read.value(WEIGHTS, "all weights are 1", |text| text.parse()).unwrap_or_default(),
        slow_start: read
            .value(SLOW_START, "new endpoints have their whole weight at once", duration)
            .filter(|slow_start| !slow_start.is_zero()),
    };
    (scheduling != Scheduling::default()).then(|| Box::new(scheduling))
}

/// Whether a fault says that the node's scheduler is used instead of the one that the Service asks for: it has no such name,
/// or this datapath cannot do it.
pub fn is_fallback(fault: &Ignored) -> bool {
    fault.why.strip_prefix("annotation ").is_some_and(|rest| rest.starts_with(&format!("{SCHEDULER} ignored")))
}

struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    faults: &'a mut Faults,
}

impl Reader<'_> {
    fn value<T>(&mut self, name: &str, instead: &str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match read(self.annotations.get(name)?) {
            Ok(value) => Some(value),
            Err(why) => {
                self.faults.add(format_args!("annotation {name} ignored: {why}; {instead}"));
                None
            }
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let short: String = text.chars().take(40).collect();
    let allowed = || format!("{short:?} must be a duration such as 30s, up to 24h");
    let duration = go_duration(text).map_err(|_| allowed())?;
    Duration::try_from(duration).ok().filter(|duration| *duration <= LONGEST).ok_or_else(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::Scheduler;
    use crate::state::event::Kind;
    use crate::state::objects::ObjectName;

    fn read(annotations: &[(&str, &str)]) -> (Option<Box<Scheduling>>, Vec<String>) {
        let annotations = annotations.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut faults = Faults::of(Kind::Service, &ObjectName::new("default", "web"));
        let scheduling = scheduling(Some(&annotations), &mut faults);
        (scheduling, faults.into_vec().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn all_are_read() {
        let (scheduling, faults) = read(&[
            (SCHEDULER, "mh"),
            (HASH_KEY, "source-address-and-port"),
            (WEIGHTS, "zone/a=3"),
            (SLOW_START, "1m30s"),
            ("example.org/other", "x"),
        ]);
        assert!(faults.is_empty());
        assert_eq!(
            *scheduling.unwrap(),
            Scheduling {
                scheduler: Some(Scheduler::Mh),
                hash_key: Some(HashKey::SourceAndPort),
                weights: "zone/a=3".parse().unwrap(),
                slow_start: Some(Duration::from_secs(90)),
            }
        );
        assert_eq!(read(&[]), (None, vec![]));
        assert_eq!(read(&[(SLOW_START, "0s")]), (None, vec![]));
    }

    #[test]
    fn a_wrong_one_costs_itself_alone() {
        let (scheduling, faults) = read(&[(SCHEDULER, "roundrobin"), (WEIGHTS, "zone/a=3"), (HASH_KEY, "port")]);
        assert_eq!(*scheduling.unwrap(), Scheduling { weights: "zone/a=3".parse().unwrap(), ..Scheduling::default() });
        assert_eq!(
            faults,
            [
                "Service default/web: annotation kubeferry.dev/scheduler ignored: \"roundrobin\" is not a scheduler: use \
                 one of random, rr, wrr, lc, wlc, sh, dh, sed, nq, mh; the node's scheduler is used",
                "Service default/web: annotation kubeferry.dev/hash-key ignored: \"port\" is not a hash key: use \
                 source-address or source-address-and-port; the source address is used",
            ]
        );
        for text in ["", "30", "-1s", "25h", "soon"] {
            let (scheduling, faults) = read(&[(SLOW_START, text), (SCHEDULER, "rr")]);
            assert_eq!(scheduling.unwrap().scheduler, Some(Scheduler::Rr));
            assert!(faults[0].contains("must be a duration such as 30s, up to 24h"), "{faults:?}");
        }
        let (none, faults) = read(&[(WEIGHTS, "zone/a=3,zone/b=many")]);
        assert!(none.is_none(), "half of a list of weights is another list");
        assert!(faults[0].contains("\"zone/b=many\" has no weight"), "{faults:?}");
    }
}
