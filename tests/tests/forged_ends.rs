//! A pod sends packets under the addresses and ports of others' connections. What becomes of these is for their own ends to say.
#![allow(clippy::unwrap_used)] // The functions that tests share are tests, too.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kubeferry_ebpf_common::packet::{ACK, FIN, RST, SYN};
use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Flow, FlowKey, TCP};
use kubeferry_tests::bpf::Places;
use kubeferry_tests::bpf::pinned::{Pinned, flow_key, interface_index};
use kubeferry_tests::client::{Connection, Running, ask_once, datagrams, until, until_for};
use kubeferry_tests::datapath::Datapath;
use kubeferry_tests::forging::{Victim, outlived};
use kubeferry_tests::netns::tool;
use kubeferry_tests::on_both_datapaths;
use kubeferry_tests::packets::{FrameSocket, Protocol, first_packet, tcp_packet};
use kubeferry_tests::served::Served;
use kubeferry_tests::small::{self, Small};
use kubeferry_tests::web::{MANIFESTS, Web};

/// The node's address on the cable of the second host, and that host's: see `Host::join`.
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 2, 1]];

on_both_datapaths! {
    nobody_else_ends_a_connection,
    nobody_else_begins_one_between_the_ends_of_another,
}

fn nobody_else_ends_a_connection(datapath: Datapath) {
    let web = Web::build().unwrap();
    let node = &web.hosts.node;
    // The other endpoint is the pod that sends.
    let other = ", {addresses: [10.244.1.2], nodeName: worker-1}";
    assert!(MANIFESTS.contains(other));
    web.write(&MANIFESTS.replace(other, "")).unwrap();
    let mut command = datapath.command(&web.source).unwrap();
    let _running = Running::start_command(command.arg("--masquerade-all"), node).unwrap();
    drop(web.until_served().unwrap());
    let endpoint = SocketAddr::from(([10, 244, 1, 1], 8080));
    let wire = web.hosts.host("web2").namespace.run(|| FrameSocket::open("eth0")).unwrap().unwrap();
    // Of a pod, and of the node itself.
    let open = |number| Victim::open([web.client(), node][number % 2], web.vip(), endpoint);
    assert!(open(0).unwrap().is_masqueraded());
    let victims = outlived(&wire, MACS, open).unwrap();
    // Their own ends are believed.
    drop(victims);
    if let Datapath::Ebpf(places) = &datapath {
        let pinned = Pinned::open(places.bpffs()).unwrap();
        let active = || pinned.first_backends(4_096).unwrap().iter().map(|row| row.active).sum::<u64>();
        until("nothing to be active", || (active() == 0).then_some(())).unwrap();
        let forgotten = || (pinned.flows().unwrap() == 0).then_some(());
        until_for(Duration::from_secs(120), "every connection to be forgotten", forgotten).unwrap();
    }
}

/// With clients in both families.
const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  clusterIP: 10.96.0.10
  ipFamilies: [IPv4, IPv6]
  ports: [{name: tcp, port: 80, targetPort: 8080}, {name: udp, protocol: UDP, port: 80, targetPort: 8080}]
";

/// Who talks to the endpoint by itself is not known to us: that somebody asks the Service in their name must not be taken for what they do.
fn nobody_else_begins_one_between_the_ends_of_another(datapath: Datapath) {
    let cluster = Small::start(datapath, &(OBJECTS.to_owned() + small::ENDPOINT)).unwrap();
    let wire = cluster.hosts.host("web2").namespace.run(|| FrameSocket::open("eth0")).unwrap().unwrap();
    // As CNIs do: the pod itself is the next hop, not somebody at the other end of its cable.
    for ip in ["10.244.1.7", "fd00:10:244:1::7"] {
        let lines = [
            format!("neigh replace {ip} lladdr 02:00:00:00:02:02 dev client nud permanent"),
            format!("route replace {ip} dev client"),
        ];
        cluster.hosts.node.ip(&lines).unwrap();
    }
    for (vip, endpoint, kind) in
        [("10.96.0.10", "10.244.1.1", [8, 0]), ("fd00:10:96::10", "fd00:10:244:1::1", [0x86, 0xdd])]
    {
        let [vip, endpoint] =
            [(vip, 80), (endpoint, 8080)].map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port));
        drop(until("the Service to answer", || Connection::attempt(cluster.client(), vip)).unwrap());
        for from in [cluster.client(), &cluster.hosts.node] {
            let what = format!("{} to {endpoint}", from.name());
            let mut tcp = Connection::open(from, endpoint).unwrap();
            let udp = datagrams(from, endpoint).unwrap();
            let before = (tcp.ask().unwrap(), ask_once(&udp).unwrap().expect("an answer"));
            let ends = [tcp.local().unwrap(), udp.local_addr().unwrap()];
            let mut packets = [0, 0, ACK, SYN].map(|bits| tcp_packet(ends[0], vip, bits, 1)).to_vec();
            packets.push(first_packet(Protocol::Udp, ends[1], vip, 7));
            for packet in packets {
                wire.send(&[&MACS[0][..], &MACS[1], &kind, &packet].concat()).unwrap();
            }
            for _ in 0..3 {
                let answer = tcp.ask().unwrap_or_else(|error| panic!("{what}: {error:#}"));
                let datagram = ask_once(&udp).unwrap().unwrap_or_else(|| panic!("{what}: no datagram is answered"));
                // Connection tracking may give a flow over UDP another port when it has forgotten it.
                assert_eq!((answer, datagram.0), (before.0.clone(), before.1.0.clone()), "{what}");
            }
        }
    }
}

