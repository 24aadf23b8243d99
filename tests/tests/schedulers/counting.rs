//! What is counted of an endpoint's connections: every end of one, over restarts, under churn, and after harm.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::{Backend, TCP};
use kubeferry_tests::client::{datagrams, until};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::cluster::cpus;
use super::counted::{By, Connection, Web, World, dice, vip};

/// Every packet is translated.
const PACKETS: &[&str] = &["--socket-lb", "off", "--xdp", "off"];
/// The Service of most of these tests.
const WEIGHTS: [u16; 3] = [1, 1, 1];

fn web() -> Web {
    Web::new("lc", &WEIGHTS)
}

/// Every end that a TCP connection may have takes it from the count, once.
fn every_end(world: &World, by: By) {
    for v6 in [false, true] {
        let (mut opened, _) = world.sums("tcp", v6);
        let mut open = || {
            opened += 1;
            let connection = world.open(by, v6);
            world.until_sums("tcp", v6, opened, 1);
            (connection, opened)
        };
        let (connection, opened) = open();
        connection.close();
        world.until_sums("tcp", v6, opened, 0);
        let (connection, opened) = open();
        connection.have_closed();
        world.until_sums("tcp", v6, opened, 0);
        let (connection, opened) = open();
        connection.reset();
        world.until_sums("tcp", v6, opened, 0);
        // Where a socket is counted, it is until it is closed.
        let (connection, opened) = open();
        let socket = connection.have_reset();
        world.until_sums("tcp", v6, opened, u64::from(by == By::Socket));
        drop(socket);
        world.until_sums("tcp", v6, opened, 0);
        // Nobody is there.
        let before = world.sums("closed", v6).0;
        for number in 1..=3 {
            let error = world.open_at(by, v6, 81).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
            world.until_sums("closed", v6, before + number, 0);
        }
    }
    assert_eq!(world.recounted(), 0);
    assert!(world.active_rows().is_empty());
}

#[test]
fn every_end_of_a_connection_is_counted_by_packets() {
    every_end(&World::start(&web(), PACKETS), By::Packets);
}

#[test]
fn every_end_of_a_connection_is_counted_by_sockets() {
    every_end(&World::start(&web(), &[]), By::Socket);
}

#[test]
fn every_end_of_a_connection_is_counted_at_xdp() {
    every_end(&World::start_with_xdp(&web()), By::Xdp);
}

#[test]
fn a_half_closed_connection_is_active() {
    let world = World::start(&web(), PACKETS);
    let (opened, _) = world.sums("tcp", false);
    let stays = world.open(By::Packets, false);
    let connection = world.open(By::Packets, false);
    // The endpoint closes its side as well: not so in between.
    connection.half_close();
    world.until_sums("tcp", false, opened + 2, 1);
    stays.close();
    world.until_sums("tcp", false, opened + 2, 0);
}

/// A socket of UDP that is connected counts until it is closed or connected to something else.
#[test]
fn udp_sockets_count_while_they_are_connected() {
    let world = World::start(&web(), &[]);
    for v6 in [false, true] {
        let (mut opened, _) = world.sums("udp", v6);
        let socket = world.pod.udp(v6).unwrap();
        for _ in 0..3 {
            socket.connect(vip(v6, 82)).unwrap();
            opened += 1;
            world.until_sums("udp", v6, opened, 1);
        }
        socket.connect(super::cluster::endpoint(1, v6)).unwrap();
        world.until_sums("udp", v6, opened, 0);
        socket.connect(vip(v6, 82)).unwrap();
        opened += 1;
        world.until_sums("udp", v6, opened, 1);
        drop(socket);
        world.until_sums("udp", v6, opened, 0);
        // What is not connected has no end that anybody sees.
        let socket = world.pod.udp(v6).unwrap();
        for _ in 0..3 {
            socket.send_to(b"?", vip(v6, 82)).unwrap();
        }
        opened += 1;
        world.until_sums("udp", v6, opened, 0);
    }
    assert_eq!(world.recounted(), 0);
}

/// A socket whose connection was refused may connect again, to what is no Service.
#[test]
fn a_tcp_socket_that_connects_elsewhere_counts_no_more() {
    let world = World::start(&web(), &[]);
    for v6 in [false, true] {
        let before = world.sums("closed", v6).0;
        let socket = world.pod.tcp(v6).unwrap();
        assert!(socket.try_connect(vip(v6, 81)).is_err());
        world.until_sums("closed", v6, before + 1, 1);
        socket.try_connect(super::cluster::endpoint(1, v6)).unwrap();
        world.until_sums("closed", v6, before + 1, 0);
    }
}

