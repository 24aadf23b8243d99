//! VLAN tags are left alone: a tagged frame passes a device that knows nothing of its VLAN as it is, tag and all, though the
//! same frame without a tag is translated. The kernel takes the tag from the frame and keeps it beside the packet; where it
//! does not (test runs, XDP), the frame is one of another protocol.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::{Pinned, interface_index};
use kubeferry_tests::client::{Connection, ask_once, datagrams, until};
use kubeferry_tests::exchange::exchange;
use kubeferry_tests::executors::Source;
use kubeferry_tests::flows::{Case, Node, Step, with_node};
use kubeferry_tests::netns::Netns;
use kubeferry_tests::packets::{Captured, FrameSocket, Protocol, Seen, first_packet, packet};
use kubeferry_tests::site::{NODE_IPS, Site, VIPS, at};
use kubeferry_tests::world::World;

const NODE: &str = "
name: worker-1
addresses: {eth0: [192.0.2.1, '2001:db8:2::1']}
cluster-cidr: [10.244.0.0/16, 'fd00:10:244::/48']
";
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  ipFamilies: [IPv4, IPv6]
  ports: [{name: tcp, port: 80, nodePort: 30080}, {name: udp, protocol: UDP, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: [10.244.2.1], nodeName: worker-2}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: tcp, port: 8080}, {name: udp, protocol: UDP, port: 8080}]
endpoints: [{addresses: ['fd00:10:244:2::1'], nodeName: worker-2}]
";
/// Of each family: a client in the pods' range, so that nothing is masqueraded; the ClusterIP; the endpoint.
const FAMILIES: [[&str; 3]; 2] = [
    ["10.244.3.9:5000", "10.96.0.10:80", "10.244.2.1:8080"],
    ["[fd00:10:244:3::9]:5000", "[fd00:10:96::10]:80", "[fd00:10:244:2::1]:8080"],
];
/// VLAN 7, with a priority.
const TAG: u16 = 0x6007;
/// EtherTypes of tags: 802.1Q, and 802.1ad for the outer one of two.
const TAGS: [u16; 2] = [0x8100, 0x88a8];
/// Machines on the link that are not the node.
const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 9, 1], [2, 0, 0, 0, 9, 2]);

/// A node with the uplink `eth0`, and the ports `trunk` and `leaf` of its bridge.
struct Bridged {
    // Before what the programs are attached to.
    places: Places,
    world: World,
    trunk: FrameSocket,
    leaf: FrameSocket,
}

impl Bridged {
    fn start(flags: &[&str]) -> Self {
        let world = World::bare(&["eth0", "trunk", "leaf"].map(str::to_owned)).unwrap();
        world
            .node
            .ip(&[
                "addr add 192.0.2.1/32 dev eth0",
                "addr add 2001:db8:2::1/128 dev eth0 nodad",
                "link add bridge0 type bridge",
                "link set bridge0 addrgenmode none",
                "link set trunk master bridge0",
                "link set leaf master bridge0",
                "link set bridge0 up",
            ])
            .unwrap();
        let places = Places::new().unwrap();
        let node = Node::parse(NODE).unwrap();
        let source = Source::new(&Case { name: "vlan".into(), node: node.clone(), steps: Vec::new() }).unwrap();
        source.write(&Step { manifests: with_node(&node, SERVICES).unwrap(), rows: Vec::new() }).unwrap();
        let mut command = source.command("run").unwrap();
        places.apply(&mut command).arg("--once").args(flags);
        let output = world.node.output(&mut command, "").unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let open = |name: &str| world.far.run(|| FrameSocket::open(name)).unwrap().unwrap();
        let (trunk, leaf) = (open("trunk"), open("leaf"));
        Self { places, world, trunk, leaf }
    }

    fn pinned(&self) -> Pinned {
        Pinned::open(self.places.bpffs()).unwrap()
    }
}

/// A first packet in a frame from one machine to another, with or without a tag in it.
fn framed(protocol: Protocol, from: SocketAddr, to: SocketAddr, cookie: u32, tags: &[u16]) -> Vec<u8> {
    let packet = first_packet(protocol, from, to, cookie);
    let kind: [u8; 2] = if to.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let tags: Vec<u8> = tags.iter().flat_map(|tag| [tag.to_be_bytes(), TAG.to_be_bytes()]).flatten().collect();
    [&MACS.0[..], &MACS.1, &tags, &kind, &packet].concat()
}