/// What a node has for routes to its pods where programs bring packets to them: all by an interface of the network plugin's, directly or
/// by a gateway; or none but the default one, which is by the veth of somebody else.
const PAST_THE_POD: [&[&str]; 3] = [
    &["route add 10.244.1.0/24 dev cni", "route add fd00:10:244:1::/64 dev cni"],
    &[
        "route add 10.244.1.0/24 via 10.244.1.254 dev cni onlink",
        "route add fd00:10:244:1::/64 via fe80::fe dev cni onlink",
    ],
    &[],
];

#[test]
fn a_pod_that_no_route_leads_to_asks_in_its_own_name() {
    let cluster = Small::start(Datapath::ebpf().unwrap(), &(OBJECTS.to_owned() + small::ENDPOINT)).unwrap();
    let (node, pod) = (&cluster.hosts.node, cluster.hosts.host("client"));
    let vips = ["10.96.0.10", "fd00:10:96::10"].map(|ip| SocketAddr::new(ip.parse().unwrap(), 80));
    for vip in vips {
        drop(until("the Service to answer", || Connection::attempt(cluster.client(), vip)).unwrap());
    }
    let Datapath::Ebpf(places) = &cluster.datapath else { unreachable!() };
    let pinned = Pinned::open(places.bpffs()).unwrap();
    // In the place of programs, for what comes from the endpoint alone.
    for family in ["-4", "-6"] {
        tool("ip", &["-n", node.name(), family, "rule", "add", "iif", "web1", "lookup", "100"], "").unwrap();
    }
    node.ip(&pod.addresses.iter().map(|ip| format!("{} table 100", pod.route_to(*ip))).collect::<Vec<_>>()).unwrap();
    let devices = pinned.devices().unwrap();
    node.ip(&["link add cni type veth peer name cni-end", "link set cni up", "link set cni-end up"]).unwrap();
    until("the new interfaces to be known", || (pinned.devices().unwrap() == devices + 2).then_some(())).unwrap();
    node.ip(&pod.addresses.iter().map(|ip| format!("route del {ip}")).collect::<Vec<_>>()).unwrap();
    for ways in PAST_THE_POD {
        node.ip(ways).unwrap();
        for vip in vips {
            let what = format!("{vip}, with {ways:?}");
            let tcp = Connection::open_within(cluster.client(), vip, Duration::from_secs(5));
            assert_eq!(pinned.counter(Counter::Forged).unwrap(), 0, "{what}");
            let answer = tcp.unwrap_or_else(|error| panic!("{what}: {error}")).ask().unwrap();
            let datagram = ask_once(&datagrams(cluster.client(), vip).unwrap()).unwrap();
            let datagram = datagram.unwrap_or_else(|| panic!("{what}: no datagram is answered"));
            let its_own = pod.addresses[usize::from(vip.is_ipv6())];
            assert_eq!([answer, datagram].map(|(_, seen)| seen.ip()), [its_own; 2], "{what}");
        }
        node.ip(&ways.iter().map(|way| way.replace("add", "del")).collect::<Vec<_>>()).unwrap();
    }
    assert_eq!(pinned.counter(Counter::Forged).unwrap(), 0);
}

/// The web cluster with these objects, served by programs, and their maps.
fn serve(manifests: &str) -> (Served, Pinned) {
    let places = Places::new().unwrap();
    let pins = places.bpffs().to_owned();
    let served = Served::start(Datapath::Ebpf(places), manifests, &[]).unwrap();
    drop(served.web.until_served().unwrap());
    (served, Pinned::open(&pins).unwrap())
}

