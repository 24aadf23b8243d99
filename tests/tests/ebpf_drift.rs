//! Rows that somebody else deletes or overwrites behind the proxy's back come back, and the drift is told; and rows that are
//! written all the time are read whole.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::TCP;
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_tests::bpf::pinned::{Pinned, detach};
use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::packets::{Protocol, first_packet};
use kubeferry_tests::site::{Site, VIPS, at};

/// Every row is looked at once in half a minute.
const LOOKS: Duration = Duration::from_secs(120);

/// A node whose proxy says that nothing has drifted.
fn site() -> (Site, Pinned) {
    let site = Site::start(&["1", "2"]).unwrap();
    site.until_served().unwrap();
    let pinned = Pinned::open(site.places().bpffs()).unwrap();
    assert_eq!(drift(&site), (0, 0));
    (site, pinned)
}

fn get(site: &Site, path: &str) -> String {
    let get = || kubeferry::status::get(&format!("http://127.0.0.1:10249/{path}"), LOOKS).unwrap().body;
    site.node().run(get).unwrap()
}

/// Times that a difference was put right, and rows that differed: as status and metrics tell.
fn drift(site: &Site) -> (u64, u64) {
    let status: serde_json::Value = serde_json::from_str(&get(site, "status")).unwrap();
    let [repairs, rows] = ["repairs", "rows"].map(|field| status["drift"][field].as_u64().unwrap());
    let told = || {
        let metrics = get(site, "metrics");
        let value = |name: &str| {
            let mut lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            lines.next().unwrap_or_else(|| panic!("no {name}")).parse::<u64>().unwrap()
        };
        (value("kubeferry_drift_repairs_total"), value("kubeferry_drift_repaired_rows_total"))
    };
    // A repair may come between the two questions; and the text of metrics is made for all who ask within a second or two.
    until_for(LOOKS, "metrics to tell the same", || (told() >= (repairs, rows)).then_some(())).unwrap();
    (repairs, rows)
}

/// Waits for one repair, of so many rows.
fn until_repaired(site: &Site, rows: usize) {
    let repaired = || Some(drift(site)).filter(|(repairs, _)| *repairs > 0);
    assert_eq!(until_for(LOOKS, "the drift to be repaired", repaired).unwrap(), (1, rows as u64));
    site.until_served().unwrap();
}

#[test]
fn frontends_that_are_deleted_come_back() {
    let (site, pinned) = site();
    let deleted = pinned.delete_frontends().unwrap();
    // The Services' addresses are nobody's now.
    for vip in VIPS {
        assert!(Connection::open_within(site.client(), at(vip, 80), Duration::from_secs(1)).is_err());
    }
    let lists = site.status().unwrap()["rows"]["frontends"].as_u64().unwrap();
    assert_eq!(deleted as u64, lists);
    let repaired = || Some(drift(&site)).filter(|(repairs, _)| *repairs > 0);
    let (repairs, rows) = until_for(LOOKS, "the drift to be repaired", repaired).unwrap();
    // Lists that no frontend leads to are missing as well.
    assert!(repairs == 1 && rows >= lists, "{rows} rows for {lists} frontends");
    assert_eq!(pinned.frontends().unwrap(), deleted);
    site.until_served().unwrap();
}

#[test]
fn slots_that_are_overwritten_come_back() {
    let (site, pinned) = site();
    let of = |vip: &str| {
        let list = pinned.list(at(vip, 80), TCP).unwrap();
        list.iter().map(|listed| IpAddr::from(listed.address)).collect::<BTreeSet<_>>()
    };
    let before = VIPS.map(of);
    assert_eq!(before.each_ref().map(BTreeSet::len), [2, 2]);
    for vip in VIPS {
        assert_eq!(pinned.clear_list(at(vip, 80), TCP).unwrap(), 2);
    }
    // A service port of each family.
    until_repaired(&site, 2);
    assert_eq!(VIPS.map(of), before);
}

#[test]
fn devices_that_are_deleted_come_back() {
    let (site, pinned) = site();
    let deleted = pinned.delete_devices().unwrap();
    assert!(deleted >= 5, "{deleted}");
    // All of them count as one.
    until_repaired(&site, 1);
    assert_eq!(pinned.devices().unwrap(), deleted);
}

