//! What belongs to the whole machine and not to a namespace: the size of connection tracking's table, the wall clock. Only a
//! machine that is there for nothing else may have them changed: `cargo xtask test kernels` runs these tests in virtual ones.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use kubeferry_tests::client::{Connection, until, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Failure, Place, Report, Traffic};
use kubeferry_tests::load::Kept;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// How many connections connection tracking may know, of the whole machine's namespaces each.
const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const COUNT: &str = "/proc/sys/net/netfilter/nf_conntrack_count";
/// Connections that stay open.
const OPEN: usize = 24;
/// Generous: the machine is emulated.
const PATIENCE: Duration = Duration::from_secs(60);
const DAY: i64 = 24 * 60 * 60;
/// One test at a time: what each changes is the whole machine's.
static MACHINE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

mod nftables {
    use super::Datapath;

    #[test]
    #[ignore = "changes the machine's limit: `cargo xtask test kernels`"]
    fn a_full_table_of_connection_tracking_costs_new_connections_and_nothing_else() {
        super::a_full_table_of_connection_tracking(Datapath::Nftables);
    }

    #[test]
    #[ignore = "sets the machine's clock: `cargo xtask test kernels`"]
    fn a_wall_clock_that_jumps_changes_nothing() {
        super::a_wall_clock_that_jumps(Datapath::Nftables);
    }
}

mod ebpf {
    use super::Datapath;

    #[test]
    #[ignore = "changes the machine's limit: `cargo xtask test kernels`"]
    fn a_full_table_of_connection_tracking_costs_nothing() {
        super::a_full_table_of_connection_tracking(Datapath::ebpf().unwrap());
    }

    #[test]
    #[ignore = "sets the machine's clock: `cargo xtask test kernels`"]
    fn a_wall_clock_that_jumps_changes_nothing() {
        super::a_wall_clock_that_jumps(Datapath::ebpf().unwrap());
    }
}

fn number(file: &str) -> usize {
    fs::read_to_string(file).unwrap().trim().parse().unwrap()
}

/// Puts the limit back, however a test ends.
struct Limit(usize);

impl Limit {
    fn set(to: usize) -> Self {
        let before = Self(number(LIMIT));
        fs::write(LIMIT, to.to_string()).unwrap();
        before
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(LIMIT, self.0.to_string());
    }
}

/// With nftables the kernel drops what it cannot track, as under any rules that track connections; eBPF does not track with it. Clients
/// ask all the while.
fn a_full_table_of_connection_tracking(datapath: Datapath) {
    let _alone = alone();
    let tracks = matches!(datapath, Datapath::Nftables);
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    let web = SocketAddr::from(([10, 96, 0, 10], 80));
    let open = || {
        let mut connection = Connection::attempt(place.client(), web)?;
        connection.ask().ok()?;
        Some(connection)
    };
    let mut kept: Vec<_> = (0..OPEN).map(|_| until("a connection", open).unwrap()).collect();
    let known = place.node().run(|| number(COUNT)).unwrap();
    if tracks {
        assert!(known >= OPEN, "the kernel tracks {known} connections");
    }
    let ((full, room, right), seen) = Traffic::during(&place.ways(), PATIENCE, |traffic| {
        traffic.go_on()?;
        let full = Instant::now();
        let limit = Limit::set(OPEN);
        if tracks {
            // Those that are over make room first.
            until_for(PATIENCE, "the table to be full", || open().is_none().then_some(()))?;
        } else {
            for _ in 0..OPEN {
                let more = open().with_context(|| format!("a connection does not open: the log:\n{}", place.log()))?;
                kept.push(more);
            }
        }
        kept.iter_mut().try_for_each(|connection| connection.ask().map(drop))?;
        // What changes meanwhile is in the kernel all the same, and is what holds when there is room again.
        place.mark()?;
        drop(limit);
        let room = Instant::now();
        let right = place.until_marked(PATIENCE)?;
        traffic.go_on()?;
        Ok((full, room, right))
    })
    .unwrap();
    report.add("connection tracking's table full; from its end", &seen, right.max(seen.wrong_for(room)));
    if tracks {
        let meanwhile = |failure: &Failure| failure.ended >= full && failure.began <= room;
        assert!(seen.failures.iter().all(meanwhile), "{:?}", seen.none_failed());
        assert!(!seen.failures.is_empty(), "nothing was dropped: the table was never full");
    } else {
        place.nothing_seen(&seen).unwrap();
    }
    for connection in &mut kept {
        connection.ask().unwrap();
    }
    place.until_exact().unwrap();
}

/// Moves the clock by so many seconds.
fn jump(seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + seconds, tv_nsec: now.tv_nsec }).unwrap();
}

fn a_wall_clock_that_jumps(datapath: Datapath) {
    let _alone = alone();
    let place = Place::of_server(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    place.start().unwrap();
    let pid = place.pid().unwrap();
    let mut kept = Kept::open(&place.ways()).unwrap();
    for days in [400, -800, 400] {
        let (right, seen) = Traffic::during(&place.ways(), PATIENCE, |traffic| {
            traffic.go_on()?;
            jump(days * DAY);
            place.mark()?;
            let right = place.until_marked(PATIENCE)?;
            traffic.go_on()?;
            Ok(right)
        })
        .unwrap();
        report.add(&format!("the wall clock jumps by {days} days"), &seen, right);
        place.nothing_seen(&seen).unwrap();
        kept.ask().unwrap_or_else(|error| panic!("{days} days: {error:#}\n{}", place.log()));
        for path in ["livez", "healthz"] {
            let get = || kubeferry::status::get(&format!("http://127.0.0.1:10256/{path}"), PATIENCE);
            let answer = place.node().run(get).unwrap().unwrap();
            assert_eq!(answer.code, 200, "{path} after {days} days: {}", answer.body);
        }
    }
    assert_eq!(place.pid().unwrap(), pid);
    assert!(place.is_running());
    place.until_exact().unwrap();
}
