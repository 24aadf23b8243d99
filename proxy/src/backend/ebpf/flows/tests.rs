//! What is read of the map of connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use kubeferry_ebpf_common::UDP;

use super::*;

type Table = BTreeMap<FlowKey, Flow>;

const CLIENT: &str = "192.0.2.9:5000";
const SERVICE: &str = "10.96.0.1:80";
const ENDPOINT: &str = "10.244.0.9:8080";
const NODE: &str = "172.18.0.2:20000";

fn key(source: &str, destination: &str, hook: u8, protocol: u8) -> FlowKey {
    let [source, destination] = [source, destination].map(|text| text.parse::<SocketAddr>().unwrap());
    FlowKey {
        source: source.ip().into(),
        destination: destination.ip().into(),
        source_port: source.port().to_be(),
        destination_port: destination.port().to_be(),
        protocol,
        hook,
        reserved: 0,
    }
}

fn flow(to: &str, flags: u16, seen: u32) -> Flow {
    let to: SocketAddr = to.parse().unwrap();
    Flow {
        address: to.ip().into(),
        port: to.port().to_be(),
        flags,
        seen,
        device: 0,
        backend: 0,
        sender: 0,
        reserved: 0,
    }
}

/// A masqueraded connection whose sides were last heard at these ticks, with these flags.
fn table(protocol: u8, forward: (u16, u32), backward: (u16, u32)) -> Table {
    let (f, b) = (Flow::FORWARD | forward.0, backward.0);
    BTreeMap::from([
        (key(CLIENT, SERVICE, FlowKey::IN, protocol), flow(ENDPOINT, f | Flow::MASQUERADED, forward.1)),
        (key(ENDPOINT, CLIENT, FlowKey::OUT, protocol), flow(SERVICE, b, backward.1)),
        (key(CLIENT, ENDPOINT, FlowKey::OUT, protocol), flow(NODE, f, forward.1)),
        (key(ENDPOINT, NODE, FlowKey::IN, protocol), flow(CLIENT, b, backward.1)),
    ])
}

fn first(table: &Table) -> (FlowKey, Flow) {
    let firsts: Vec<_> = table.iter().filter(|(key, flow)| is_first(key, flow)).collect();
    assert_eq!(firsts.len(), 1);
    (*firsts[0].0, *firsts[0].1)
}

fn ends_at(table: &Table) -> u32 {
    let (key, flow) = first(table);
    let entries = connection(&key, &flow, &mut |key| table.get(key).copied());
    assert_eq!(entries.iter().copied().collect::<Table>(), *table, "all entries are found");
    let end = (0..100_000).find(|now| is_over(&entries, *now, u32::MAX)).unwrap();
    assert!(may_be_over(&key, &flow, end, u32::MAX), "{end}");
    end
}

#[test]
fn a_connection_ends_when_both_sides_have_been_silent() {
    let seen = Flow::SEEN;
    assert_eq!(ends_at(&table(TCP, (seen, 100), (seen, 150))), 150 + limits::ESTABLISHED + 1);
    assert_eq!(ends_at(&table(TCP, (seen, 100), (0, 100))), 100 + limits::OPENING + 1);
    assert_eq!(ends_at(&table(TCP, (seen | Flow::FIN, 100), (seen, 90))), 100 + limits::HALF_CLOSED + 1);
    assert_eq!(ends_at(&table(TCP, (seen | Flow::FIN, 100), (seen | Flow::FIN, 101))), 101 + limits::CLOSED + 1);
    assert_eq!(ends_at(&table(TCP, (seen, 100), (seen | Flow::RST, 101))), 101 + limits::CLOSED + 1);
    assert_eq!(ends_at(&table(SCTP, (seen, 100), (seen, 101))), 101 + limits::ASSOCIATION + 1);
    assert_eq!(ends_at(&table(SCTP, (seen, 100), (seen | Flow::RST, 101))), 101 + limits::CLOSED + 1);
    assert_eq!(ends_at(&table(UDP, (seen, 100), (0, 100))), 100 + limits::ONE_WAY + 1);
    assert_eq!(ends_at(&table(UDP, (seen, 100), (seen, 90))), 100 + limits::ONE_WAY + 1);
    assert_eq!(ends_at(&table(UDP, (seen | Flow::LASTS, 100), (seen, 90))), 100 + limits::STREAM + 1);
}

