//! Few open files, and clients that use them up.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::faults::{Place, Report, Traffic};
use kubeferry_tests::on_both_datapaths;

use crate::{PATIENCE, RIGHT};

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
    place.none_failed(&seen).unwrap();
}

on_both_datapaths! { idle_clients_take_every_open_file, }
