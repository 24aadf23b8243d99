//! Whole connections with real sockets over the eBPF datapath, translated packet by packet: every way in, both families,
//! large and cut packets, ports used again, and endpoints that go.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

mod ports;
mod tunnels;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::process::Command;

use kubeferry_ebpf_common::flow::limits;
use kubeferry_tests::bpf::pinned::Pinned;
use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::exchange::{echoes, exchange, exchange_over};
use kubeferry_tests::netns::Netns;
use kubeferry_tests::site::{EXTERNAL_IPS, LOAD_BALANCER_IPS, NODE_IPS, Site, TWINS, VIPS, at};
use kubeferry_tests::sockets::{connect_from, pad_headers, reset_on_close, without_offloads};

const EVERYWHERE: [&str; 3] = ["1", "2", "remote"];

/// Where a Service port is reached: a ClusterIP's port and its node port.
fn ways_in(port: u16, node_port: u16) -> Vec<SocketAddr> {
    let addresses = [VIPS, EXTERNAL_IPS, LOAD_BALANCER_IPS].concat();
    let mut ways: Vec<_> = addresses.into_iter().map(|ip| at(ip, port)).collect();
    ways.extend(NODE_IPS.map(|ip| at(ip, node_port)));
    ways
}

/// Whether a datagram larger than the MTU can get there: what the node sends to its own address was never cut, since the
/// loopback interface takes it whole, and then has to leave by another device.
fn takes_large_datagrams(site: &Site, from: &Netns, to: SocketAddr) -> bool {
    from.name() != site.node().name() || !NODE_IPS.contains(&to.ip().to_string().as_str())
}

fn clients(site: &Site) -> [&Netns; 3] {
    [site.client(), site.node(), site.outside()]
}

/// Every client reaches every endpoint by every way in, over TCP and UDP; and whole datagrams and streams come back.
fn every_way(site: &Site) {
    for from in clients(site) {
        for to in ways_in(80, 30080) {
            let what = |transport: &str| format!("every endpoint to answer {} at {to} over {transport}", from.name());
            let mut servers = BTreeSet::new();
            let all = || {
                let mut connection =
                    Connection::open(from, to).unwrap_or_else(|error| panic!("{}: {error}", what("TCP")));
                let (server, seen) = connection.ask().unwrap();
                let is_vip = VIPS.map(|ip| ip.parse::<IpAddr>().unwrap()).contains(&to.ip());
                if from.name() == site.client().name() {
                    assert_eq!(seen == connection.local().unwrap(), is_vip, "{}: seen as {seen}", what("TCP"));
                }
                servers.insert(server);
                (servers.len() == 3).then_some(())
            };
            until(&what("TCP"), all).unwrap();
            let mut servers = BTreeSet::new();
            let all = || {
                servers.extend(ask_once(&datagrams(from, to).unwrap()).unwrap().map(|(server, _)| server));
                (servers.len() == 3).then_some(())
            };
            until(&what("UDP"), all).unwrap();
        }
        for to in ways_in(81, 30081) {
            let name = from.name();
            exchange(from, to, 300_000).unwrap_or_else(|error| panic!("{name} to {to}: {error:#}"));
            for bytes in [0, 1, 1_400] {
                let socket = datagrams(from, to).unwrap();
                until(&format!("{bytes} bytes back to {name} from {to}"), || {
                    echoes(&socket, bytes).unwrap().then_some(())
                })
                .unwrap();
            }
        }
    }
    site.untracked().unwrap();
}

#[test]
fn every_way_in_reaches_every_endpoint() {
    every_way(&Site::start(&EVERYWHERE).unwrap());
}

#[test]
fn every_way_in_reaches_every_endpoint_without_offloads() {
    let site = Site::start(&EVERYWHERE).unwrap();
    let ends = site.hosts.hosts.iter().map(|host| &host.namespace).chain([site.outside(), &site.remote.namespace]);
    ends.for_each(|namespace| without_offloads(namespace, "eth0").unwrap());
    for device in ["web1", "web2", "client", "router", "eth0"] {
        without_offloads(site.node(), device).unwrap();
    }
    every_way(&site);
}

#[test]
fn ten_megabytes_go_both_ways_by_a_node_port_to_another_node() {
    let site = Site::start(&["remote"]).unwrap();
    for from in clients(&site) {
        for to in NODE_IPS.map(|ip| at(ip, 30081)) {
            exchange(from, to, 10_000_000).unwrap_or_else(|error| panic!("{} to {to}: {error:#}", from.name()));
        }
    }
    site.untracked().unwrap();
}

