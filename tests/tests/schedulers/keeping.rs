//! Counts of connections stay right: over restarts, under churn, and after harm.

use std::net::UdpSocket;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kubeferry_ebpf_common::{Backend, TCP};
use kubeferry_tests::client::until;
use kubeferry_tests::cpus;

use super::counted::{By, World, dice, until_for};
use super::counting::{PACKETS, web};
use super::web::{Connection, Web, vip};

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
    for (v6, opened) in [false, true].into_iter().zip(at_start) {
        world.until_sums("tcp", v6, opened + 12, 12);
    }
    let active = [false, true].map(|v6| world.active(v6));
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
            for cpu in cpus::allowed().unwrap().into_iter().cycle().take(2) {
                let (sockets, start) = (&sockets, &start);
                scope.spawn(move || {
                    cpus::stay_on(&[cpu]).unwrap();
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
    let rows = pinned.backends().unwrap();
    for (one, wrong) in listed.iter().zip([7, -1, -9]) {
        let right = rows[one.backend as usize];
        assert_eq!(right.active, 2, "{rows:?}");
        let wrong = Backend { active: right.active.wrapping_add_signed(wrong), ..right };
        pinned.set_backend(one.backend, &wrong).unwrap();
    }
    // In the second sweep from now.
    let repaired = 7 + 1 + 9;
    until_for(Duration::from_secs(120), || match world.recounted() {
        recounted if recounted == repaired => Ok(()),
        recounted => Err(format!("{repaired} repairs to be told: {recounted}")),
    });
    assert_eq!(pinned.backends().unwrap(), rows);
    drop(open);
    until("nothing to be active", || world.active_rows().is_empty().then_some(())).unwrap();
    assert_eq!(world.recounted(), repaired);
}
