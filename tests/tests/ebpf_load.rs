//! The eBPF datapath under load: many connections, a proxy that is killed, restarted and replaced, and pods that come and go.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use kubeferry_tests::binary;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::{Connection, DEADLINE, ask_once, datagrams, until, until_for};
use kubeferry_tests::hosts::Host;
use kubeferry_tests::load::LOST;
use kubeferry_tests::netns::Netns;
use kubeferry_tests::site::{LOAD_BALANCER_IPS, NODE_IPS, Site, VIPS, at};
use kubeferry_tests::sockets::reset_on_close;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const EVERYWHERE: [&str; 3] = ["1", "2", "remote"];

/// Room for all connections of a test: a full table forgets those that are idle.
const FLOWS: [&str; 2] = ["--map-sizes", "flows=400000"];

fn flows(site: &Site) -> Option<u64> {
    site.status().ok()?["rows"]["flows"].as_u64()
}

/// Ten thousand connections of one client to one endpoint by a node port, masqueraded, all of them open at the same time:
/// each has a port of its own of the 13,616 that there are. The endpoint takes none of them before the last has begun.
fn ten_thousand_at_a_time(family: usize) {
    const CONNECTIONS: usize = 10_000;
    let site = Site::start_with(&["remote"], &FLOWS).unwrap();
    site.until_served().unwrap();
    let pinned = Pinned::open(site.places().bpffs()).unwrap();
    let endpoint = SocketAddr::new(site.remote.addresses[family], 8082);
    site.remote.namespace.sysctl("net/core/somaxconn", "20000").unwrap();
    let listener = site.remote.namespace.run(|| listen(endpoint, 20_000)).unwrap().unwrap();
    let to = at(NODE_IPS[family], 30084);
    let connect = |number: usize| {
        let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.write_all(&(number as u64).to_be_bytes())?;
        Ok::<_, std::io::Error>(stream)
    };
    let open = || {
        let one = |number| connect(number).unwrap_or_else(|error| panic!("connection {number}: {error}"));
        (0..CONNECTIONS).map(one).collect::<Vec<_>>()
    };
    let open: Vec<TcpStream> = site.outside().run(open).unwrap();
    // Forward and backward, in and out; more, where the SYN that found no free port was sent again.
    assert!(pinned.flows().unwrap() >= 4 * CONNECTIONS, "{} entries", pinned.flows().unwrap());
    let (mut seen, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..CONNECTIONS {
        let (mut stream, from) = listener.accept().unwrap();
        assert!(NODE_IPS.contains(&from.ip().to_string().as_str()), "{from}");
        assert!((16_384..30_000).contains(&from.port()), "{from}");
        assert!(seen.insert(from), "{from} twice at a time");
        let mut number = [0; 8];
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.read_exact(&mut number).unwrap();
        let number = u64::from_be_bytes(number) as usize;
        assert!(numbers.insert(number), "{number} came twice");
        stream.write_all(&number.to_be_bytes()).unwrap();
        // What was said comes to who has asked; then the one ends in peace, the other with a reset.
        let mut answer = [0; 8];
        (&open[number]).read_exact(&mut answer).unwrap();
        assert_eq!(u64::from_be_bytes(answer) as usize, number, "another connection's answer");
        if number.is_multiple_of(2) {
            reset_on_close(&open[number]).unwrap();
        }
    }
    assert_eq!(seen.len(), CONNECTIONS);
    drop(open);
    let left = || (pinned.flows().unwrap() == 0).then_some(());
    until_for(Duration::from_secs(120), "the table to be empty", left).unwrap();
    until("status to say so", || flows(&site).filter(|flows| *flows == 0)).unwrap();
    let active: u64 = pinned.backends().unwrap().iter().map(|row| row.active).sum();
    assert_eq!(active, 0, "connections that are over count as active");
    site.untracked().unwrap();
}

/// Listens with room for so many connections that nobody has taken yet.
fn listen(at: SocketAddr, room: i32) -> std::io::Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, room)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    Ok(socket.into())
}

#[test]
fn ten_thousand_masqueraded_connections_share_no_port_and_leave_nothing() {
    // One after the other: a process may have 20,000 files open here, and many have fewer.
    (0..2).for_each(ten_thousand_at_a_time);
}

/// The node itself asks one endpoint thousands of times within half a minute, in which each question keeps its port: the endpoint sees
/// another port than the node's for each, and none is dropped for want of one.
#[test]
fn thousands_of_questions_of_the_node_itself_are_answered() {
    let site = Site::start_with(&["remote"], &FLOWS).unwrap();
    site.until_served().unwrap();
    let is_answered = |vip: &str| ask_once(&datagrams(site.node(), at(vip, 80)).unwrap()).unwrap().is_some();
    assert_eq!((0..7_000).filter(|number| !is_answered(VIPS[number % 2])).count(), 0);
}