/// The SYN of a pod that is new leaves by an interface that has no program yet, and is met where it comes back from the router: as if
/// somebody there had sent it.
#[test]
fn the_first_packet_after_the_syn_says_who_sends() {
    let (served, pinned) = serve(MANIFESTS);
    let web = &served.web;
    // As an uplink has one; nobody opens by a pod's in another's name.
    web.hosts.node.ip(&["addr add 192.0.2.77/32 dev web2"]).unwrap();
    let [pod, other] = ["client", "web2"].map(|name| interface_index(&web.hosts.node, name).unwrap());
    let client = |port: u16| SocketAddr::from(([10, 244, 1, 7], port));
    let send = |port, by, bits| {
        let packet = tcp_packet(client(port), web.vip(), bits, 1);
        // Addressed to the node, from the client.
        let frame = [&MACS[0][..], &MACS[1], &[8, 0], &packet].concat();
        pinned.run(&web.hosts.node, false, by, &frame).unwrap();
    };
    let flags = |port: u16| {
        let key = flow_key(TCP, client(port), web.vip(), FlowKey::IN);
        pinned.flow(&key).unwrap().map(|entry| entry.flags)
    };
    let is_closed = |port| flags(port).unwrap_or_else(|| panic!("port {port} has no entry")) & Flow::FIN != 0;
    let opens = || {
        send(40_000, other, SYN);
        flags(40_000)
    };
    until("the address to be noticed", opens).unwrap();
    // Sent again where the interface has its program; or answered in the meantime.
    for (port, then) in [(40_001, [SYN, ACK].as_slice()), (40_002, [ACK].as_slice())] {
        send(port, other, SYN);
        then.iter().for_each(|bits| send(port, pod, *bits));
        send(port, other, SYN);
        send(port, other, FIN | ACK);
        assert!(!is_closed(port), "port {port}: another is believed");
        send(port, pod, FIN | ACK);
        assert!(is_closed(port), "port {port}: its own end is not believed");
    }
}

/// A reset that belongs to nothing is for whoever may have begun from an address of the node. Sent on to an address that nobody holds,
/// it would come back from the router.
#[test]
fn a_reset_of_nothing_goes_on_only_to_the_node_itself() {
    const SHOT: i32 = 2;
    const NEXT: i32 = -1;
    let manifests = MANIFESTS.replace("  clusterIP:", "  externalIPs: [192.0.2.1, 198.51.100.9]\n  clusterIP:");
    let (served, pinned) = serve(&manifests);
    let web = &served.web;
    let device = interface_index(&web.hosts.node, "client").unwrap();
    for (to, verdict) in [([10, 96, 0, 10], SHOT), ([198, 51, 100, 9], SHOT), ([192, 0, 2, 1], NEXT)] {
        let packet = tcp_packet(SocketAddr::from(([10, 244, 1, 7], 40_003)), SocketAddr::from((to, 80)), RST, 1);
        let frame = [&MACS[0][..], &MACS[1], &[8, 0], &packet].concat();
        let ran = pinned.run(&web.hosts.node, false, device, &frame).unwrap();
        assert_eq!((ran.verdict, ran.frame == frame), (verdict, true), "to {to:?}");
    }
}

/// Somebody deletes the rows of devices all the time. Who sends cannot be known then, but a connection that opens or ends
/// meanwhile is over when its ends say so, and not kept for a day.
#[test]
fn connections_end_also_where_devices_have_lost_their_rows() {
    let (served, pinned) = serve(MANIFESTS);
    let web = &served.web;
    let mut older = web.until_served().unwrap();
    older.ask().unwrap();
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| {
            let mut deleted = 0;
            while !end.load(Ordering::Relaxed) {
                deleted += pinned.delete_devices().unwrap();
            }
            deleted
        });
        std::thread::sleep(Duration::from_millis(50));
        for _ in 0..20 {
            Connection::open(web.client(), web.vip()).unwrap().ask().unwrap();
        }
        drop(older);
        std::thread::sleep(Duration::from_millis(300));
        end.store(true, Ordering::Relaxed);
        assert!(deleting.join().unwrap() > 0, "there were no rows");
    });
    let active = || pinned.first_backends(4_096).unwrap().iter().map(|row| row.active).sum::<u64>();
    until("nothing to be active", || (active() == 0).then_some(())).unwrap();
    let forgotten = || (pinned.flows().unwrap() == 0).then_some(());
    until_for(Duration::from_secs(120), "every connection to be forgotten", forgotten).unwrap();
}
