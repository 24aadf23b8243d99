//! The flow table, followed: each packet's decision beside its row, what became of it, and the model.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use kubeferry_tests::executors::{Followed, ServedBy, follow_rows};
use kubeferry_tests::flows::Case;

/// Cases at a time: each waits more than it works.
const AT_A_TIME: usize = 4;

/// Those with most packets from elsewhere: refused, dropped, to endpoints here and there, masqueraded or not.
const FROM_ELSEWHERE: [&str; 3] = ["external_traffic_policy_local", "load_balancer_source_ranges", "node_port"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("flows")
}

fn every_case() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Follows every row of these cases, and fails with all that is told otherwise.
fn follow(names: Vec<String>, by: ServedBy) -> Followed {
    let cases: Vec<_> = names.iter().map(|name| Case::read(&folder().join(name)).unwrap()).collect();
    let rows: usize = cases.iter().flat_map(|case| &case.steps).map(|step| step.rows.len()).sum();
    let (next, all) = (Mutex::new(cases.iter()), Mutex::new(Followed::default()));
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(case) = { next.lock().unwrap().next() } {
                    let followed = follow_rows(case, by).unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
                    all.lock().unwrap().add(followed);
                }
            });
        }
    });
    let all = all.into_inner().unwrap();
    println!("{by:?}: {} cases, {rows} rows, {} packets, {} sockets", cases.len(), all.packets, all.sockets);
    let lines: Vec<_> = all.disagreements.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} disagreements\n{}", lines.len(), lines.join("\n"));
    assert_eq!(all.rows, rows, "rows that nothing was followed for");
    all
}

#[test]
fn rows_are_followed_by_rules() {
    follow(every_case(), ServedBy::Nftables);
}

#[test]
fn rows_are_followed_by_all_hooks() {
    let followed = follow(every_case(), ServedBy::AllHooks);
    assert!(followed.sockets > 0, "no socket was translated");
}

/// Where nothing has XDP, what comes from elsewhere is TC's.
#[test]
fn rows_are_followed_by_tc() {
    follow(FROM_ELSEWHERE.map(str::to_owned).to_vec(), ServedBy::Tc);
}
