//! Few open files, and clients that use them up.

use std::fs::read_link;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use kubeferry_tests::apiserver::Fault;
use kubeferry_tests::client::until_for;
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic};
use kubeferry_tests::on_both_datapaths;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::answers::started;
use crate::{PATIENCE, RIGHT, RIGHT_BY_TRIES, STEP};

/// Rows are written, and whole tables, while clients that say nothing would have all the files that the process may open.
fn idle_clients_take_every_open_file(datapath: Datapath) {
    let place = Place::of_manifests(datapath).unwrap();
    let mut report = Report::new(&place.datapath);
    // Maps, programs and links are some eighty files.
    let files = if matches!(place.datapath, Datapath::Nftables) { 96 } else { 160 };
    let mut command = place.command_under(&["prlimit", &format!("--nofile={files}:{files}")]).unwrap();
    place.launch_with(&mut command).unwrap();
    place.until_served().unwrap();
    let crowded = |traffic: &Traffic| {
        traffic.go_on()?;
        let to = SocketAddr::from(([192, 0, 2, 1], 10256));
        let open = || TcpStream::connect_timeout(&to, Duration::from_secs(1));
        let idle: Vec<TcpStream> = place.outside().run(|| (0..300).filter_map(|_| open().ok()).collect())?;
        place.mark()?;
        let right = place.until_marked(RIGHT)?;
        place.change(|objects| objects.more = 100)?;
        place.until_exact()?;
        traffic.go_on()?;
        drop(idle);
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, crowded).unwrap();
    report.add(&format!("{files} open files and 300 idle clients at /healthz"), &seen, right);
    place.nothing_seen(&seen).unwrap();
}

/// The process may open nothing more while objects change: neither a manifest, nor a socket, nor a pipe for `nft`. It says so, what
/// is there goes on, and all is right soon after it may again.
fn nothing_more_can_be_opened(datapath: Datapath) {
    let place = Place::of_manifests(datapath).unwrap();
    place.start().unwrap();
    has_no_more_files(&place, "nothing more can be opened, while objects change", || ());
}

/// The same while the connections to the API server are cut, and none can be made anew.
fn no_connection_to_the_server_can_be_opened(datapath: Datapath) {
    let place = started(datapath);
    let cut = || place.server().fault(Fault::CutConnections);
    has_no_more_files(&place, "nothing more can be opened, and the connections to the API server are cut", cut);
}

fn has_no_more_files(place: &Place, fault: &str, cut: impl FnOnce()) {
    let mut report = Report::new(&place.datapath);
    let pid = i32::try_from(place.pid().unwrap()).unwrap();
    let process = Pid::from_raw(pid).unwrap();
    let set = |limit| prlimit(Some(process), Resource::Nofile, limit);
    let told = || place.log().contains("Too many open files").then_some(());
    let short = |traffic: &Traffic| {
        traffic.go_on()?;
        assert!(told().is_none(), "told before it is so");
        // The lowest number that is free, or will be when a connection is cut: files beyond the limit stay open.
        let stays = |number: u64| {
            let file = read_link(format!("/proc/{pid}/fd/{number}"));
            file.is_ok_and(|file| !file.to_string_lossy().starts_with("socket:"))
        };
        let free = (0..).find(|number| !stays(*number));
        let before = set(Rlimit { current: free, ..getrlimit(Resource::Nofile) })?;
        cut();
        place.change(|objects| objects.more = 20)?;
        place.mark()?;
        until_for(STEP, "the log to tell", told)?;
        traffic.go_on()?;
        ensure!(!place.is_marked(), "nobody can know yet");
        set(before)?;
        let right = place.until_marked(RIGHT_BY_TRIES)?;
        place.until_exact()?;
        traffic.go_on()?;
        Ok(right)
    };
    let (right, seen) = Traffic::during(&place.ways(), PATIENCE, short).unwrap();
    report.add(fault, &seen, right);
    place.nothing_seen(&seen).unwrap();
    assert!(place.is_running(), "it has ended: {}", place.log());
}

on_both_datapaths! {
    idle_clients_take_every_open_file,
    nothing_more_can_be_opened,
    no_connection_to_the_server_can_be_opened,
}
