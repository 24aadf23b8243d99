//! Connections that are carried from maps of one shape to those of another, on the real kernel.

use std::os::fd::AsFd;

use super::*;
use crate::backend::ebpf::counters::Counted;
use crate::backend::ebpf::folder::Folder;
use crate::backend::ebpf::kernel::Shape;
use crate::backend::ebpf::load::{Loaded, load};
use crate::backend::ebpf::shards::Shards;
use crate::backend::ebpf::sweep::sweep;
use crate::netns::Mounted;
use crate::settings::{EbpfSettings, MapSizes};
use kubeferry_ebpf_common::flow::limits;
use kubeferry_ebpf_common::{Address, Backend, TCP, Traffic};

/// The maps of an earlier run: its folder, with an endpoint whose row is number 5.
fn earlier(settings: &EbpfSettings, shape: &Shape, counted: &Counted) -> (Folder, Owner) {
    let loaded = load(settings, shape).unwrap();
    let owner = (7, Address::v4(9), 80);
    let key = FrontendKey { address: Address::v4(1), port: 80, protocol: 6, kind: FrontendKey::ADDRESS };
    let frontend = Frontend { service: owner.0, cluster_first: 3, cluster_count: 1, ..Frontend::default() };
    loaded.maps.frontends.put(&[(key, frontend)]).unwrap();
    let slot = Slot { address: owner.1, port: owner.2, backend: 5, ..Slot::default() };
    loaded.maps.slots.put(&[(3, slot)]).unwrap();
    loaded.maps.backends.set(5, counted);
    (loaded.folder, owner)
}

#[test]
fn what_endpoints_had_counted_goes_on_in_maps_of_another_shape() {
    let mounted = Mounted::new();
    let sizes = MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, ..MapSizes::default() };
    let settings = EbpfSettings { bpffs_root: mounted.path().to_owned(), map_sizes: sizes, ..EbpfSettings::default() };
    let shape = |backends: u32, cpus: usize| {
        let sizes = MapSizes { backends, ..sizes };
        Shape { sizes, shards: if cpus == 0 { Shards::NONE } else { Shards::new(backends, cpus) } }
    };
    let connections = Backend { opened: 40, active: 3 };
    let counted = Counted { connections, traffic: Traffic { packets: 500, bytes: 60_000 } };
    let (folder, owner) = earlier(&settings, &shape(1_000, 2), &counted);
    // Packets were counted on the second CPU, too.
    let traffic: Table<u32, Traffic> = Table::new(bpf::open_pin(&folder.maps().join("traffic")).unwrap()).unwrap();
    assert_eq!(traffic.get(&5).unwrap(), Some(counted.traffic));
    traffic.put(&[(1_000 + 5, Traffic { packets: 1, bytes: 40 })]).unwrap();
    let all = Traffic { packets: 501, bytes: 60_040 };
    let uncounted = Traffic::default();
    // Other sizes, other CPUs, and nobody who asks for packets any more.
    for (shape, traffic) in
        [(shape(2_000, 2), all), (shape(1_000, 1), all), (shape(1_000, 9), all), (shape(1_000, 0), uncounted)]
    {
        let loaded = load(&settings, &shape).unwrap();
        assert!(!loaded.adopted);
        let kept = Kept { owners: BTreeMap::from([(owner, 5)]), busy: vec![5] };
        assert_eq!(rows_of(folder.maps(), &loaded.maps), kept);
        assert_eq!(loaded.maps.backends.get(5), Counted { connections, traffic }, "{shape:?}");
        assert_eq!(loaded.maps.backends.get(6), Counted::default());
        // It is counted from there on, and begins anew as a whole.
        assert_eq!(loaded.maps.backends.reset(5), Counted { connections, traffic });
        let active = Backend { opened: 0, ..connections };
        assert_eq!(loaded.maps.backends.get(5), Counted { connections: active, ..Counted::default() });
        assert!(load(&settings, &shape).unwrap().adopted, "the same again");
    }
    // Of another layout, as one with packets beside the connections was: connections still lead to their endpoints.
    let pin = folder.maps().join("backends");
    std::fs::remove_file(&pin).unwrap();
    bpf::pin(bpf::create_array(None).unwrap().as_fd(), &pin).unwrap();
    let loaded = load(&settings, &shape(3_000, 2)).unwrap();
    assert_eq!(rows_of(folder.maps(), &loaded.maps).owners, BTreeMap::from([(owner, 5)]));
    assert_eq!(loaded.maps.backends.get(5), Counted::default());
    // Ours, in such a state, are made anew.
    let again = load(&settings, &shape(1_000, 2)).unwrap();
    assert!(!again.adopted);
    assert_eq!((again.folder.maps(), again.maps.frontends.rows().unwrap().len()), (folder.maps(), 0));
}
/// Maps of an earlier run, and empty ones of other sizes beside them.
fn two(mounted: &Mounted) -> (Loaded, Loaded) {
    let sizes =
        MapSizes { flows: 1_000, affinity: 100, sockets: 100, slots: 100, backends: 1_000, ..MapSizes::default() };
    let settings = EbpfSettings { bpffs_root: mounted.path().to_owned(), ..EbpfSettings::default() };
    let shape = |backends| Shape { sizes: MapSizes { backends, ..sizes }, shards: Shards::NONE };
    let both = [1_000, 2_000].map(|backends| load(&settings, &shape(backends)).unwrap());
    assert!(both.iter().all(|loaded| loaded.fresh) && !load(&settings, &shape(1_000)).unwrap().fresh);
    both.into()
}

