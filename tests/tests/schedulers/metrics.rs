//! `--service-metrics`: what a service port got, against what is known to have gone by.

use std::net::UdpSocket;
use std::thread;

use kubeferry_ebpf_common::{Traffic, UDP};
use kubeferry_tests::client::{datagrams, until};
use kubeferry_tests::cpus;
use kubeferry_tests::sockets::without_offloads;

use super::counted::{By, World};
use super::web::{Web, vip};

const CONNECTIONS: &str = "kubeferry_service_connections_total";
const ACTIVE: &str = "kubeferry_service_active_connections";
const PACKETS: &str = "kubeferry_service_packets_total";
const BYTES: &str = "kubeferry_service_bytes_total";

/// The value for a port of the Service; `None`: there is none.
fn value(world: &World, metric: &str, port: &str, v6: bool) -> Option<u64> {
    let family = if v6 { "ip_family=\"IPv6\"" } else { "ip_family=\"IPv4\"" };
    let values = world.metric(metric);
    let mut of = values.iter().filter(|(labels, _)| {
        labels.contains(&format!("port=\"{port}\"")) && labels.contains("service=\"web\"") && labels.contains(family)
    });
    let found = of.next().map(|(_, value)| *value);
    assert!(of.next().is_none(), "{values:?}");
    found
}

fn until_value(world: &World, metric: &str, port: &str, v6: bool, expected: u64) {
    let mut last = None;
    let equal = || {
        last = value(world, metric, port, v6);
        (last == Some(expected)).then_some(())
    };
    if let Err(error) = until(&format!("{metric} of {port} to be {expected}"), equal) {
        panic!("{error}: it is {last:?}");
    }
}

#[test]
fn connections_are_told_where_that_is_asked_for() {
    let mut world = World::start(&Web::new("rr", &[1, 1]), &["--service-metrics", "connections"]);
    for v6 in [false, true] {
        let (before, _) = world.sums("tcp", v6);
        let open: Vec<_> =
            (0..9).map(|at| world.open(if at % 3 == 0 { By::Packets } else { By::Socket }, v6)).collect();
        until_value(&world, CONNECTIONS, "tcp", v6, before + 9);
        until_value(&world, ACTIVE, "tcp", v6, 9);
        drop(open);
        until_value(&world, ACTIVE, "tcp", v6, 0);
        // What an endpoint that goes has got stays in the sum.
        world.change_now(&Web::new("rr", &[1]));
        drop(world.open(By::Packets, v6));
        until_value(&world, CONNECTIONS, "tcp", v6, before + 10);
        world.change_now(&Web::new("rr", &[1, 1]));
        (0..4).for_each(|_| drop(world.open(By::Packets, v6)));
        until_value(&world, CONNECTIONS, "tcp", v6, before + 14);
        assert_eq!(value(&world, PACKETS, "tcp", v6), None);
        assert_eq!(world.pinned().traffic(1).unwrap(), [], "packets are counted though nobody asks");
    }
    world.run_with(&[]);
    assert_eq!(value(&world, CONNECTIONS, "tcp", false), None);
}

/// What has gone by the client's own stack: packets, and bytes from the IP header on.
fn seen(world: &World, port: &str, v6: bool) -> (u64, u64) {
    let text = world.clients().nft(&["-j", "list", "counters"], "").unwrap();
    let text: serde_json::Value = serde_json::from_str(&text).unwrap();
    let wanted = format!("{port}-{}", if v6 { 6 } else { 4 });
    let mut counters = text["nftables"].as_array().unwrap().iter().map(|one| &one["counter"]);
    let counter = counters.find(|counter| counter["name"] == wanted.as_str()).unwrap();
    (counter["packets"].as_u64().unwrap(), counter["bytes"].as_u64().unwrap())
}

const FULL: [&str; 6] = ["--service-metrics", "full", "--socket-lb", "off", "--xdp", "off"];

#[test]
fn packets_and_bytes_are_told_exactly() {
    let world = World::start(&Web::new("rr", &[1, 1]), &FULL);
    for name in ["pods", "clients"] {
        without_offloads(&world.hosts.host(name).namespace, "eth0").unwrap();
        without_offloads(&world.hosts.node, name).unwrap();
    }
    let values = |port: &str, v6: bool| [PACKETS, BYTES].map(|metric| value(&world, metric, port, v6).unwrap_or(0));
    until("the first look", || value(&world, PACKETS, "tcp", true).filter(|packets| *packets > 0)).unwrap();
    let mut rules = String::from("table inet seen {\n");
    for name in ["tcp-4", "tcp-6", "udp-4", "udp-6"] {
        rules += &format!("counter {name} {{ }}\n");
    }
    for (hook, end, way) in [("output", "daddr", "dport"), ("input", "saddr", "sport")] {
        rules += &format!("chain {hook} {{ type filter hook {hook} priority 0;\n");
        for (protocol, port) in [("tcp", 80), ("udp", 82)] {
            for (number, family, v6) in [(4, "ip", false), (6, "ip6", true)] {
                let vip = vip(v6, port).ip();
                rules += &format!("{family} {end} {vip} {protocol} {way} {port} counter name {protocol}-{number}\n");
            }
        }
        rules += "}\n";
    }
    world.clients().nft(&["-f", "-"], &(rules + "}\n")).unwrap();
    for v6 in [false, true] {
        let before = ["tcp", "udp"].map(|port| values(port, v6));
        for round in 0..4 {
            let mut connection = world.open(By::Packets, v6);
            (0..25).for_each(|_| assert_eq!(connection.ask(), connection.endpoint));
            if round % 2 == 0 {
                connection.close()
            } else {
                connection.reset()
            }
            let socket: UdpSocket = datagrams(world.clients(), vip(v6, 82)).unwrap();
            let answered = || socket.send(&[b'?'; 60]).and_then(|_| socket.recv(&mut [0; 64])).ok();
            for _ in 0..7 {
                until("a datagram's answer", answered).unwrap();
            }
        }
        world.until_active(v6, &[0, 0]);
        for (port, [packets, bytes]) in ["tcp", "udp"].into_iter().zip(before) {
            let (seen_packets, seen_bytes) = seen(&world, port, v6);
            assert!(seen_packets >= 4 * 14, "{seen_packets}");
            until_value(&world, PACKETS, port, v6, packets + seen_packets);
            until_value(&world, BYTES, port, v6, bytes + seen_bytes);
        }
    }
}