/// What comes out of a port for the packet with this cookie.
fn comes_out(port: &FrameSocket, cookie: u32) -> Captured {
    let ours = || {
        let captured = port.receive_tagged().unwrap()?;
        let seen = packet(captured.frame.get(14..)?)?;
        (seen.cookie() == cookie).then_some(captured)
    };
    until(&format!("packet {cookie:x} to come out of the bridge, socket {}", port.as_raw_fd()), ours).unwrap()
}

fn ends(captured: &Captured) -> (SocketAddr, SocketAddr) {
    match packet(&captured.frame[14..]) {
        Some(Seen::First { from, to, .. }) => (from, to),
        other => panic!("{other:?}"),
    }
}

/// Both ways through the bridge: without a tag, translated where the frame comes in, and back where it leaves; with one, not.
fn pass(flags: &[&str]) {
    let bridged = Bridged::start(flags);
    let mut cookie = 0x6b68_0000;
    for [client, service, endpoint] in FAMILIES.map(|family| family.map(|at| at.parse::<SocketAddr>().unwrap())) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let mut send = |port: &FrameSocket, out: &FrameSocket, from: SocketAddr, to: SocketAddr, tags: &[u16]| {
                cookie += 1;
                port.send(&framed(protocol, from, to, cookie, tags)).unwrap();
                (comes_out(out, cookie), framed(protocol, from, to, cookie, &[]))
            };
            let (trunk, leaf) = (&bridged.trunk, &bridged.leaf);
            // Tagged first: no connection is there, and none must be made.
            let flows = bridged.pinned().flows().unwrap();
            let (came, sent) = send(trunk, leaf, client, service, &TAGS[..1]);
            assert_eq!(came, Captured { tag: Some(TAG), frame: sent }, "{protocol} to {service} with a tag");
            assert_eq!(bridged.pinned().flows().unwrap(), flows, "a tagged packet opens no connection");
            let (came, _) = send(trunk, leaf, client, service, &[]);
            assert_eq!((came.tag, ends(&came)), (None, (client, endpoint)), "{protocol} to {service}");
            assert!(bridged.pinned().flows().unwrap() > flows);
            // With a connection there, what has its ends and a tag is another's.
            let (came, sent) = send(trunk, leaf, client, service, &TAGS[..1]);
            assert_eq!(came, Captured { tag: Some(TAG), frame: sent }, "{protocol} to {service} with a tag, again");
            let (came, sent) = send(leaf, trunk, endpoint, client, &TAGS[..1]);
            assert_eq!(came, Captured { tag: Some(TAG), frame: sent }, "{protocol} from {endpoint} with a tag");
            let (came, _) = send(leaf, trunk, endpoint, client, &[]);
            assert_eq!((came.tag, ends(&came)), (None, (service, client)), "{protocol} from {endpoint}");
        }
    }
}

#[test]
fn tagged_frames_pass_untouched_at_tc() {
    pass(&["--xdp", "off"]);
}

#[test]
fn tagged_frames_pass_untouched_at_tc_and_xdp() {
    pass(&["--xdp", "native", "--xdp-devices", "trunk"]);
}