/// One client after the other opens connections while `work` runs: every one has to be answered, and those that are open
/// from before, too.
fn under_load(site: &Site, work: impl FnOnce()) {
    let ways = [
        (site.client(), at(VIPS[0], 80)),
        (site.client(), at(NODE_IPS[1], 30080)),
        (site.outside(), at(NODE_IPS[0], 30080)),
        (site.outside(), at(LOAD_BALANCER_IPS[1], 80)),
        (site.node(), at(VIPS[1], 80)),
        (site.node(), at(VIPS[0], 80)),
    ];
    let mut old: Vec<_> = ways.iter().map(|(from, to)| Connection::open(from, *to).unwrap()).collect();
    let sockets: Vec<_> = ways.iter().map(|(from, to)| datagrams(from, *to).unwrap()).collect();
    let before: Vec<_> = old.iter_mut().map(|connection| connection.ask().unwrap()).collect();
    let ask = |socket| until("a datagram's answer", || ask_once(socket).unwrap()).unwrap();
    let datagrams_before: Vec<_> = sockets.iter().map(ask).collect();
    let (end, answered) = (AtomicBool::new(false), ways.map(|_| AtomicUsize::new(0)));
    let load = |from: &Netns, to: SocketAddr, answered: &AtomicUsize| {
        while !end.load(Ordering::Relaxed) {
            let answer = Connection::open(from, to).map_err(anyhow::Error::from).and_then(|mut open| open.ask());
            let name = from.name();
            answer.unwrap_or_else(|error| panic!("{LOST}: {name} to {to} after {answered:?}: {error:#}"));
            answered.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = ways
            .iter()
            .zip(&answered)
            .map(|((from, to), answered)| {
                let load = &load;
                scope.spawn(move || load(from, *to, answered))
            })
            .collect();
        let more = || {
            for (thread, count) in threads.iter().zip(&answered) {
                let than = count.load(Ordering::Relaxed) + 20;
                let more = || (count.load(Ordering::Relaxed) > than || thread.is_finished()).then_some(());
                until("more requests", more).unwrap();
            }
        };
        more();
        work();
        more();
        end.store(true, Ordering::Relaxed);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    let after: Vec<_> = old.iter_mut().map(|connection| connection.ask().unwrap()).collect();
    assert_eq!(after, before, "open connections go on");
    assert_eq!(sockets.iter().map(ask).collect::<Vec<_>>(), datagrams_before, "so do datagrams");
    site.untracked().unwrap();
}

#[test]
fn killed_and_restarted_and_stopped_under_load() {
    let site = Site::start_with(&EVERYWHERE, &FLOWS).unwrap();
    site.until_served().unwrap();
    under_load(&site, || {
        for _ in 0..3 {
            site.kill();
            site.run().unwrap();
            site.stop().unwrap();
            site.run().unwrap();
        }
    });
}

/// The binary with another object inside: a byte of its ELF header that says nothing is not 0.
fn other_version() -> tempfile::TempPath {
    const OBJECT: &[u8] = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0";
    let mut bytes = std::fs::read(binary::path().unwrap()).unwrap();
    let places: Vec<_> = bytes.windows(OBJECT.len()).enumerate().filter(|(_, part)| *part == OBJECT).collect();
    assert_eq!(places.len(), 1, "one object in the binary");
    let at = places[0].0;
    bytes[at + 15] = 1;
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    std::fs::write(&path, bytes).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn another_version_takes_over_under_load() {
    let other = other_version();
    let site = Site::start_with(&EVERYWHERE, &FLOWS).unwrap();
    site.until_served().unwrap();
    let programs = |site: &Site| {
        let pins = site.places().pins().unwrap();
        let folders = pins.iter().filter_map(|pin| Some(pin.split_once('/')?.0.to_owned()));
        folders.filter(|folder| folder.starts_with("programs-")).collect::<BTreeSet<_>>()
    };
    let before = programs(&site);
    under_load(&site, || site.run_as(&other).unwrap());
    let after = programs(&site);
    assert_eq!((before.len(), after.len()), (1, 1), "only the programs in force are there");
    assert_ne!(before, after, "other programs");
    under_load(&site, || site.run().unwrap());
    assert_eq!(programs(&site), before);
}

#[test]
fn pods_are_served_from_their_first_packet_on_and_leave_nothing() {
    let site = Site::start(&EVERYWHERE).unwrap();
    site.until_served().unwrap();
    let before = site.places().pins().unwrap();
    for number in 50..60 {
        let addresses: [IpAddr; 2] = [[10, 244, 1, number].into(), format!("fd00:10:244:1::{number}").parse().unwrap()];
        let pod = Host::join(site.node(), "late", number, &addresses).unwrap();
        for to in VIPS.map(|ip| at(ip, 80)) {
            let mut connection = Connection::open(&pod.namespace, to).unwrap();
            let (_, seen) = connection.ask().unwrap();
            assert_eq!(seen, connection.local().unwrap(), "a pod keeps its source");
        }
        let covered = || (site.places().pins().unwrap().len() == before.len() + 2).then_some(());
        until("the pins of the new device", covered).unwrap();
        drop(pod);
        until("the pins to be as before", || (site.places().pins().unwrap() == before).then_some(())).unwrap();
    }
}

#[test]
fn what_endpoints_give_back_is_free_without_another_change() {
    let site = Site::start(&EVERYWHERE).unwrap();
    let pinned = Pinned::open(site.places().bpffs()).unwrap();
    let endpoints = || pinned.list(at(VIPS[0], 80), 6).unwrap().len();
    let rows = || {
        let status = site.status().ok()?;
        ["slots", "backends"].map(|map| status["rows"][map].as_u64()).into_iter().collect::<Option<Vec<_>>>()
    };
    let before = rows().unwrap();
    site.change(&EVERYWHERE[..1]).unwrap();
    until("fewer endpoints", || (endpoints() == 1).then_some(())).unwrap();
    site.change(&EVERYWHERE).unwrap();
    until("all endpoints", || (endpoints() == EVERYWHERE.len()).then_some(())).unwrap();
    // Nothing else changes: ranges and rows that wait for programs that may still read them are freed all the same.
    until("what was given back to be free", || rows().filter(|rows| *rows == before)).unwrap();
}