/// Datagrams of one endpoint that two CPUs send at a time are counted by each in memory of its own, and told as one sum.
#[test]
fn each_cpu_counts_by_itself() {
    const EACH: u64 = 400;
    let world = World::start(&Web::new("rr", &[1]), &FULL);
    let pinned = world.pinned();
    let row = pinned.list(vip(false, 82), UDP).unwrap()[0].backend;
    let told = || [PACKETS, BYTES].map(|metric| value(&world, metric, "udp", false).unwrap_or(0));
    let (before, shards_before) = (told(), pinned.traffic(row).unwrap());
    let cpus: Vec<usize> = cpus::allowed().unwrap().into_iter().take(2).collect();
    let ask = |cpu: usize| {
        let socket = datagrams(world.clients(), vip(false, 82)).unwrap();
        cpus::stay_on(&[cpu]).unwrap();
        // A datagram goes through the node on the CPU that sends it; its answer on any.
        let one = || {
            socket.send(&[b'?'; 60]).unwrap();
            28 + 60 + 28 + socket.recv(&mut [0; 64]).unwrap() as u64
        };
        (0..EACH).map(|_| one()).sum::<u64>()
    };
    let bytes: u64 = thread::scope(|scope| {
        let threads: Vec<_> = cpus.iter().map(|cpu| scope.spawn(|| ask(*cpu))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let packets = 2 * EACH * cpus.len() as u64;
    let shards: Vec<Traffic> = pinned.traffic(row).unwrap();
    let more = |shard: usize| Traffic {
        packets: shards[shard].packets - shards_before[shard].packets,
        bytes: shards[shard].bytes - shards_before[shard].bytes,
    };
    let all: Vec<Traffic> = (0..shards.len()).map(more).collect();
    for cpu in cpus {
        let shard = all[cpu & (all.len() - 1)];
        assert!(shard.packets >= EACH, "CPU {cpu} sent {EACH} datagrams: {all:?}");
    }
    let sums = (all.iter().map(|shard| shard.packets).sum(), all.iter().map(|shard| shard.bytes).sum());
    assert_eq!(sums, (packets, bytes), "{all:?}");
    until_value(&world, PACKETS, "udp", false, before[0] + packets);
    until_value(&world, BYTES, "udp", false, before[1] + bytes);
}

/// What was counted goes on in maps of other sizes. Who has packets counted, or no more, has other maps, too: connections go on there,
/// and packets are counted from then on.
#[test]
fn what_is_counted_goes_on_in_other_maps() {
    let mut world = World::start(&Web::new("rr", &[1]), &FULL);
    let (before, _) = world.sums("tcp", false);
    let mut connection = world.open(By::Packets, false);
    let mut ask = |times: usize| (0..times).for_each(|_| assert_eq!(connection.ask(), connection.endpoint));
    ask(50);
    let settled = |world: &World| {
        let mut last = 0;
        let same = || {
            let now = value(world, PACKETS, "tcp", false)?;
            thread::sleep(std::time::Duration::from_millis(1_500));
            (std::mem::replace(&mut last, now) == now).then_some(now)
        };
        until("the last packets to be told", same).unwrap()
    };
    let packets = settled(&world);
    assert!(packets >= 100, "{packets}");
    world.run_with(&[FULL[0], FULL[1], FULL[2], FULL[3], "--map-sizes", "backends=3000,flows=40000"]);
    assert_eq!(settled(&world), packets);
    ask(50);
    let packets = settled(&world);
    world.run();
    assert_eq!(settled(&world), packets, "a restart, and no other maps");
    for (flags, counts) in [(&["--service-metrics", "connections", "--socket-lb", "off"][..], false), (&FULL[..], true)]
    {
        world.run_with(flags);
        ask(10);
        until_value(&world, CONNECTIONS, "tcp", false, before + 1);
        until_value(&world, ACTIVE, "tcp", false, 1);
        match counts {
            false => assert_eq!(value(&world, PACKETS, "tcp", false), None),
            true => assert!((20..100).contains(&settled(&world)), "only those since then"),
        }
    }
    connection.close();
    until_value(&world, ACTIVE, "tcp", false, 0);
    assert_eq!(world.recounted(), 0);
}
