//! Random clusters: whatever the model says of a flow must happen to its packets, and each state must be reached from the one
//! before as if it were the first. `KUBEFERRY_SEEDS=100..200` tries others than the usual ones.

use kubeferry_tests::random::Scenario;

/// The seeds that are tried where nothing else is said.
const USUAL: std::ops::Range<u64> = 0..24;

#[test]
fn model_rules_and_packets_agree_on_random_clusters() {
    let seeds = match std::env::var("KUBEFERRY_SEEDS") {
        Ok(text) => {
            let (start, end) = text.split_once("..").expect("KUBEFERRY_SEEDS is a range such as 100..200");
            start.parse().expect("a number")..end.parse().expect("a number")
        }
        Err(_) => USUAL,
    };
    for seed in seeds {
        let scenario = Scenario::new(seed).unwrap();
        let disagreements = scenario.run().unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
        if disagreements.is_empty() {
            continue;
        }
        let first: Vec<_> = disagreements.iter().map(ToString::to_string).collect();
        println!("seed {seed}: {} disagreements\n{}\n", first.len(), first.join("\n"));
        let small = scenario.shrunk().unwrap();
        let lines: Vec<_> = small.run().unwrap().iter().map(ToString::to_string).collect();
        panic!("seed {seed}, made small:\n{}\n{}", small.describe().unwrap(), lines.join("\n"));
    }
}