#[test]
fn pings_go_on_as_before() {
    let site = Site::start(&EVERYWHERE).unwrap();
    let ping = |from: &Netns, to: &str| {
        let mut command = Command::new("ping");
        let output = from.output(command.args(["-n", "-c", "1", "-W", "10", "-s", "1400", to]), "").unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    for from in clients(&site) {
        for to in ["10.244.1.1", "fd00:10:244:1::1", "10.244.2.1", "fd00:10:244:2::1", NODE_IPS[0], NODE_IPS[1]] {
            let (answered, says) = ping(from, to);
            assert!(answered, "{} to {to}: {says}", from.name());
        }
        for to in VIPS {
            let (answered, says) = ping(from, to);
            assert!(!answered && says.contains("nreachable"), "{} to {to}: {says}", from.name());
        }
    }
}

#[test]
fn datagrams_in_fragments_come_back_whole() {
    let site = Site::start(&EVERYWHERE).unwrap();
    for from in clients(&site) {
        for to in ways_in(81, 30081).into_iter().filter(|to| takes_large_datagrams(&site, from, *to)) {
            for bytes in [2_000, 4_000, 30_000] {
                // More than one socket, so that more than one endpoint is met.
                for _ in 0..4 {
                    let socket = datagrams(from, to).unwrap();
                    let what = format!("{bytes} bytes back to {} from {to}", from.name());
                    until(&what, || echoes(&socket, bytes).unwrap().then_some(())).unwrap();
                }
            }
        }
    }
    site.untracked().unwrap();
}

#[test]
fn options_and_extension_headers_do_not_hide_a_packet() {
    let site = Site::start(&EVERYWHERE).unwrap();
    for from in clients(&site) {
        for to in ways_in(81, 30081) {
            let any = SocketAddr::new(if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() }, 0);
            let stream = connect_from(from, any, to, |socket| pad_headers(socket, to.ip()));
            let stream = stream.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
            exchange_over(&stream, 100_000).unwrap_or_else(|error| panic!("{} to {to}: {error:#}", from.name()));
            let sizes = if takes_large_datagrams(&site, from, to) { &[100, 4_000][..] } else { &[100] };
            for bytes in sizes.iter().copied() {
                let socket = datagrams(from, to).unwrap();
                pad_headers(&socket, to.ip()).unwrap();
                let what = format!("{bytes} bytes back to {} from {to}", from.name());
                until(&what, || echoes(&socket, bytes).unwrap().then_some(())).unwrap();
            }
        }
    }
}

/// A line there and back.
fn answers(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut line = [0; 3];
    stream.write_all(b"hi\n")?;
    stream.read_exact(&mut line)
}

#[test]
fn a_port_is_used_again_at_once() {
    let site = Site::start(&EVERYWHERE).unwrap();
    for from in [site.client(), site.outside()] {
        // Without waiting for TIME_WAIT, where the kernel can tell the connections apart.
        from.sysctl("net/ipv4/tcp_tw_reuse", "1").unwrap();
        for (number, to) in ways_in(81, 30081).into_iter().enumerate() {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let source = SocketAddr::new(any, 40_000 + number as u16);
            let open = |reset: bool| {
                let prepare = |socket: &std::os::fd::OwnedFd| if reset { reset_on_close(socket) } else { Ok(()) };
                connect_from(from, source, to, prepare)
            };
            let try_open = |what: &str, reset| {
                // Whether its own port is free is the client's kernel's to say.
                let taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrNotAvailable;
                let opened =
                    until("the port to be free", || Some(open(reset)).filter(|one| !one.as_ref().is_err_and(taken)));
                let stream = opened.unwrap().unwrap_or_else(|error| panic!("{} to {to}, {what}: {error}", from.name()));
                answers(&stream).unwrap_or_else(|error| panic!("{} to {to}, {what}: {error}", from.name()));
                stream
            };
            for _ in 0..10 {
                drop(try_open("after a reset", true));
            }
            for _ in 0..10 {
                // The server closes after the client: the client's end is the one in TIME_WAIT.
                let stream = until("the port to be free again", || open(false).ok()).unwrap();
                answers(&stream).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
            }
        }
    }
}

#[test]
fn a_port_whose_close_was_never_answered_reaches_another_endpoint() {
    reach_another_endpoint_by_the_same_port(|_| ());
}

#[test]
fn a_port_whose_endpoint_is_gone_reaches_another_one_though_nobody_has_closed_its_connection() {
    reach_another_endpoint_by_the_same_port(|site| {
        for from in clients(site) {
            let silent = "add table inet silent
                add chain inet silent out { type filter hook output priority 0; }
                add rule inet silent out tcp flags & (fin | rst) != 0 drop";
            from.nft(&["-f", "-"], silent).unwrap();
        }
        // They have asked for longer than a connection may take to open.
        Pinned::open(site.places().bpffs()).unwrap().age_flows(2 * limits::OPENING).unwrap();
    });
}

