//! Devices whose packets have no Ethernet header: what comes by one may have to go on by a device that has one, and the other way around.

use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::netns::{Netns, Tunnel};
use kubeferry_tests::site::{EXTERNAL_IPS, NODE_IPS, Site, VIPS, at};

/// Everybody reaches the endpoint, over TCP and UDP.
fn reaches(site: &Site, from: &Netns, way: &str, server: &str) {
    let ways = VIPS.map(|ip| at(ip, 80)).into_iter().chain(NODE_IPS.map(|ip| at(ip, 30080)));
    for to in ways {
        let what = format!("{way}: {} to {to}", from.name());
        let mut connection = Connection::open(from, to).unwrap_or_else(|error| panic!("{what}: {error}"));
        for _ in 0..3 {
            assert_eq!(connection.ask().unwrap_or_else(|error| panic!("{what}: {error}")).0, server, "{what}");
        }
        let socket = datagrams(from, to).unwrap();
        let answered = until(&format!("{what}: a datagram's answer"), || ask_once(&socket).unwrap()).unwrap();
        assert_eq!(answered.0, server, "{what}");
    }
    site.untracked().unwrap();
}

#[test]
fn services_and_endpoints_are_reached_by_devices_with_an_ethernet_header_and_without() {
    // Where the node sends what goes to a Service, and where its endpoint is. That of the node itself is routed by the first.
    let tunnel = ["default dev tunnel src 192.0.2.1", "::/0 dev tunnel src 2001:db8:2::1"];
    let to_remote = ["10.244.2.1 dev tunnel src 192.0.2.1", "fd00:10:244:2::1 dev tunnel src 2001:db8:2::1"];
    for (way, endpoint, routes) in [
        ("Ethernet, then none", "remote", &to_remote[..]),
        ("none at all", "remote", &[to_remote, tunnel].concat()),
        ("none, then Ethernet", "1", &tunnel),
    ] {
        let site = Site::start(&[endpoint]).unwrap();
        let _tunnel = Tunnel::between([site.node(), &site.remote.namespace], "tunnel").unwrap();
        let replace = |route: &&str| format!("route replace {route}");
        site.node().ip(&routes.iter().map(replace).collect::<Vec<_>>()).unwrap();
        site.remote.namespace.ip(&["route replace default dev tunnel", "route replace ::/0 dev tunnel"]).unwrap();
        let server = if endpoint == "1" { "web1" } else { endpoint };
        until(&format!("{way}: the node's devices to be covered"), || {
            let status = site.status().ok()?;
            status.to_string().contains("tunnel").then_some(())
        })
        .unwrap();
        for from in [site.client(), site.node()] {
            reaches(&site, from, way, server);
        }
    }
}

/// A tunnel without one other end asks the route of each packet for it, as Calico's IPIP does. What comes by it to a Service goes on by it; and
/// what the node sends to a Service was routed to another of its ends, where nobody is.
#[test]
#[ignore = "needs IPIP: `cargo xtask test kernels`"]
fn a_tunnel_with_several_other_ends_is_told_which() {
    let site = Site::start(&["remote"]).unwrap();
    let router = &site.hosts.host("router").namespace;
    site.node()
        .ip(&[
            "link add ipip9 type ipip local 192.0.2.1",
            "addr add 198.18.9.1/32 dev ipip9",
            "link set ipip9 up",
            "route replace 10.244.2.1 via 198.51.100.1 dev ipip9 onlink",
            "route replace 203.0.113.9 via 198.51.100.1 dev ipip9 onlink",
            "route replace 10.96.0.10 via 198.51.100.77 dev ipip9 onlink",
        ])
        .unwrap();
    let to_services = [VIPS[0], EXTERNAL_IPS[0]].map(|ip| format!("route replace {ip} dev ipip9"));
    router
        .ip(&[
            "link add ipip9 type ipip local 198.51.100.1 remote 192.0.2.1",
            "link set ipip9 up",
            "route add 198.18.9.1 dev ipip9",
        ])
        .unwrap();
    router.ip(&to_services).unwrap();
    until("the tunnel to be covered", || site.status().ok()?.to_string().contains("ipip9").then_some(())).unwrap();
    for (from, ip) in [(site.outside(), VIPS[0]), (site.outside(), EXTERNAL_IPS[0]), (site.node(), VIPS[0])] {
        let (to, what) = (at(ip, 80), format!("{ip} to answer {} by the tunnel", from.name()));
        let ask = || Connection::attempt(from, to)?.ask().ok();
        assert_eq!(until(&what, ask).unwrap().0, "remote");
        let socket = datagrams(from, to).unwrap();
        let answered = until(&format!("{what}, a datagram"), || ask_once(&socket).unwrap()).unwrap();
        assert_eq!(answered.0, "remote");
    }
    site.untracked().unwrap();
}
