//! The node's scheduler, from a flag, or from a configuration file of kube-proxy's IPVS mode.

use super::BackendName;
use super::merge::{Given, Inputs};
use crate::config::Problem;
use crate::scheduler::slots::TABLE_SIZE;
use crate::scheduler::{HashKey, Schedule, Scheduler};

/// Our flag. What kube-proxy's own settings ask for is taken for another where it cannot be had: a file that kube-proxy runs with
/// keeps no node from being served.
const OURS: &str = "--scheduler";

/// The largest table of `mh`.
const LARGEST_TABLE: u32 = 65_537;

/// Schedulers that kube-proxy's IPVS mode takes and that have no counterpart here.
const WITHOUT_COUNTERPART: [&str; 5] = ["lblc", "lblcr", "fo", "ovf", "twos"];

/// The schedule of services that ask for none of their own. `ipvs`: the file's settings of IPVS mode are in force.
pub(super) fn check(
    given: &Inputs<'_>,
    backend: BackendName,
    ipvs: bool,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Schedule {
    let args = given.datapath();
    let flag = args.scheduler.as_ref().map(|value| Given { what: OURS.to_owned(), value: value.clone() });
    let file = || {
        let value = given.config.text("ipvs.scheduler").unwrap_or(Scheduler::Rr.name()).to_owned();
        ipvs.then_some(Given { what: given.config.origin("ipvs.scheduler"), value })
    };
    let scheduler = flag.or_else(file).map(|given| name(&given, backend, problems, warnings)).unwrap_or_default();
    Schedule {
        scheduler,
        hash_key: HashKey::default(),
        table_size: table_size(args.maglev_table_size.as_ref(), problems),
    }
}

fn name(
    given: &Given<String>,
    backend: BackendName,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<String>,
) -> Scheduler {
    let text = given.value.trim();
    if given.what != OURS && WITHOUT_COUNTERPART.contains(&text) {
        warnings.push(format!(
            "{} {text} has no counterpart: {} is used; choose another with {OURS}",
            given.what,
            Scheduler::default()
        ));
        return Scheduler::default();
    }
    let Ok(scheduler) = text.parse::<Scheduler>() else {
        let names = Scheduler::ALL.map(Scheduler::name).join(", ");
        problems.push(given.problem(format!("must be one of {names}")));
        return Scheduler::default();
    };
    if !scheduler.counts_connections() || backend.counts_connections() {
        return scheduler;
    }
    let why = "asks how many connections each endpoint has, which only the eBPF datapath counts";
    if given.what != OURS {
        warnings.push(format!(
            "{} {text} {why}: {} is used; use --backend ebpf, or choose another with {OURS}",
            given.what,
            Scheduler::default()
        ));
        return Scheduler::default();
    }
    let others = Scheduler::ALL.into_iter().filter(|scheduler| !scheduler.counts_connections());
    let others: Vec<&str> = others.map(Scheduler::name).collect();
    problems.push(given.problem(format!("{why}: use --backend ebpf, or one of {}", others.join(", "))));
    scheduler
}

fn table_size(text: Option<&String>, problems: &mut Vec<Problem>) -> u32 {
    let Some(text) = text else { return TABLE_SIZE };
    let size = text.trim().parse().ok().filter(|size| *size <= LARGEST_TABLE && is_prime(*size));
    size.unwrap_or_else(|| {
        let given = Given { what: "--maglev-table-size".to_owned(), value: text.clone() };
        problems.push(given.problem(format!(
            "must be a prime number up to {LARGEST_TABLE}, such as 251, 509, {TABLE_SIZE}, 2039, 4093, 8191, 16381 or \
             {LARGEST_TABLE}"
        )));
        TABLE_SIZE
    })
}

fn is_prime(number: u32) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn primes_are_told() {
        let primes: Vec<u32> = (0..30).filter(|number| is_prime(*number)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29]);
        for named in [251, 509, TABLE_SIZE, 2039, 4093, 8191, 16_381, LARGEST_TABLE] {
            assert!(is_prime(named), "{named} is proposed");
        }
        assert!(!is_prime(1_018_081 / 1009 * 2) && !is_prime(1009 * 3));
    }
}
