//! Kubeferry's schedulers beside those of IPVS in a kernel: the same endpoints, weights and arrivals. `cargo xtask test ipvs`
//! makes a new recording with IPVS in a virtual machine and names it; otherwise the one in the repository is looked at.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use kubeferry::scheduler::Scheduler;
use kubeferry_tests::schedulers::ipvs::{Ipvs, OpenCounts};
use kubeferry_tests::schedulers::ours;
use kubeferry_tests::schedulers::recording::{Arrival, Case, Recording};

fn recording() -> Recording {
    let file = std::env::var_os("KUBEFERRY_IPVS_RECORDING").map(PathBuf::from);
    let file = file.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("ipvs/recorded.json"));
    let recording = Recording::read(&file).unwrap();
    println!("IPVS of Linux {}, recorded in {}", recording.kernel, file.display());
    recording
}

/// How Kubeferry's assignments differ from IPVS's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Difference {
    /// The turn is the same and begins elsewhere.
    Place,
    /// IPVS took one of several equals, which Kubeferry takes in turn.
    Equals,
    /// IPVS took an endpoint that has more open connections for its weight, because others have many that are over.
    Inactive,
    /// Another hash and another table.
    Table,
}

impl Difference {
    const ALL: [(&str, Self); 4] =
        [("place", Self::Place), ("equals", Self::Equals), ("inactive", Self::Inactive), ("table", Self::Table)];
}

#[test]
fn ipvs_does_what_its_definition_says() {
    let recording = recording();
    let as_defined =
        |weight| recording.cases.iter().map(|case| as_defined(case, weight)).collect::<Result<Vec<_>, _>>();
    let compared = as_defined(OpenCounts::As257).or_else(|one| {
        let other = as_defined(OpenCounts::As256);
        other.map_err(|other| format!("neither with 257 ({one}) nor with 256 ({other}) for an open connection"))
    });
    let mut sums = BTreeMap::new();
    for (case, compared) in recording.cases.iter().zip(compared.unwrap()) {
        *sums.entry(case.scheduler.as_str()).or_insert(0) += compared;
    }
    sums.retain(|_, connections| *connections > 0);
    println!("connections that got the endpoint of the definition: {sums:?}");
    assert_eq!(sums.keys().copied().collect::<Vec<_>>(), ["lc", "nq", "rr", "sed", "wlc", "wrr"]);
}

/// How many connections of a case got the endpoint of the definition, if not one got another. Schedulers that hash have none
/// here.
fn as_defined(case: &Case, weight: OpenCounts) -> Result<usize, String> {
    let Some(mut ipvs) = Ipvs::new(&case.scheduler, &case.weights, weight) else { return Ok(0) };
    let mut changes = 0;
    let arrivals = case.arrivals().unwrap();
    for (number, arrival) in arrivals.iter().enumerate() {
        if arrival.changes != changes {
            // One weight changes at a time.
            assert_eq!(arrival.changes, changes + 1, "{}", case.title());
            let weights: Vec<u32> = arrival.endpoints.iter().map(|endpoint| endpoint.weight).collect();
            ipvs.change(&weights);
            changes = arrival.changes;
        }
        let defined = ipvs.choose(&arrival.endpoints);
        if defined != Some(arrival.assigned) {
            let (title, assigned) = (case.title(), arrival.assigned);
            return Err(format!("{title}: connection {number} went to {assigned}, by definition {defined:?}"));
        }
    }
    Ok(arrivals.len())
}

#[test]
fn every_difference_from_ipvs_is_in_the_document_and_no_other_is() {
    let recording = recording();
    let mut found: BTreeMap<(String, String), BTreeSet<Difference>> = BTreeMap::new();
    for case in &recording.cases {
        let differences = found.entry((case.scheduler.clone(), case.name.clone())).or_default();
        differences.extend(differences_of(case));
    }
    found.retain(|_, differences| !differences.is_empty());
    assert_eq!(
        found,
        documented(),
        "left: beside IPVS of Linux {}; right: the table of the document",
        recording.kernel
    );
}

