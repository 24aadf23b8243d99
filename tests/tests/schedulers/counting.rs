//! What is counted of an endpoint's connections: every end that one may have.

use std::io::{BufRead, BufReader, ErrorKind};
use std::process::{Command, Stdio};
use std::time::Duration;

use kubeferry_tests::client::datagrams;

use super::counted::{By, World};
use super::web::{Web, vip};

/// Every packet is translated.
pub const PACKETS: &[&str] = &["--socket-lb", "off", "--xdp", "off"];

/// The Service of these tests.
pub fn web() -> Web {
    Web::new("lc", &[1, 1, 1])
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
