//! By chance: every endpoint with a probability by its weight.

use std::collections::BTreeMap;

use kubeferry_tests::datapath::Datapath;

use super::cluster::{Service, World, client, endpoint, flows};

kubeferry_tests::on_both_datapaths! {
    connections_are_shared_out_by_chance_and_weight,
}

/// How seldom the test may fail although all is well.
const FALSE_ALARM: f64 = 1e-9;

/// The probability that a sum of so many squared normal deviates (an even number) is at least `sum`.
fn chi_squared_tail(degrees: u32, sum: f64) -> f64 {
    assert!(degrees.is_multiple_of(2));
    let half = sum / 2.0;
    let mut term = 1.0;
    let mut total = 0.0;
    for step in 0..degrees / 2 {
        if step > 0 {
            term *= half / f64::from(step);
        }
        total += term;
    }
    total * (-half).exp()
}

#[test]
fn the_tail_is_that_of_the_tables() {
    // Abramowitz and Stegun, table 26.8: 13.8155 for 2 degrees at 0.001, 18.4668 for 4.
    assert!((chi_squared_tail(2, 13.8155) - 0.001).abs() < 1e-7);
    assert!((chi_squared_tail(4, 18.4668) - 0.001).abs() < 1e-6);
}

fn connections_are_shared_out_by_chance_and_weight(datapath: Datapath) {
    let weights = [1u16, 2, 3, 4, 5];
    let even = Service::new("web", "random", 5);
    let weighted = Service::new("other", "random", 5).weighted(&weights);
    let world = World::start(&datapath, &[even.clone(), weighted.clone()]);
    for (service, weights) in [(&even, [1; 5]), (&weighted, weights)] {
        for v6 in [false, true] {
            let flows: Vec<_> =
                (0..3).flat_map(|number| flows(0, 1000, client(number + 1, v6), service.vip(v6))).collect();
            let mut counts: BTreeMap<_, f64> = (1..=5).map(|number| (endpoint(number, v6), 0.0)).collect();
            world.connect(&flows).iter().for_each(|reached| *counts.get_mut(reached).unwrap() += 1.0);
            let whole: u16 = weights.iter().sum();
            let square = |(count, weight): (&f64, u16)| {
                let expected = flows.len() as f64 * f64::from(weight) / f64::from(whole);
                (count - expected).powi(2) / expected
            };
            let sum: f64 = counts.values().zip(weights).map(square).sum();
            let chance = chi_squared_tail(4, sum);
            assert!(
                chance > FALSE_ALARM,
                "{counts:?} for weights {weights:?}: chi-squared {sum}, a chance of {chance:e}"
            );
        }
    }
}