fn differences_of(case: &Case) -> BTreeSet<Difference> {
    let scheduler: Scheduler = case.scheduler.parse().unwrap();
    let arrivals = case.arrivals().unwrap();
    match scheduler {
        Scheduler::Rr | Scheduler::Wrr => turns(case, scheduler, &arrivals),
        Scheduler::Sh | Scheduler::Dh | Scheduler::Mh => hashes(case, scheduler, &arrivals),
        _ => arrivals
            .iter()
            .flat_map(|arrival| {
                let candidates = ours::candidates(scheduler, &arrival.endpoints);
                let inactive = (!candidates.contains(&arrival.assigned)).then_some(Difference::Inactive);
                inactive.into_iter().chain((candidates.len() > 1).then_some(Difference::Equals))
            })
            .collect(),
    }
}

/// Between two changes of weights it has to be our turn, wherever that begins.
fn turns(case: &Case, scheduler: Scheduler, arrivals: &[Arrival]) -> BTreeSet<Difference> {
    let mut differences = BTreeSet::new();
    for part in arrivals.chunk_by(|one, next| one.changes == next.changes) {
        let weights: Vec<u32> = part[0].endpoints.iter().map(|endpoint| endpoint.weight).collect();
        let turn = ours::turn(scheduler, &weights);
        let assigned: Vec<usize> = part.iter().map(|arrival| arrival.assigned).collect();
        let begins_at = (0..turn.len())
            .find(|at| turn.iter().cycle().skip(*at).zip(&assigned).all(|(ours, theirs)| ours == theirs))
            .unwrap_or_else(|| panic!("{}: {assigned:?} is not the turn {turn:?}", case.title()));
        // After a change, ours goes on where the datapath's counter is.
        if begins_at != 0 && part[0].changes == 0 {
            differences.insert(Difference::Place);
        }
    }
    differences
}

/// A source has one endpoint there as here; which one is another matter.
fn hashes(case: &Case, scheduler: Scheduler, arrivals: &[Arrival]) -> BTreeSet<Difference> {
    let service: IpAddr = "10.96.0.10".parse().unwrap();
    let mut theirs = BTreeMap::new();
    let mut differences = BTreeSet::new();
    for arrival in arrivals {
        let known = *theirs.entry(arrival.source).or_insert(arrival.assigned);
        assert_eq!(known, arrival.assigned, "{}: IPVS has two endpoints for a source", case.title());
        let source = SocketAddr::from(([10, 1, 0, arrival.source], 2000));
        // One address may fall to the same endpoint by chance.
        if scheduler == Scheduler::Dh || ours::hashed(scheduler, &case.weights, source, service) != Some(known) {
            differences.insert(Difference::Table);
        }
    }
    let used: BTreeSet<usize> = theirs.into_values().collect();
    // There is one destination.
    assert_eq!(used.len(), if scheduler == Scheduler::Dh { 1 } else { case.weights.len() }, "{}", case.title());
    differences
}

/// The rows of the document's table: schedulers and scripts in backquotes, then the difference.
fn documented() -> BTreeMap<(String, String), BTreeSet<Difference>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proxy/src/scheduler/ipvs.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let quoted = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let mut rows: BTreeMap<(String, String), BTreeSet<Difference>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let difference = Difference::ALL.into_iter().find(|(name, _)| *name == cells[3]);
        let (_, difference) = difference.unwrap_or_else(|| panic!("the document has no such difference: {line}"));
        for scheduler in quoted(cells[1]) {
            for script in quoted(cells[2]) {
                let is_new = rows.entry((scheduler.clone(), script.clone())).or_default().insert(difference);
                assert!(is_new, "twice in the document: {scheduler}, {script}");
            }
        }
    }
    rows
}