#[test]
fn rows_where_connections_of_an_endpoint_that_has_gone_count_are_given_to_nobody() {
    let mounted = Mounted::new();
    let (old, new) = two(&mounted);
    let gone = Counted { connections: Backend { opened: 9, active: 2 }, traffic: Traffic::default() };
    old.maps.backends.set(900, &gone);
    let mut in_force = new.maps.read().unwrap();
    in_force.keep_numbers(rows_of(old.folder.maps(), &new.maps), new.maps.room(), 1);
    let mut free = || {
        in_force.written(2);
        in_force.numbers.release(3, |row| new.maps.backends.is_idle(row));
        std::iter::from_fn(|| in_force.numbers.take()).collect::<Vec<u32>>()
    };
    let rows = free();
    assert!(rows.len() == 1_998 && !rows.contains(&900), "{rows:?}");
    // Nothing of that was carried over: the first look sees it.
    sweep(&new.maps, ticks(), None, limits::HALF_CLOSED).unwrap();
    assert_eq!(free(), [900]);
}

fn socket(port: u16) -> SocketConnection {
    SocketConnection { protocol: TCP.into(), endpoint_port: port, since: ticks(), ..SocketConnection::CLOSED }
}

/// An entry of a connection by its client's port, and what its key is.
fn entry(port: u16, flags: u16, to: u32) -> (FlowKey, Flow) {
    let (source, destination) = (Address::v4(1), Address::v4(2));
    let key = FlowKey {
        source,
        destination,
        source_port: port,
        destination_port: 80,
        protocol: TCP,
        hook: FlowKey::OUT,
        reserved: 0,
    };
    let (address, backend) = (Address::v4(to), 5 | Flow::COUNTED);
    (key, Flow { address, port: 8080, flags, seen: ticks(), device: 0, backend, sender: 0, reserved: 0 })
}

#[test]
fn before_anybody_uses_them_our_maps_become_what_the_old_ones_are() {
    let mounted = Mounted::new();
    let (old, new) = two(&mounted);
    let open = Flow::FORWARD | Flow::SEEN;
    old.maps.flows.put(&[entry(1, open, 3), entry(2, open, 3), entry(3, Flow::FORWARD | Flow::PENDING, 1)]).unwrap();
    old.maps.socket_connections.put(&[(1, socket(1)), (2, socket(2))]).unwrap();
    let carry = |since| {
        let carried = carry_packets(old.folder.maps(), &new.maps, since, Way::Mirror).unwrap();
        carried + carry_sockets(old.folder.maps(), &new.maps, since, Way::Mirror).unwrap()
    };
    let since = ticks() - 1;
    assert_eq!(carry(0), 5);
    // One is reset, one goes, one is masqueraded; a socket is closed, and one connects to something else.
    old.maps.flows.put(&[entry(1, open | Flow::RST, 3), entry(3, Flow::FORWARD, 9)]).unwrap();
    old.maps.flows.delete(&[entry(2, 0, 0).0]).unwrap();
    // Noted meanwhile for a connection that stays with connection tracking.
    let (key, flow) = entry(4, Flow::SEEN, 0);
    let (address, port) = (key.destination, key.destination_port);
    let noted = (key, Flow { address, port, backend: 0, ..flow });
    new.maps.flows.put(&[noted]).unwrap();
    old.maps.socket_connections.delete(&[1]).unwrap();
    old.maps.socket_connections.put(&[(2, socket(3))]).unwrap();
    carry(since);
    let sorted = |maps: &Maps| {
        let (mut flows, mut sockets) = (maps.flows.rows().unwrap(), maps.socket_connections.rows().unwrap());
        flows.sort_by_key(|(key, _)| *key);
        sockets.sort_by_key(|(cookie, _)| *cookie);
        (flows, sockets)
    };
    assert_eq!(new.maps.flows.take(&key).unwrap(), Some(noted.1));
    assert_eq!(sorted(&new.maps), sorted(&old.maps));
}