/// Each client's connection to an endpoint whose host is gone, which it has given up after `give_up`, gives its port to a new one.
fn reach_another_endpoint_by_the_same_port(give_up: fn(&Site)) {
    let site = Site::start(&["1"]).unwrap();
    let mut open = Vec::new();
    for from in clients(&site) {
        // Nobody is asked for long whether he has heard of the close.
        from.sysctl("net/ipv4/tcp_orphan_retries", "1").unwrap();
        for (number, to) in ways_in(81, 30081).into_iter().enumerate() {
            let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let source = SocketAddr::new(any, 42_000 + number as u16);
            let stream = connect_from(from, source, to, |_| Ok(())).unwrap();
            answers(&stream).unwrap();
            open.push((from, source, to, stream));
        }
    }
    site.change(&["2"]).unwrap();
    for (from, to) in
        clients(&site).into_iter().flat_map(|from| ways_in(80, 30080).into_iter().map(move |to| (from, to)))
    {
        let moved = || (Connection::open(from, to).unwrap().ask().unwrap().0 == "web2").then_some(());
        until("new connections to reach web2", moved).unwrap();
    }
    site.hosts.host("web1").namespace.ip(&["link set eth0 down"]).unwrap();
    give_up(&site);
    let closed: Vec<_> = open.into_iter().map(|(from, source, to, _)| (from, source, to)).collect();
    for (from, source, to) in closed {
        let taken = |error: &std::io::Error| error.kind() == std::io::ErrorKind::AddrNotAvailable;
        let again = || Some(connect_from(from, source, to, |_| Ok(()))).filter(|one| !one.as_ref().is_err_and(taken));
        let stream = until("the port to be free", again).unwrap();
        let stream = stream.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
        answers(&stream).unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()));
    }
}

#[test]
fn one_port_talks_to_one_endpoint_by_many_ways_at_a_time() {
    let site = Site::start(&["1"]).unwrap();
    for from in [site.client(), site.outside()] {
        for v4 in [true, false] {
            let any: IpAddr = if v4 { [0; 4].into() } else { [0_u16; 8].into() };
            let mut ways = [ways_in(80, 30080), TWINS.map(|ip| at(ip, 80)).to_vec()].concat();
            ways.retain(|to| to.is_ipv4() == v4);
            let source = SocketAddr::new(any, 41_000);
            let open = |to: &SocketAddr| {
                let stream = connect_from(from, source, *to, |_| Ok(()));
                stream.unwrap_or_else(|error| panic!("{} to {to}: {error}", from.name()))
            };
            let mut streams: Vec<_> = ways.iter().map(open).collect();
            for _ in 0..2 {
                streams.iter().for_each(|stream| answers(stream).unwrap());
                streams.reverse();
            }
            // The end of one is not the others'.
            drop(streams.pop());
            streams.iter().for_each(|stream| answers(stream).unwrap());
            let mut ways = ways_in(81, 30081);
            ways.retain(|to| to.is_ipv4() == v4);
            let socket = from.run(|| std::net::UdpSocket::bind(source)).unwrap().unwrap();
            socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
            for (bytes, to) in [1, 1_000, 4_000].into_iter().flat_map(|bytes| ways.iter().map(move |to| (bytes, *to))) {
                let mut buffer = vec![0; 65_536];
                let back = || {
                    socket.send_to(&vec![7; bytes], to).unwrap();
                    socket.recv_from(&mut buffer).is_ok_and(|got| got == (bytes, to)).then_some(())
                };
                until(&format!("{bytes} bytes back to {} from {to}", from.name()), back).unwrap();
            }
        }
    }
}

#[test]
fn an_endpoint_that_goes_keeps_its_connections_and_loses_its_datagrams() {
    let site = Site::start(&["1"]).unwrap();
    let (mut old, mut sockets) = (Vec::new(), Vec::new());
    for from in clients(&site) {
        for to in ways_in(80, 30080) {
            let mut connection = Connection::open(from, to).unwrap();
            assert_eq!(connection.ask().unwrap().0, "web1");
            old.push(connection);
            let socket = datagrams(from, to).unwrap();
            until("a datagram's answer", || ask_once(&socket).unwrap()).unwrap();
            sockets.push(socket);
        }
    }
    for (endpoint, name) in [("2", "web2"), ("remote", "remote"), ("1", "web1")] {
        site.change(&[endpoint]).unwrap();
        for from in clients(&site) {
            for to in ways_in(80, 30080) {
                let moved = || (Connection::open(from, to).unwrap().ask().unwrap().0 == name).then_some(());
                until(&format!("new connections to reach {name}"), moved).unwrap();
            }
        }
        for connection in &mut old {
            assert_eq!(connection.ask().unwrap().0, "web1", "an established connection stays");
        }
        for socket in &sockets {
            let moved = || ask_once(socket).unwrap().filter(|(server, _)| server == name);
            until(&format!("datagrams to {} to reach {name}", socket.peer_addr().unwrap()), moved).unwrap();
        }
    }
    site.untracked().unwrap();
}
