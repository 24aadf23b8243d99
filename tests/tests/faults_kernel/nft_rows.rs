//! Another program deletes or overwrites rows of our nftables table, whichever map they are in.

use kubeferry::backend::nftables::maps::MAPS;
use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::site::at;

use super::guarded::{GUARDED_IPS, GUARDED_VIPS, guarded};
use super::trial::{EVERYWHERE, Sees, Trial};

/// Rows that say something else: the fault, the map, what is in the place of what.
const OVERWRITTEN: [(&str, &str, &str, &str); 3] = [
    ("a Service's verdict", "frontends4", "10.96.0.10 . tcp . 80", "drop"),
    ("an endpoint", "endpoints4", "10.96.0.10 . tcp . 80 . 1", "10.244.1.1 . 9"),
    ("a node port's endpoint", "nodeport_endpoints6", "tcp . 30080 . 1", "fd00:10:244:1::1 . 9"),
];

/// How a Service takes turns, which nothing but its own rows remembers.
const TURNS: &str = ", annotations: {kubeferry.dev/scheduler: rr}";

/// The flags of a node where each map has rows, and a Service that needs them.
fn start() -> Trial {
    let trial = Trial::start(Datapath::Nftables, &["--nodeport-addresses", "192.0.2.0/24,2001:db8:2::/64"]);
    let turning = guarded(TURNS).replace("guarded", "turning").replace("ClientIP", "None");
    let turning = turning.replace(".14", ".15").replace("::14", "::15").replace("30085", "30086");
    let turning = turning.replace("198.51.100.9", "198.51.100.10").replace("7::9", "7::10");
    trial.site.change_as(&EVERYWHERE, &|manifests| manifests + &guarded("") + &turning).unwrap();
    for to in GUARDED_IPS {
        let answered = || Connection::attempt(trial.site.outside(), at(to, 80))?.ask().ok();
        until_for(trial.right, "the Service to be served", answered).unwrap();
    }
    trial
}

#[test]
fn all_rows_of_each_map_that_are_deleted_come_back() {
    let trial = start();
    let mut ways = trial.ways();
    ways.extend(GUARDED_IPS.map(|ip| (trial.site.outside(), at(ip, 80))));
    ways.extend(GUARDED_VIPS.map(|ip| (trial.site.client(), at(ip, 80))));
    let node = trial.site.node();
    let mut without = Vec::new();
    for [v4, v6] in MAPS {
        // Some are sets.
        let kind = |map| if node.nft(&["list", "map", "inet", "kubeferry", map], "").is_ok() { "map" } else { "set" };
        let has_rows = |map| node.nft(&["list", kind(map), "inet", "kubeferry", map], "").unwrap().contains("elements");
        if !has_rows(v4) || !has_rows(v6) {
            without.push(v4);
            continue;
        }
        let script = [v4, v6].map(|map| format!("flush {} inet kubeferry {map}\n", kind(map))).concat();
        let (before, _) = trial.drift();
        let over = || (trial.drift().0 > before).then_some(());
        let fault = format!("all rows of {v4} and {v6} deleted");
        trial.watches_by(&ways, &fault, Sees::NewFail, || drop(node.nft(&["-f", "-"], &script).unwrap()), over);
        assert!(has_rows(v4) && has_rows(v6), "{fault}");
    }
    // Of the ServiceCIDRs there is none in a folder of manifests.
    assert_eq!(without, ["service_cidrs4"]);
}

#[test]
fn rows_that_say_something_else_are_put_right() {
    let trial = start();
    for (what, map, key, value) in OVERWRITTEN {
        let script = format!(
            "delete element inet kubeferry {map} {{ {key} }}\nadd element inet kubeferry {map} {{ {key} : {value} }}\n"
        );
        trial.drifts(&format!("{what} overwritten in {map}"), Sees::NewFail, || {
            trial.site.node().nft(&["-f", "-"], &script).unwrap();
        });
    }
}