#[test]
fn what_the_old_programs_saw_last_comes_to_what_ours_have_seen() {
    let mounted = Mounted::new();
    let (old, new) = two(&mounted);
    let (open, pending) = (Flow::FORWARD | Flow::SEEN, Flow::FORWARD | Flow::PENDING);
    let at = |(key, flow): (FlowKey, Flow), seen| (key, Flow { seen, ..flow });
    let ended = |(key, flow): (FlowKey, Flow)| (key, Flow { backend: flow.backend_row(), ..flow });
    let now = ticks();
    let ours = [
        at(entry(1, Flow::FORWARD | Flow::KNOWN, 3), now - 5),
        at(entry(2, open | Flow::FIN, 3), now),
        entry(3, pending, 1),
        entry(4, open, 3),
    ];
    let theirs = [
        at(ended(entry(1, open | Flow::RST, 3)), now - 1),
        at(entry(2, open, 3), now - 9),
        entry(3, open, 9),
        entry(4, open | Flow::FIN, 4),
        entry(5, open, 3),
    ];
    let wanted = [
        at(ended(entry(1, open | Flow::KNOWN | Flow::RST, 3)), now - 1),
        ours[1],
        theirs[2],
        // Another connection.
        ours[3],
        theirs[4],
    ];
    let all: Vec<_> = ours.into_iter().collect();
    new.maps.flows.put(&all).unwrap();
    old.maps.flows.put(&theirs).unwrap();
    carry_packets(old.folder.maps(), &new.maps, now - 20, Way::Merge).unwrap();
    let mut rows = new.maps.flows.rows().unwrap();
    rows.sort_by_key(|(key, _)| *key);
    assert_eq!(rows, wanted);
}

#[test]
fn sockets_that_are_closed_while_programs_change_do_not_come_back() {
    let mounted = Mounted::new();
    let (old, new) = two(&mounted);
    let (theirs, ours) = (&old.maps.socket_connections, &new.maps.socket_connections);
    theirs.put(&[1, 2, 3, 4].map(|cookie| (cookie, socket(1)))).unwrap();
    let since = ticks() - 1;
    carry_sockets(old.folder.maps(), &new.maps, 0, Way::Mirror).unwrap();
    let copied = ours.rows().unwrap();
    new.maps.set_moving(true).unwrap();
    // The old program closes 1, and has 5 connect; ours closes 2 and 5, and has 3 connect to something else.
    theirs.delete(&[1, 3]).unwrap();
    theirs.put(&[(5, socket(1))]).unwrap();
    ours.put(&[(2, SocketConnection::CLOSED), (3, socket(2)), (5, SocketConnection::CLOSED)]).unwrap();
    carry_sockets(old.folder.maps(), &new.maps, since, Way::Merge).unwrap();
    assert_eq!(delete_closed(old.folder.maps(), &new.maps, &copied).unwrap(), 1);
    // As the next start does where this one was killed before.
    new.maps.end_broken_move().unwrap();
    let mut left = ours.rows().unwrap();
    left.sort_by_key(|(cookie, _)| *cookie);
    assert_eq!(left, [(3, socket(2)), (4, socket(1))]);
    assert!(!new.maps.is_moving().unwrap());
}