#[test]
fn what_is_used_now_is_not_over() {
    let table = table(UDP, (Flow::SEEN, 101), (0, 101));
    let (key, flow) = first(&table);
    let entries = connection(&key, &flow, &mut |key| table.get(key).copied());
    assert!(!is_over(&entries, 100, 0) && !may_be_over(&key, &flow, 100, 0), "another CPU's clock");
}

#[test]
fn a_connection_that_loops_is_found_whole() {
    let f = Flow::FORWARD | Flow::OWN | Flow::SEEN;
    let table = BTreeMap::from([
        (key(NODE, SERVICE, FlowKey::IN, TCP), flow("172.18.0.2:8080", f | Flow::LOOPS, 5)),
        (key("172.18.0.2:8080", NODE, FlowKey::OUT, TCP), flow(SERVICE, Flow::OWN, 5)),
        (key("172.18.0.2:8080", "10.96.0.1:20000", FlowKey::IN, TCP), flow(NODE, Flow::OWN, 5)),
    ]);
    assert_eq!(ends_at(&table), 5 + limits::OPENING + 1);
    for (key, flow) in &table {
        assert!(is_first(key, flow) || !is_orphan(key, flow, &mut |key| table.get(key).copied()));
    }
}

#[test]
fn a_connection_of_the_node_with_an_alias_is_found_whole() {
    let port = |port: u16| u32::from(port.to_be());
    let (f, own, alias, other) = (Flow::FORWARD, Flow::OWN, Flow::ALIAS, "172.18.0.2:20001");
    let first = |to, flags| Flow { device: port(20_001), ..flow(to, f | own | alias | flags, 5) };
    let backward = Flow { device: port(20_000), ..flow(SERVICE, own | alias, 5) };
    let looped = BTreeMap::from([
        (key(NODE, SERVICE, FlowKey::IN, TCP), first("172.18.0.2:8080", Flow::LOOPS)),
        (key("172.18.0.2:8080", other, FlowKey::OUT, TCP), backward),
        (key("172.18.0.2:8080", "10.96.0.1:20001", FlowKey::IN, TCP), flow(other, own, 5)),
    ]);
    let masqueraded = BTreeMap::from([
        (key(NODE, SERVICE, FlowKey::IN, TCP), first(ENDPOINT, 0)),
        (key(ENDPOINT, other, FlowKey::OUT, TCP), backward),
        (key(other, ENDPOINT, FlowKey::OUT, TCP), flow("172.18.0.2:20002", f | own, 5)),
        (key(ENDPOINT, "172.18.0.2:20002", FlowKey::IN, TCP), flow(other, own, 5)),
    ]);
    let keeps = BTreeMap::from([
        (key(NODE, SERVICE, FlowKey::IN, TCP), first(ENDPOINT, 0)),
        (key(ENDPOINT, other, FlowKey::OUT, TCP), backward),
        (key(other, ENDPOINT, FlowKey::OUT, TCP), flow(other, f | own | Flow::KEEPS, 5)),
        (key(ENDPOINT, other, FlowKey::IN, TCP), flow(other, own | Flow::KEEPS, 5)),
    ]);
    for table in [looped, masqueraded, keeps] {
        let (first_key, first_flow) = self::first(&table);
        let entries = connection(&first_key, &first_flow, &mut |key| table.get(key).copied());
        assert_eq!(entries.len(), table.len(), "{table:?}");
        for (key, flow) in &table {
            assert!(is_first(key, flow) || !is_orphan(key, flow, &mut |key| table.get(key).copied()));
        }
    }
}