#[test]
fn datagrams_without_an_answer_are_forgotten() {
    let world = World::start(&web(), PACKETS);
    let sums = [false, true].map(|v6| world.sums("udp", v6).0);
    let sockets = [false, true].map(|v6| datagrams(world.clients(), vip(v6, 82)).unwrap());
    // The endpoint does not answer these.
    sockets.iter().for_each(|socket| assert_eq!(socket.send(b"").unwrap(), 0));
    for (v6, opened) in [false, true].into_iter().zip(sums) {
        world.until_sums("udp", v6, opened + 1, 1);
    }
    for (v6, opened) in [false, true].into_iter().zip(sums) {
        // Half a minute, and the next sweep.
        world.until_sums_for(Duration::from_secs(120), "udp", v6, opened + 1, 0);
    }
    assert_eq!(world.recounted(), 0);
}

#[test]
fn a_killed_client_counts_no_more() {
    let world = World::start(&web(), &[]);
    let (opened, _) = world.sums("tcp", false);
    // By a socket of the pod, and by packets: the one is in the cgroup, the other is not.
    for (number, (host, cgroup)) in (1..).zip([("pod", true), ("clients", false)]) {
        let mut command = Command::new("bash");
        let join = if cgroup { "echo $$ > \"$0/cgroup.procs\" && " } else { "" };
        let script = format!(
            "{join}exec 3<>/dev/tcp/10.96.0.10/80 && echo '?' >&3 && read -r line <&3 && echo \"$line\" && read -r line <&3"
        );
        command.args(["-c", &script]).arg(world.cgroup()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut client = world.hosts.host(host).namespace.spawn(&mut command).unwrap();
        let mut line = String::new();
        BufReader::new(client.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("10.244.1."), "{line}");
        world.until_sums("tcp", false, opened + number, 1);
        client.kill().unwrap();
        client.wait().unwrap();
        world.until_sums("tcp", false, opened + number, 0);
    }
}

/// Connections of both kinds, in both families.
fn some(world: &World, each: usize) -> Vec<Connection> {
    let kinds = [(By::Packets, false), (By::Packets, true), (By::Socket, false), (By::Socket, true)];
    kinds.iter().flat_map(|(by, v6)| (0..each).map(|_| world.open(*by, *v6))).collect()
}

/// The proxy ends while connections are open and starts with these flags; counts are the same and go on.
fn restart(flags: &[&'static str]) {
    let mut world = World::start(&web(), &[]);
    let at_start = [false, true].map(|v6| world.sums("tcp", v6).0);
    let mut open = some(&world, 6);
    let active = [false, true].map(|v6| world.active(v6));
    for (v6, opened) in [false, true].into_iter().zip(at_start) {
        world.until_sums("tcp", v6, opened + 12, 12);
    }
    world.run_with(flags);
    for (v6, opened) in [false, true].into_iter().zip(at_start) {
        world.until_sums("tcp", v6, opened + 12, 12);
    }
    assert_eq!([false, true].map(|v6| world.active(v6)), active);
    // What comes and goes while no process runs is counted as well.
    world.kill();
    open.drain(..).step_by(2).for_each(Connection::close);
    world.run();
    for v6 in [false, true] {
        world.until_sums("tcp", v6, at_start[usize::from(v6)] + 12, 0);
    }
    open.extend(some(&world, 1));
    for v6 in [false, true] {
        world.until_sums("tcp", v6, at_start[usize::from(v6)] + 14, 2);
    }
    drop(open);
    for v6 in [false, true] {
        world.until_sums("tcp", v6, at_start[usize::from(v6)] + 14, 0);
    }
    assert_eq!(world.recounted(), 0);
    assert!(world.active_rows().is_empty());
}

#[test]
fn counts_go_on_after_a_restart() {
    restart(&[]);
}

#[test]
fn counts_go_on_in_maps_of_other_sizes() {
    restart(&["--map-sizes", "flows=30000,sockets=2000,frontends=1000"]);
}

#[test]
fn sockets_count_no_more_without_the_programs_that_see_their_end() {
    let mut world = World::start(&web(), &[]);
    let (opened, _) = world.sums("tcp", false);
    let mut connection = world.open(By::Socket, false);
    world.until_sums("tcp", false, opened + 1, 1);
    world.run_with(PACKETS);
    connection.ask();
    connection.close();
    world.until_sums("tcp", false, opened + 1, 0);
}

/// Thousands of short connections from several threads by both ways, while endpoints come and go and sweeps look on.
#[test]
fn counts_do_not_drift_under_churn() {
    // With room for all of them: what is thrown out of a full map ends without a word.
    let world = World::start(&web(), &["--map-sizes", "flows=200000,sockets=20000"]);
    let (end, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let threads: Vec<_> = [By::Packets, By::Socket, By::Packets, By::Socket]
            .into_iter()
            .enumerate()
            .map(|(number, by)| {
                let (world, end, opened) = (&world, &end, &opened);
                scope.spawn(move || {
                    let mut roll = dice(number as u64);
                    let mut long = Vec::new();
                    while !end.load(Ordering::Relaxed) {
                        let connection = world.open(by, number < 2);
                        opened.fetch_add(1, Ordering::Relaxed);
                        match roll(8) {
                            0 => connection.reset(),
                            1 => connection.have_closed(),
                            2 => drop(connection.have_reset()),
                            3 => long.push(connection),
                            _ => connection.close(),
                        }
                        if long.len() > 20 {
                            long.remove(roll(20) as usize).close();
                        }
                    }
                })
            })
            .collect();
        let start = Instant::now();
        // Two sweeps and more.
        for round in 0.. {
            if threads.iter().any(thread::ScopedJoinHandle::is_finished)
                || (start.elapsed() > Duration::from_secs(16) && opened.load(Ordering::Relaxed) > 3000)
            {
                break;
            }
            let endpoints: &[(u8, u16)] = match round % 4 {
                0 => &[(2, 1), (3, 1)],
                1 => &[(1, 1), (2, 1), (3, 1), (4, 1)],
                2 => &[(1, 1), (2, 0), (4, 3)],
                _ => &[(1, 1), (2, 1), (3, 1)],
            };
            world.change_now(&Web::of(if round % 3 == 0 { "wlc" } else { "lc" }, endpoints));
        }
        end.store(true, Ordering::Relaxed);
    });
    until("nothing to be active", || world.active_rows().is_empty().then_some(()))
        .unwrap_or_else(|error| panic!("{error} after {opened:?}: {:?}", world.active_rows()));
    assert_eq!(world.recounted(), 0, "after {opened:?}");
}

/// The first datagrams of one socket are sent on several CPUs at once: that is one connection.
#[test]
fn datagrams_at_once_are_one_connection() {
    let world = World::start(&web(), PACKETS);
    let (before, _) = world.sums("udp", false);
    const SOCKETS: u16 = 200;
    for round in 1..=10 {
        // Each from a port of its own.
        let open = |number| {
            let socket = UdpSocket::bind(("10.244.2.9", 10_000 + round * 300 + number)).unwrap();
            socket.connect(vip(false, 82)).map(|()| socket).unwrap()
        };
        let sockets: Vec<UdpSocket> = world.clients().run(|| (0..SOCKETS).map(open).collect()).unwrap();
        let start = Barrier::new(2);
        thread::scope(|scope| {
            for cpu in cpus().into_iter().cycle().take(2) {
                let (sockets, start) = (&sockets, &start);
                scope.spawn(move || {
                    let mut only = CpuSet::new();
                    only.set(cpu);
                    sched_setaffinity(None, &only).unwrap();
                    for socket in sockets {
                        start.wait();
                        socket.send(b"?").unwrap();
                    }
                });
            }
        });
        let all = u64::from(SOCKETS * round);
        world.until_sums("udp", false, before + all, all);
    }
    assert_eq!(world.recounted(), 0);
}

#[test]
fn a_wrong_count_is_put_right_and_told() {
    let world = World::start(&web(), &[]);
    let open = some(&world, 3);
    let pinned = world.pinned();
    let listed = pinned.list(vip(false, 80), TCP).unwrap();
    assert_eq!(listed.len(), 3);
    let mut repaired = 0;
    for (at, wrong) in [(0, 7), (1, -1_i64), (2, -9)] {
        let row = listed[at].backend;
        let rows = pinned.backends().unwrap();
        let right = rows[row as usize];
        assert_eq!(right.active, 2, "{rows:?}");
        pinned.set_backend(row, &Backend { active: right.active.wrapping_add_signed(wrong), ..right }).unwrap();
        repaired += wrong.unsigned_abs();
        until("the count to be right", || (pinned.backends().unwrap()[row as usize] == right).then_some(())).unwrap();
        until("the repair to be told", || (world.recounted() == repaired).then_some(())).unwrap();
    }
    drop(open);
    until("nothing to be active", || world.active_rows().is_empty().then_some(())).unwrap();
    assert_eq!(world.recounted(), repaired);
}
