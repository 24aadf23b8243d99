//! Random clusters: whatever the model says of a flow must happen to its packets, however the cluster came to be what it is.
//! `cargo xtask fuzz differential` goes on for longer.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kubeferry_tests::executors::live::{Live, Look, WORLDS};
use kubeferry_tests::executors::run;
use kubeferry_tests::flows::{Case, Expect, Step};
use kubeferry_tests::packets::Protocol;
use kubeferry_tests::random::{Campaign, Counts, Run, Scenario, everything, shrink, write};

/// How long the histories may take together. Those that there is no time for are left to the next run, which has others.
const TIME: Duration = Duration::from_secs(60);

/// By the binary, which starts anew for each state.
#[test]
fn model_rules_and_packets_agree_on_random_clusters() {
    for seed in 0..6 {
        let mut case = Scenario::new(seed, 3, 40).unwrap().case().unwrap();
        let model = Live::new(&case, &[]).unwrap();
        case.steps.iter_mut().for_each(|step| model.expect(step).unwrap());
        let disagreements = run(&case).unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        let lines: Vec<_> = disagreements.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "seed {seed}: {} disagreements\n{}", lines.len(), lines.join("\n"));
    }
}

/// By proxies that follow every change: two seeds that are always the same, then new ones.
#[test]
fn whatever_changes_ends_where_a_fresh_start_would() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    for (seed, clusters) in [(1, 2), (clock, 2)] {
        let campaign = Campaign {
            seed,
            time: TIME,
            clusters: Some(clusters),
            steps: 12,
            flows: 40,
            cases: std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("differential"),
            shrinking: Duration::from_secs(120),
            findings: 1,
        };
        let stopped = AtomicBool::new(false);
        // Not what the test harness keeps to itself while tests pass: a run that hangs has told its seed.
        let mut tell = |line: &str| drop(writeln!(std::io::stderr(), "{line}"));
        tell(&format!("random clusters of seed {seed}"));
        let report = campaign.run(&stopped, &mut tell).unwrap_or_else(|error| panic!("{error:#}"));
        assert!(report.found.is_empty(), "seeds that disagree: see the lines before");
        assert!(report.counts.steps > 0 && report.counts.flows > 0, "{:?}", report.counts);
    }
}

/// What a proxy did not write is seen in the rows, and by whatever meets it.
#[test]
fn rows_that_are_not_those_of_a_fresh_start_are_noticed() {
    let mut case = Scenario::new(1, 1, 60).unwrap().case().unwrap();
    // A second time, so that nothing is written.
    case.steps.extend(case.steps.clone());
    let mut live = Live::new(&case, &WORLDS).unwrap();
    let mut step = case.steps[0].clone();
    live.expect(&mut step).unwrap();
    assert_eq!(live.step(&step, Look { packets: 1, closely: false }).unwrap().disagreements, []);
    live.tamper().unwrap();
    let found = live.step(&step, Look { packets: 1, closely: false }).unwrap().disagreements;
    let executors: BTreeSet<_> = found.iter().map(|found| found.executor).collect();
    let all =
        ["nft-rows", "packets", "tc-rows", "ebpf", "test-run", "xdp-rows", "xdp", "test-run-xdp", "all-rows", "auto"];
    assert_eq!(executors, BTreeSet::from(all), "{found:?}");
}

/// A model that is wrong about one port: every executor sees it, and what is written is small and reads as a case.
#[test]
fn a_wrong_model_is_noticed_and_the_case_is_small() {
    let wrong = |step: &mut Step| {
        for row in step.rows.iter_mut().filter(|row| row.to.port() == 81 && row.protocol == Protocol::Tcp) {
            if matches!(row.expect, Expect::Endpoints { .. }) {
                row.expect = Expect::Drop;
            }
        }
    };
    let scenario = (0..).map(|seed| Scenario::new(seed, 3, 40).unwrap()).find(|scenario| {
        let mut case = scenario.case().unwrap();
        let model = Live::new(&case, &[]).unwrap();
        let is_spoilt = |step: &mut Step| {
            model.expect(step).unwrap();
            let before = step.clone();
            wrong(step);
            *step != before
        };
        case.steps.iter_mut().all(is_spoilt)
    });
    let scenario = scenario.unwrap();
    let how = Run { worlds: &WORLDS, look: everything, goes_on: &|| true, spoil: &wrong };
    let agreement = scenario.run(&how, &mut Counts::default()).unwrap();
    let executors: BTreeSet<_> = agreement.disagreements.iter().map(|found| found.executor).collect();
    assert!(["packets", "ebpf", "test-run", "auto"].iter().all(|name| executors.contains(name)), "{executors:?}");
    let (small, disagreements) = shrink(&scenario, &agreement, Duration::from_secs(300), &wrong).unwrap();
    assert!(!disagreements.is_empty());
    // Of three states of forty flows.
    assert_eq!((small.states.len(), small.states[0].flows.len()), (1, 1));
    let below = tempfile::tempdir().unwrap();
    let folder = write(&small, below.path(), "small", "a test").unwrap();
    assert_eq!(Case::read(&folder).unwrap().steps.len(), 1);
}