/// A Service more, which has to be written.
const MORE: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: more, namespace: default}
spec: {clusterIP: 10.96.0.99, clusterIPs: [10.96.0.99], ipFamilies: [IPv4], ports: [{port: 80}]}
";

#[test]
fn what_carries_packets_is_kept_whole_while_syncs_fail() {
    let (site, pinned) = site();
    pinned.freeze_frontends().unwrap();
    site.change_as(&["1", "2"], &|manifests| manifests + MORE).unwrap();
    let failures = || {
        let status: serde_json::Value = serde_json::from_str(&get(&site, "status")).unwrap();
        status["lastSync"]["error"].as_str().map(str::to_owned)
    };
    until_for(LOOKS, "a sync to fail", failures).unwrap();
    let folder = site.places().bpffs().join("kubeferry");
    let pins = site.places().pins().unwrap();
    // Each kind of harm by itself: it is counted, and put right.
    let suffers = |what: &str, harm: &dyn Fn()| {
        let before = drift(&site);
        harm();
        let repaired = || Some(drift(&site)).filter(|now| now.0 > before.0 && now.1 > before.1);
        until_for(LOOKS, &format!("{what} to be repaired"), repaired).unwrap();
        site.until_served().unwrap();
        assert!(failures().is_some(), "{what}: a sync has succeeded");
    };
    let deleted = pinned.devices().unwrap();
    suffers("deleted devices", &|| assert_eq!(pinned.delete_devices().unwrap(), deleted));
    assert_eq!(pinned.devices().unwrap(), deleted);
    let link = pins.iter().find(|pin| pin.starts_with("links/tc_ingress"));
    if let Some(link) = link {
        suffers("a detached link", &|| detach(&folder.join(link)).unwrap());
    }
    let pin = |name: &str| pins.iter().find(|pin| pin.ends_with(name)).map(|pin| folder.join(pin)).unwrap();
    suffers("an unpinned map", &|| std::fs::remove_file(pin("flows")).unwrap());
    assert_eq!(site.places().pins().unwrap(), pins);
}

#[test]
fn a_frontend_that_is_written_all_the_time_is_read_whole() {
    const TIME: Duration = Duration::from_secs(4);
    const TIMES: u32 = 500_000;
    let (site, pinned) = site();
    let (silent, other) = (at("10.96.77.1", 80), at("10.96.77.2", 80));
    // One has endpoints and the other none, which drops a packet as it is.
    let leads = pinned.frontend(at(VIPS[0], 80), TCP).unwrap().unwrap();
    let drops = vec![0; leads.len()];
    let frame = |to, port| {
        let packet = first_packet(Protocol::Tcp, at("10.244.0.9", port), to, 7);
        [&[2; 12][..], &[8, 0], &packet].concat()
    };
    let connected = || pinned.counter(Counter::Connected).unwrap();
    pinned.put_frontend(other, TCP, &leads).unwrap();
    let before = connected();
    pinned.run_often(site.node(), 1, &frame(other, 1_000), 1).unwrap();
    assert_eq!(connected(), before + 1, "a connection is counted");
    let done = AtomicBool::new(false);
    let (dropped, opened) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // The kernel gives the memory of the row that is replaced to the one that is written next.
            while !done.load(Ordering::Relaxed) {
                pinned.put_frontend(silent, TCP, &drops).unwrap();
                pinned.put_frontend(other, TCP, &leads).unwrap();
            }
        });
        pinned.put_frontend(silent, TCP, &drops).unwrap();
        let dropped = || pinned.counter(Counter::NoLocalEndpoint).unwrap();
        let (began, before, opened) = (Instant::now(), dropped(), connected());
        let mut port = 1_024;
        while began.elapsed() < TIME {
            // The proxy deletes at times what it does not know.
            pinned.put_frontend(silent, TCP, &drops).unwrap();
            pinned.run_often(site.node(), 1, &frame(silent, port), TIMES).unwrap();
            port += 1;
        }
        done.store(true, Ordering::Relaxed);
        (dropped() - before, connected() - opened)
    });
    assert!(dropped > u64::from(TIMES), "{dropped} packets were dropped");
    assert_eq!(opened, 0, "of {dropped} packets to nobody met another's endpoints");
}