/// A tag, or two, in the frame itself: every program leaves it, and without them would not.
#[test]
fn programs_leave_tags_in_frames_alone() {
    const NEXT: i32 = -1;
    const PASS: i32 = 2;
    let bridged = Bridged::start(&["--xdp", "native", "--xdp-devices", "eth0"]);
    let (pinned, node): (_, &Netns) = (bridged.pinned(), &bridged.world.node);
    let device = interface_index(node, "eth0").unwrap();
    let mut cookie = 0x6b69_0000;
    for ([client, service, _], node_port) in FAMILIES.into_iter().zip(["192.0.2.1:30080", "[2001:db8:2::1]:30080"]) {
        for (protocol, to) in
            [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|one| [(one, service), (one, node_port)])
        {
            let (client, to): (SocketAddr, SocketAddr) = (client.parse().unwrap(), to.parse().unwrap());
            for tags in [&TAGS[..1], &TAGS[1..], &[TAGS[1], TAGS[0]]] {
                cookie += 1;
                let mut frame = framed(protocol, client, to, cookie, tags);
                frame[..6].copy_from_slice(&bridged.world.cables[0].node_mac);
                let ran = pinned.run_at_xdp(node, device, &frame).unwrap();
                assert!(ran.verdict == PASS && ran.frame == frame, "XDP, {protocol} to {to} with {tags:x?}: {ran:?}");
                for own in [false, true] {
                    let ran = pinned.run(node, own, device, &frame).unwrap();
                    assert!(
                        ran.verdict == NEXT && ran.frame == frame,
                        "TC {own}, {protocol} to {to}, {tags:x?}: {ran:?}"
                    );
                }
                assert_eq!(pinned.flows().unwrap(), 0);
            }
            let mut frame = framed(protocol, client, to, cookie, &[]);
            frame[..6].copy_from_slice(&bridged.world.cables[0].node_mac);
            let ran = pinned.run_at_xdp(node, device, &frame).unwrap();
            assert!(ran.verdict != PASS && ran.frame != frame, "XDP, {protocol} to {to}: {ran:?}");
            pinned.forget_flows().unwrap();
            for own in [false, true] {
                let ran = pinned.run(node, own, device, &frame).unwrap();
                assert_ne!(ran.frame, frame, "TC {own}, {protocol} to {to}");
                pinned.forget_flows().unwrap();
            }
        }
    }
}

/// The client pod moves to VLAN 7 of its cable: the VLAN's device on the node is one like any other.
#[test]
#[ignore = "needs 8021q, which not every kernel has: `cargo xtask test kernels` runs it"]
fn a_service_is_reached_by_a_vlans_device() {
    let site = Site::start(&["1", "remote"]).unwrap();
    let link = |namespace: &Netns| {
        let show = namespace.output(std::process::Command::new("ip").args(["-br", "link", "show"]), "").unwrap();
        String::from_utf8_lossy(&show.stdout).into_owned()
    };
    let mac = |text: &str, device: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("{device}@"))).unwrap().to_owned();
        line.split_whitespace().nth(2).unwrap().to_owned()
    };
    let (near, far) = (mac(&link(site.node()), "client"), mac(&link(site.client()), "eth0"));
    for (namespace, under, other) in [(site.node(), "client", far), (site.client(), "eth0", near)] {
        let device = format!("{under}.7");
        let mut lines = vec![
            format!("link add link {under} name {device} type vlan id 7"),
            format!("link set {device} addrgenmode none"),
            format!("link set {device} up"),
        ];
        for gateway in ["169.254.1.1", "fe80::1"] {
            lines.push(format!("neigh add {gateway} lladdr {other} dev {device} nud permanent"));
        }
        let routes: &[(&str, &str)] = match under {
            "eth0" => &[("default", "169.254.1.1"), ("::/0", "fe80::1")],
            _ => &[("10.244.1.7/32", "169.254.1.1"), ("fd00:10:244:1::7/128", "fe80::1")],
        };
        lines.extend(routes.iter().map(|(to, by)| format!("route replace {to} via {by} dev {device} onlink")));
        namespace.ip(&lines).unwrap();
    }
    until("the VLAN's device to be covered", || {
        site.status().ok().filter(|status| status.to_string().contains("client.7"))
    })
    .unwrap();
    for to in VIPS.map(|ip| at(ip, 80)).into_iter().chain(NODE_IPS.map(|ip| at(ip, 30080))) {
        let is_vip = VIPS.contains(&to.ip().to_string().as_str());
        for _ in 0..20 {
            let mut connection = Connection::open(site.client(), to).unwrap_or_else(|error| panic!("{to}: {error}"));
            let (_, seen) = connection.ask().unwrap();
            assert_eq!(seen == connection.local().unwrap(), is_vip, "{to}: seen as {seen}");
            until(&format!("a datagram's answer from {to}"), || {
                ask_once(&datagrams(site.client(), to).unwrap()).unwrap()
            })
            .unwrap();
        }
    }
    for to in VIPS.map(|ip| at(ip, 81)) {
        exchange(site.client(), to, 1_000_000).unwrap();
    }
    site.untracked().unwrap();
}
