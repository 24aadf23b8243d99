//! Section 9: somebody else changes the tables.

use std::fs::File;
use std::mem::offset_of;
use std::process::{Command, Stdio};

use kubeferry_ebpf_common::{Frontend, TCP};
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::{until, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::web::MANIFESTS;
use serde_json::Value;

use super::page::{code, commands, section, shows};
use super::served::{PATIENCE, Served};

/// Repairs so far, by the metric that the page names.
fn repairs(served: &Served) -> u64 {
    let name = code(&section(9)).into_iter().find(|code| code.starts_with("kubeferry_drift_")).unwrap();
    let metrics = served.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// What a firewall does that thinks it is alone.
fn harm(served: &Served) {
    match &served.datapath {
        Datapath::Nftables => drop(served.node().nft(&["flush", "ruleset"], "").unwrap()),
        Datapath::Ebpf(places) => {
            let pinned = Pinned::open(places.bpffs()).unwrap();
            let mut row = pinned.frontend(served.web.vip(), TCP).unwrap().unwrap();
            row[offset_of!(Frontend, flags)..][..4].copy_from_slice(&Frontend::REFUSE.to_ne_bytes());
            pinned.put_frontend(served.web.vip(), TCP, &row).unwrap();
        }
    }
}

/// As often as somebody changes them they are put right, and each place that the page names tells of it.
fn it_goes_on_rising_while_two_programs_fight(datapath: Datapath) {
    let served = Served::start(datapath, MANIFESTS, &[]);
    let before = repairs(&served);
    for round in 1..=3 {
        harm(&served);
        until_for(PATIENCE, "the tables to be put right", || (repairs(&served) >= before + round).then_some(()))
            .unwrap();
        assert_eq!(served.open(1).len(), 1);
    }
    let section = section(9);
    let status = served.enter(&commands(&section, "kubeferry status")[0]);
    shows(&section, "looked", &status);
    let told = repairs(&served);
    assert!(status.lines().any(|line| line.starts_with(&format!("drift     {told} repairs of "))), "{status}");
    let top = served.enter(&commands(&section, "kubeferry top")[0]);
    assert!(top.contains(&format!("drift: {told} repairs of ")), "{top}");
}

on_both_datapaths! {
    it_goes_on_rising_while_two_programs_fight,
}

#[test]
fn nft_monitor_names_the_tables_and_who_keeps_to_its_own_harms_nobody() {
    let served = Served::start(Datapath::Nftables, MANIFESTS, &[]);
    let section = section(9);
    let command = &commands(&section, "nft monitor")[0];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut monitor = Command::new("sh");
    monitor.args(["-c", &format!("exec {command}")]).stdin(Stdio::null()).stdout(File::create(&path).unwrap());
    let mut monitor = served.node().spawn(&mut monitor).unwrap();
    let heard = || std::fs::read_to_string(&path).unwrap();
    let firewall = "table inet firewall { chain forward { type filter hook forward priority 0; tcp dport 9 drop; }; }";
    let load = |flush: &str| drop(served.node().nft(&["-f", "-"], &format!("{flush}\n{firewall}\n")).unwrap());
    // It may not listen yet.
    until("the monitor to hear something", || {
        load("add table inet firewall");
        (!heard().is_empty()).then_some(())
    })
    .unwrap();
    let told = || served.json("/api/v1/node")["drift"].clone();
    let before = repairs(&served);
    load("flush ruleset");
    until_for(PATIENCE, "the repair", || (repairs(&served) > before).then_some(())).unwrap();
    for table in ["inet firewall", "inet kubeferry"] {
        let lines = [format!("delete table {table}"), format!("add table {table}")];
        until(&format!("{lines:?}"), || lines.iter().all(|line| heard().contains(line)).then_some(())).unwrap();
    }
    // Its own table alone.
    let before = repairs(&served);
    for _ in 0..2 {
        load("flush table inet firewall");
        let last = told()["lastCheck"].clone();
        assert_ne!(last, Value::Null);
        until("another look for drift", || (told()["lastCheck"] != last).then_some(())).unwrap();
    }
    assert_eq!(repairs(&served), before);
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}
