//! A table of connections that is too small: the least recently used go, and all else goes on.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::BTreeSet;
use std::time::Duration;

use kubeferry_ebpf_common::stats::Counter;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::{Connection, until_for};
use kubeferry_tests::cpus;
use kubeferry_tests::site::{NODE_IPS, Site, at};

/// Rows of the table: 500 masqueraded connections have four each.
const ROWS: usize = 2_000;
/// Connections that are opened, all of them open at a time.
const CONNECTIONS: usize = 1_500;
/// The oldest, and the youngest, of those.
const SOME: usize = 100;
/// Rows that a CPU has made and the kernel keeps for it alone until it wants more, at most: nobody else throws those out, however old
/// they become (`LOCAL_FREE_TARGET` in kernel/bpf/bpf_lru_list.c).
const OWN: usize = 128;

#[test]
fn the_least_recently_used_connections_go_and_the_others_go_on() {
    let rows = format!("flows={ROWS}");
    let site = Site::start_with(&["1", "2", "remote"], &["--map-sizes", &rows]).unwrap();
    site.until_served().unwrap();
    // Of a connection that was forgotten in part, the end is said again and again.
    site.outside().sysctl("net/ipv4/tcp_orphan_retries", "1").unwrap();
    let pinned = Pinned::open(site.places().bpffs()).unwrap();
    let open = |number: usize| {
        let to = at(NODE_IPS[number % 2], 30080);
        Connection::open(site.outside(), to).unwrap_or_else(|error| panic!("connection {number}: {error}"))
    };
    // The oldest are made on one CPU, and all others on another one.
    let all_cpus = cpus::allowed().unwrap();
    let (first, then) = (all_cpus[0], all_cpus[all_cpus.len() - 1]);
    cpus::stay_on(&[first]).unwrap();
    // As old as the oldest, but never idle.
    let mut busy: Vec<_> = (0..4).map(open).collect();
    let before: Vec<_> = busy.iter_mut().map(|connection| connection.ask().unwrap()).collect();
    let mut idle: Vec<Connection> = Vec::with_capacity(CONNECTIONS);
    for number in 0..CONNECTIONS {
        if number == SOME / 5 {
            cpus::stay_on(&[then]).unwrap();
        }
        let mut connection = open(number);
        connection.ask().unwrap_or_else(|error| panic!("connection {number} is lost at once: {error:#}"));
        idle.push(connection);
        if number % 20 == 0 {
            let now: Vec<_> = busy.iter_mut().map(|connection| connection.ask().unwrap()).collect();
            assert_eq!(now, before, "a connection that is used goes on, with {number} others opened since");
        }
        assert!(pinned.flows().unwrap() <= ROWS);
    }
    cpus::stay_on(&all_cpus).unwrap();
    // What is there fills the table nearly, and status tells.
    let told = || site.status().unwrap()["rows"]["flows"].as_u64().filter(|rows| *rows >= ROWS as u64 * 3 / 4);
    until_for(Duration::from_secs(30), "status to tell of a full table", told).unwrap();
    // Masqueraded, a connection that the table has forgotten is a new one to its endpoint, which resets it.
    let young: BTreeSet<usize> = (CONNECTIONS - SOME..CONNECTIONS).collect();
    let lost: Vec<usize> = young.iter().copied().filter(|number| idle[*number].ask().is_err()).collect();
    assert!(lost.is_empty(), "{lost:?} are lost, of the youngest of {CONNECTIONS}");
    let kept: Vec<usize> = (0..SOME).filter(|number| idle[*number].ask().is_ok()).collect();
    let own = OWN / 4 * (all_cpus.len() - 1);
    println!("{} of the oldest are left", kept.len());
    assert!(kept.len() <= own, "{kept:?} are there, of the oldest of {CONNECTIONS}");
    let now: Vec<_> = busy.iter_mut().map(|connection| connection.ask().unwrap()).collect();
    assert_eq!(now, before);
    // None was refused for want of room.
    assert_eq!(pinned.counter(Counter::FlowTable).unwrap(), 0);
    // Those that were thrown out are counted as active until the sweep sees that they are not.
    let repaired = || {
        let get = || kubeferry::status::get("http://127.0.0.1:10249/metrics", Duration::from_secs(30)).unwrap().body;
        let metrics = site.node().run(get).unwrap();
        let mut values =
            metrics.lines().filter_map(|line| line.strip_prefix("kubeferry_ebpf_recounted_connections_total "));
        values.next()?.parse::<usize>().ok().filter(|repaired| *repaired >= CONNECTIONS - ROWS / 4)
    };
    until_for(Duration::from_secs(120), "the counts of active connections to be put right", repaired).unwrap();
    drop((busy, idle));
    // What is left of a connection whose first entry went is gone too, and not kept for the day that it might have been silent.
    // A few whole ones may stay: the end of a forgotten connection that went by the port of another one, also forgotten, whose
    // endpoint has not heard of its end.
    let left = || {
        let active: u64 = pinned.backends().unwrap().iter().map(|row| row.active).sum();
        (active as usize, pinned.flows().unwrap())
    };
    let whole = || Some(left()).filter(|(active, rows)| *rows == 4 * active && *active < SOME);
    if let Err(error) = until_for(Duration::from_secs(180), "parts of connections to be gone", whole) {
        panic!("{error}: (active, rows) are {:?}", left());
    }
    Connection::open(site.outside(), at(NODE_IPS[0], 30080)).unwrap().ask().unwrap();
    site.untracked().unwrap();
}
