//! Path MTU discovery through Services of the eBPF datapath: whoever sends too large a packet is told by an ICMP error about
//! the packet that it sent, as it sent it; otherwise large packets would vanish for good.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use kubeferry_tests::client::{datagrams, until};
use kubeferry_tests::exchange::{echoes, exchange, exchange_over};
use kubeferry_tests::netns::Netns;
use kubeferry_tests::site::{EXTERNAL_IPS, LOCAL_VIPS, NODE_IPS, Site, VIPS, at};
use kubeferry_tests::sockets::{connect_from, never_fragment, path_mtu};

const NARROW: u32 = 1_300;
/// Fits into no packet of [`NARROW`] bytes.
const LARGE: usize = 1_400;
const SMALL: usize = 1_200;

/// Where clients reach a Service, the port of its echo servers.
type Way = [&'static str; 2];

fn to(way: Way, port: u16) -> [SocketAddr; 2] {
    way.map(|ip| at(ip, port))
}

/// The packets of this client are too large for somebody on the way.
fn client_is_told(from: &Netns, to: SocketAddr) {
    exchange(from, to, 1_000_000).unwrap_or_else(|error| panic!("{} to {to}: {error:#}", from.name()));
    // The kernel remembers by address what the stream has taught it.
    let mut flush = Command::new("ip");
    flush.args([if to.is_ipv4() { "-4" } else { "-6" }, "route", "flush", "cache"]);
    assert!(from.output(&mut flush, "").unwrap().status.success());
    let socket = datagrams(from, to).unwrap();
    never_fragment(&socket, to.ip()).unwrap();
    assert_eq!(path_mtu(&socket, to.ip()).unwrap(), 1_500, "{} to {to}: nothing known yet", from.name());
    let told = || {
        // Too large for what is known by now, in the end.
        let known = socket.send(&[7; LARGE]).is_err_and(|error| error.raw_os_error() == Some(libc::EMSGSIZE));
        known.then(|| path_mtu(&socket, to.ip()).unwrap())
    };
    let mtu = until(&format!("{} to be told of the path to {to}", from.name()), told).unwrap();
    assert_eq!(mtu, NARROW as i32, "{} to {to}", from.name());
    until("a datagram that fits", || echoes(&socket, SMALL).unwrap().then_some(())).unwrap();
}

/// The packets of the server are too large for somebody on the way: it cuts them, once it is told.
fn server_is_told(from: &Netns, to: SocketAddr) {
    exchange(from, to, 1_000_000).unwrap_or_else(|error| panic!("{} to {to}: {error:#}", from.name()));
    let socket = datagrams(from, to).unwrap();
    let what = format!("{LARGE} bytes back to {} from {to}", from.name());
    until(&what, || echoes(&socket, LARGE).unwrap().then_some(())).unwrap();
}

/// What the node itself sends by its default route has no more bytes than this.
fn narrow_uplink(site: &Site) {
    let lines = ["default via 169.254.1.1", "::/0 via fe80::1"];
    let lines = lines.map(|route| format!("route change {route} dev router onlink mtu {NARROW}"));
    site.node().ip(&lines).unwrap();
}

#[test]
fn a_client_learns_of_a_narrow_path_beyond_the_node() {
    let site = Site::start(&["remote"]).unwrap();
    site.narrow(&site.remote, NARROW).unwrap();
    for to in to(VIPS, 81).into_iter().chain(to(NODE_IPS, 30081)) {
        client_is_told(site.client(), to);
    }
    for to in to(NODE_IPS, 30081) {
        client_is_told(site.outside(), to);
    }
    site.untracked().unwrap();
}

#[test]
fn the_node_itself_learns_of_a_narrow_path_beyond_it() {
    let site = Site::start(&["remote"]).unwrap();
    site.narrow(&site.remote, NARROW).unwrap();
    for to in to(VIPS, 81) {
        client_is_told(site.node(), to);
    }
}

#[test]
fn a_client_learns_of_a_narrow_way_out_of_the_node() {
    let site = Site::start(&["remote"]).unwrap();
    narrow_uplink(&site);
    for to in to(VIPS, 81).into_iter().chain(to(NODE_IPS, 30081)) {
        client_is_told(site.client(), to);
    }
    for to in to(NODE_IPS, 30081) {
        client_is_told(site.outside(), to);
    }
}

#[test]
fn a_server_learns_of_a_narrow_path_to_its_client() {
    // Masqueraded, and not.
    for (endpoint, ports) in [("1", [30081, 30083]), ("remote", [30081, 30081])] {
        let site = Site::start(&[endpoint]).unwrap();
        site.narrow(&site.outside, NARROW).unwrap();
        for to in ports.into_iter().flat_map(|port| to(NODE_IPS, port)) {
            server_is_told(site.outside(), to);
        }
        site.untracked().unwrap();
    }
}

#[test]
fn a_server_learns_of_a_narrow_way_out_of_the_node() {
    for (endpoint, ports) in [("1", [30081, 30083]), ("remote", [30081, 30081])] {
        let site = Site::start(&[endpoint]).unwrap();
        narrow_uplink(&site);
        for to in ports.into_iter().flat_map(|port| to(NODE_IPS, port)) {
            server_is_told(site.outside(), to);
        }
    }
}

#[test]
fn connections_by_an_alias_of_their_port_learn_too() {
    // The second connection of one port to one endpoint goes on from another port.
    let alias = |site: &Site, from: &Netns, one: SocketAddr, other: SocketAddr| {
        let any: IpAddr = if one.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let open = |to| connect_from(from, SocketAddr::new(any, 42_000), to, |_| Ok(())).unwrap();
        let _first = open(one);
        exchange_over(&open(other), 1_000_000).unwrap_or_else(|error| panic!("{} to {other}: {error:#}", from.name()));
        site.untracked().unwrap();
    };
    let site = Site::start(&["remote"]).unwrap();
    site.narrow(&site.remote, NARROW).unwrap();
    for (one, other) in to(VIPS, 81).into_iter().zip(to(LOCAL_VIPS, 81)) {
        alias(&site, site.client(), one, other);
    }
    let site = Site::start(&["1"]).unwrap();
    site.narrow(&site.outside, NARROW).unwrap();
    for port in [30081, 30083] {
        for (one, other) in to(EXTERNAL_IPS, 81).into_iter().zip(to(NODE_IPS, port)) {
            alias(&site, site.outside(), one, other);
        }
    }
}