#[test]
fn no_entry_of_a_connection_that_is_there_is_an_orphan() {
    let (other, port) = ("192.0.2.9:20001", |port: u16| u32::from(port.to_be()));
    let (f, own) = (Flow::FORWARD, Flow::OWN);
    let alias = BTreeMap::from([
        (key(CLIENT, SERVICE, FlowKey::IN, TCP), Flow { device: port(20_001), ..flow(ENDPOINT, f | Flow::ALIAS, 5) }),
        (key(ENDPOINT, other, FlowKey::OUT, TCP), Flow { device: port(5000), ..flow(SERVICE, Flow::ALIAS, 5) }),
        (key(other, ENDPOINT, FlowKey::OUT, TCP), flow(NODE, f, 5)),
        (key(ENDPOINT, NODE, FlowKey::IN, TCP), flow(other, 0, 5)),
    ]);
    let of_node = BTreeMap::from([
        (key(NODE, SERVICE, FlowKey::IN, TCP), flow(ENDPOINT, f | own, 5)),
        (key(ENDPOINT, NODE, FlowKey::OUT, TCP), flow(SERVICE, own, 5)),
        (key(NODE, ENDPOINT, FlowKey::OUT, TCP), flow(NODE, f | own | Flow::KEEPS, 5)),
        (key(ENDPOINT, NODE, FlowKey::IN, TCP), flow(NODE, own | Flow::KEEPS, 5)),
    ]);
    for table in [alias, of_node, table(UDP, (0, 1), (0, 1))] {
        for (key, flow) in &table {
            let orphan = is_orphan(key, flow, &mut |key| table.get(key).copied());
            assert!(is_first(key, flow) || !orphan, "{key:?} of {table:?}");
        }
    }
}

#[test]
fn a_connection_that_lost_an_entry_is_not_kept_for_a_day() {
    let whole = table(TCP, (Flow::SEEN, 1), (Flow::SEEN, 1));
    let (first_key, first_flow) = first(&whole);
    let goes_after = |table: &Table, limit: u32| {
        let entries = connection(&first_key, &first_flow, &mut |key| table.get(key).copied());
        let over = |idle: u32| is_over(&entries, 1 + idle, limits::OPENING);
        !over(limit) && over(limit + 1)
    };
    assert!(goes_after(&whole, limits::ESTABLISHED));
    let mut torn = 0;
    for lost in whole.keys().filter(|key| **key != first_key) {
        let mut table = whole.clone();
        table.remove(lost);
        assert!(goes_after(&table, limits::OPENING), "without {lost:?}");
        torn += 1;
    }
    assert_eq!(torn, 3);
    // The first packet was dropped before it left: there are three, of which nothing is lost.
    let mut pending = table(TCP, (Flow::SEEN, 1), (0, 1));
    let (_, forward) = first_key.siblings(&first_flow);
    pending.get_mut(&forward).unwrap().flags |= Flow::PENDING;
    pending.retain(|key, flow| key.hook == FlowKey::OUT || flow.flags & Flow::FORWARD != 0);
    let entries = connection(&first_key, &first_flow, &mut |key| pending.get(key).copied());
    assert!(entries.len() == 3 && !is_torn(&entries));
}

#[test]
fn orphans_are_those_whose_first_entry_is_gone() {
    let mut table = table(TCP, (Flow::SEEN, 1), (Flow::SEEN, 1));
    let others: Table = table.iter().filter(|(k, f)| !is_first(k, f)).map(|(k, f)| (*k, *f)).collect();
    assert_eq!(others.len(), 3);
    let orphans = |table: &Table| {
        others.iter().filter(|(key, flow)| is_orphan(key, flow, &mut |key| table.get(key).copied())).count()
    };
    assert_eq!(orphans(&table), 0);
    let (key, old) = first(&table);
    table.insert(key, Flow { address: flow(NODE, 0, 0).address, ..old });
    assert_eq!(orphans(&table), 3, "another connection has taken the first one's place");
    table.remove(&key);
    assert_eq!(orphans(&table), 3);
    table.retain(|key, _| key.hook == FlowKey::IN);
    assert_eq!(orphans(&table), 3);
    for (key, flow) in &others {
        let over = |idle: u32| may_be_over(key, flow, 1 + idle, limits::OPENING);
        assert!(!over(limits::OPENING) && over(limits::OPENING + 1), "not a day");
    }
}
