//! The ports that endpoints see of masqueraded clients.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use kubeferry_tests::client::{Connection, answer, until};
use kubeferry_tests::site::{Site, at};
use kubeferry_tests::sockets::connect_from;

use super::{clients, ways_in};

/// Servers that trust the root of their clients' machines look at it (exports(5), `secure`).
#[test]
fn a_privileged_port_stays_one() {
    for flags in [&[][..], &["--xdp", "generic", "--xdp-devices", "router"]] {
        let site = Site::start_with(&["remote"], flags).unwrap();
        for from in clients(&site) {
            for (number, to) in ways_in(80, 30080).into_iter().enumerate() {
                let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
                let source = SocketAddr::new(any, 700 + number as u16);
                let what = format!("{} from {source} to {to}", from.name());
                let stream =
                    connect_from(from, source, to, |_| Ok(())).unwrap_or_else(|error| panic!("{what}: {error}"));
                let (_, seen) = Connection::over(stream).unwrap().ask().unwrap();
                assert!((512..1024).contains(&seen.port()), "{what}: TCP seen from {seen}");
                let socket = from.run(|| UdpSocket::bind(source)).unwrap().unwrap();
                socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
                let ask = || {
                    let mut buffer = [0; 128];
                    socket.send_to(b"?\n", to).unwrap();
                    let (length, _) = socket.recv_from(&mut buffer).ok()?;
                    answer(&String::from_utf8_lossy(&buffer[..length])).ok()
                };
                let (_, seen) = until(&format!("{what}: a datagram's answer"), ask).unwrap();
                assert!((512..1024).contains(&seen.port()), "{what}: UDP seen from {seen}");
            }
        }
    }
}

/// What a network card or the kernel is still to sum up: XDP's generic mode sees it before.
#[test]
fn a_checksum_that_is_still_to_be_made_is_right_in_the_end() {
    let site = Site::start_with(&["remote"], &["--xdp", "generic", "--xdp-devices", "router"]).unwrap();
    // Who is beyond gets what the router's device sums up.
    let router = &site.hosts.host("router").namespace;
    for device in ["remote", "outside"] {
        kubeferry_tests::sockets::without_offloads(router, device).unwrap();
    }
    for to in kubeferry_tests::site::NODE_IPS.map(|ip| at(ip, 30080)) {
        let mut connection = Connection::open(site.outside(), to).unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(connection.ask().unwrap().0, "remote", "{to}");
    }
}
