//! Another program changes our nftables table, or puts one of its own beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubeferry_tests::client::until_for;
use kubeferry_tests::datapath::Datapath;

use super::trial::{PATIENCE, Sees, Trial};

/// What takes the translation of new connections away, by all of it.
const GONE: [(&str, &str); 4] = [
    ("`nft flush ruleset`", "flush ruleset"),
    ("our table flushed", "flush table inet kubeferry"),
    ("our table deleted", "delete table inet kubeferry"),
    ("our table switched off", "add table inet kubeferry { flags dormant; }"),
];

/// What changes a part of it.
const CHANGED: [(&str, &str); 6] = [
    ("a chain deleted", "flush chain inet kubeferry output; delete chain inet kubeferry output"),
    ("a row deleted", "delete element inet kubeferry frontends4 { 10.96.0.10 . tcp . 80 }"),
    ("all rows of a map deleted", "flush map inet kubeferry endpoints4"),
    ("a rule changed", "flush chain inet kubeferry discard; add rule inet kubeferry discard accept"),
    ("a rule added", "insert rule inet kubeferry services4 drop"),
    ("a policy changed", "add chain inet kubeferry prerouting { policy drop; }"),
];

/// What adds to it: the fault, what does it, and what clients see.
const ADDED: [(&str, &str, Sees); 5] = [
    (
        "a base chain of others that drops, added to our table",
        "add chain inet kubeferry theirs { type filter hook forward priority 0; policy drop; }",
        Sees::NewFail,
    ),
    (
        "a chain of others before the translation, added to our table",
        "add chain inet kubeferry theirs { type nat hook prerouting priority -101; }; \
         add rule inet kubeferry theirs ip daddr 10.96.0.10 tcp dport 80 drop",
        Sees::NewFail,
    ),
    (
        "a set, a map and a chain of others, added to our table",
        "add set inet kubeferry theirs { type ipv4_addr; }; add map inet kubeferry theirs2 { type ipv4_addr : verdict; }; \
         add chain inet kubeferry theirs3; add rule inet kubeferry theirs3 drop; \
         add element inet kubeferry theirs2 { 10.96.0.10 : goto theirs3 }",
        Sees::Nothing,
    ),
    (
        "a counter and a quota of others, added to our table",
        "add counter inet kubeferry theirs; add quota inet kubeferry theirs2 { over 1 mbytes; }",
        Sees::Nothing,
    ),
    (
        "a chain that is called as ours are, added to our table",
        "add chain inet kubeferry v4-theirs; add rule inet kubeferry v4-theirs drop",
        Sees::Nothing,
    ),
];

fn harm(trial: &Trial, script: &str) {
    trial.site.node().nft(&["-f", "-"], script).unwrap();
}

#[test]
fn a_table_that_goes_comes_back() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    for (fault, script) in GONE {
        trial.drifts(fault, Sees::NewFail, || harm(&trial, script));
    }
}

#[test]
fn a_table_that_is_changed_is_put_right() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    for (fault, script) in CHANGED {
        let sees = if fault == "a rule changed" { Sees::Nothing } else { Sees::NewFail };
        trial.drifts(fault, sees, || harm(&trial, script));
    }
}

/// Our table, as `nft` lists it.
fn table(trial: &Trial) -> String {
    trial.site.node().nft(&["list", "table", "inet", "kubeferry"], "").unwrap()
}

#[test]
fn what_is_added_to_the_table_goes_again() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    for (fault, script, sees) in ADDED {
        trial.drifts(fault, sees, || harm(&trial, script));
        let table = table(&trial);
        assert!(!table.contains("theirs"), "{fault}: {table}");
    }
    // The chain that the rows of a Service go to, whatever it is called today.
    let listed = table(&trial);
    let row = listed.split("10.96.0.10 . tcp . 80 : goto ").nth(1).unwrap();
    let chain = row.split([',', ' ', '\n']).next().unwrap();
    assert!(chain.starts_with("v4-internal-"), "{chain}");
    let insert = || harm(&trial, &format!("insert rule inet kubeferry {chain} drop"));
    trial.drifts("a rule in front of those of a Service's chain", Sees::NewFail, insert);
}

#[test]
fn a_chain_that_is_there_before_ours_of_its_name_is_not_taken_for_it() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    let listed = table(&trial);
    let chains: Vec<_> =
        listed.lines().filter_map(|line| line.trim().strip_prefix("chain v4-")?.strip_suffix("-3 {")).collect();
    assert!(!chains.is_empty(), "{listed}");
    // With two endpoints for three, these are what rows go to next.
    let script: String = chains
        .iter()
        .map(|chain| format!("add chain inet kubeferry v4-{chain}-2; add rule inet kubeferry v4-{chain}-2 drop\n"))
        .collect();
    trial.drifts("chains of others, called as those that a change needs just then", Sees::NewFail, || {
        harm(&trial, &script);
        trial.site.change(&["1", "2"]).unwrap();
    });
    let table = table(&trial);
    assert!(chains.iter().any(|chain| table.contains(&format!("chain v4-{chain}-2 {{"))), "{table}");
}

#[test]
fn a_table_that_goes_while_no_proxy_runs_comes_back_with_the_next() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    for (fault, script) in [GONE[0], GONE[1], CHANGED[1], CHANGED[4]] {
        trial.site.kill();
        let name = format!("{fault}, while no proxy ran");
        let away = || {
            harm(&trial, script);
            trial.site.run().unwrap();
        };
        trial.suffers(&name, Sees::NewFail, away, || Some(()));
        // A start without a table is a first start, and a row that lacks may be of what has changed meanwhile.
        let told = u64::from(![GONE[0].0, CHANGED[1].0].contains(&fault));
        assert_eq!(trial.drift().0, told, "{fault}");
    }
}

#[test]
fn tables_of_others_are_none_of_our_business() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    let other = "table inet other {
        chain first { type nat hook prerouting priority -101; ip daddr 192.0.2.77 tcp dport 80 dnat ip to 192.0.2.78; }
        chain same { type nat hook prerouting priority -100; ip daddr 192.0.2.77 tcp dport 81 dnat ip to 192.0.2.78; }
        chain out { type nat hook output priority -100; policy accept; }
        chain last { type nat hook postrouting priority 100; ip daddr 192.0.2.78 masquerade; }
        chain forward { type filter hook forward priority 0; policy accept; ct state invalid counter; }
    }";
    // Some looks of the proxy.
    let looked = |trial: &Trial| {
        let look = || trial.status()["drift"]["lastCheck"].to_string();
        (0..3).for_each(|_| {
            let before = look();
            until_for(PATIENCE, "a look at the kernel", || (look() != before).then_some(())).unwrap();
        });
    };
    let over = || {
        looked(&trial);
        Some(())
    };
    trial.suffers("another's table at our hooks", Sees::Nothing, || harm(&trial, other), over);
    let gone = || harm(&trial, "delete table inet other");
    trial.suffers("another's table at our hooks deleted", Sees::Nothing, gone, over);
    assert_eq!(trial.drift(), (0, 0));
}

#[test]
fn what_others_commit_all_the_time_hides_nothing() {
    let mut trial = Trial::start(Datapath::Nftables, &[]);
    // While they do, and the machine is so busy that reading all rows takes long, rows are read every 60 s only (`SELDOM` of
    // `proxy/src/backend/nftables/reconciler/check.rs`).
    trial.right += Duration::from_secs(60);
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                harm(&trial, "add table ip busy; delete table ip busy");
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let faults = std::panic::AssertUnwindSafe(|| {
            for (fault, script) in [GONE[0], CHANGED[1], (ADDED[0].0, ADDED[0].1)] {
                let name = format!("{fault}, while another program commits all the time");
                trial.drifts(&name, Sees::NewFail, || harm(&trial, script));
            }
        });
        let result = std::panic::catch_unwind(faults);
        end.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_change_of_the_objects_that_meets_the_fault_first_tells_of_it() {
    let trial = Trial::start(Datapath::Nftables, &[]);
    let flush = || {
        harm(&trial, "delete table inet kubeferry");
        trial.site.change(&["1", "2"]).unwrap();
    };
    trial.drifts("our table deleted just before a change", Sees::NewFail, flush);
}
