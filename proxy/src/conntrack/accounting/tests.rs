use super::*;

fn way(to: &str) -> Way {
    Way { protocol: Protocol::Tcp, to: to.parse().unwrap(), endpoint: "10.244.1.1:8080".parse().unwrap() }
}

fn tracked(id: u32, packets: u64) -> Tracked {
    Tracked { id, way: way("10.96.0.10:80"), over: id == 3, packets, bytes: packets * 100 }
}

/// Of the frontend that [`tracked`] ones go to.
fn followed() -> Followed {
    let frontend = Frontend::Address { ip: "10.96.0.10".parse().unwrap(), protocol: Protocol::Tcp, port: 80 };
    Followed { ours: [frontend].into(), ..Followed::default() }
}

fn take(followed: &mut Followed) -> (u64, u64, u64) {
    let all = followed.take();
    let carried = all.values().next().copied().unwrap_or_default();
    assert_eq!((carried.ended_bytes, carried.bytes), (carried.ended_packets * 100, carried.packets * 100));
    (carried.ended_packets, carried.active, carried.packets)
}

#[test]
fn an_end_that_nobody_told_is_seen_in_the_next_list() {
    let mut followed = followed();
    followed.listed([tracked(1, 5), tracked(2, 7)].into_iter(), true);
    assert_eq!(take(&mut followed), (0, 2, 12));
    followed.end(tracked(1, 9));
    followed.listed([tracked(3, 1)].into_iter(), true);
    assert_eq!(take(&mut followed), (16, 0, 1), "9 as told, and 7 as they were");
    followed.listed(std::iter::empty(), false);
    assert_eq!(take(&mut followed), (0, 0, 1), "the list may lack it");
    followed.end(tracked(3, 4));
    assert_eq!(take(&mut followed), (4, 0, 0));
}

#[test]
fn sums_beyond_every_number_are_the_greatest_one() {
    let much = |id| Tracked { packets: u64::MAX, bytes: u64::MAX - 1, ..tracked(id, 0) };
    let mut followed = followed();
    followed.listed([much(1), much(2)].into_iter(), true);
    let carried = followed.take()[&way("10.96.0.10:80")];
    assert_eq!((carried.packets, carried.bytes), (u64::MAX, u64::MAX));
    followed.end(much(1));
    followed.end(much(2));
    let carried = followed.take()[&way("10.96.0.10:80")];
    assert_eq!((carried.ended_packets, carried.ended_bytes, carried.entries), (u64::MAX, u64::MAX, 0));
}

#[test]
fn what_is_not_ours_is_not_kept() {
    let mut followed = followed();
    for port in 1..=9 {
        let foreign = Tracked { way: way(&format!("10.96.0.11:{port}")), ..tracked(port, 5) };
        followed.end(foreign);
        followed.listed([foreign].into_iter(), true);
    }
    assert_eq!((followed.ended.len(), followed.live.len(), followed.uncounted), (0, 0, 0));
    // A node port is ours at any address; what was ours stays so until it ends.
    followed.ours.insert(Frontend::NodePort {
        family: crate::state::objects::Family::V4,
        protocol: Protocol::Tcp,
        port: 7,
    });
    let by_node_port = Tracked { way: way("10.96.0.11:7"), ..tracked(1, 5) };
    followed.listed([by_node_port].into_iter(), true);
    followed.ours.clear();
    followed.listed([by_node_port, tracked(2, 1)].into_iter(), true);
    followed.end(by_node_port);
    assert_eq!(take(&mut followed), (5, 0, 0));
}

#[test]
fn what_nobody_fetches_is_bounded_and_the_rest_is_counted() {
    let mut followed = followed();
    let ends = u32::try_from(MOST_WAYS).unwrap() + 10;
    for client in 0..ends {
        let endpoint = SocketAddr::new(std::net::Ipv4Addr::from(client).into(), 8080);
        followed.end(Tracked { way: Way { endpoint, ..way("10.96.0.10:80") }, ..tracked(client, 1) });
    }
    assert_eq!((followed.ended.len(), followed.uncounted), (MOST_WAYS, 10));
}

#[test]
fn what_has_another_owner_is_told_to_the_first_and_forgotten() {
    let mut followed = followed();
    followed.listed([tracked(1, 5), tracked(2, 7)].into_iter(), true);
    followed.end(tracked(2, 8));
    let all = followed.disown(&|way| way.to.port() == 80);
    let carried = all.values().next().unwrap();
    assert_eq!((carried.ended_packets, carried.packets, carried.active), (8, 5, 1));
    assert_eq!(take(&mut followed), (0, 0, 0));
    followed.listed([tracked(1, 6), tracked(4, 1)].into_iter(), true);
    assert_eq!(take(&mut followed), (0, 1, 1));
    followed.end(tracked(1, 9));
    assert_eq!((take(&mut followed), followed.disowned.len()), ((0, 1, 1), 0));
    followed.disown(&|_| true);
    followed.listed(std::iter::empty(), true);
    assert_eq!((take(&mut followed), followed.disowned.len()), ((0, 0, 0), 0), "its end was not told");
}

#[test]
fn a_count_that_somebody_had_begin_anew_goes_on() {
    let mut followed = followed();
    followed.listed([tracked(1, 5), tracked(2, 5)].into_iter(), true);
    followed.listed([tracked(1, 2), tracked(2, 6)].into_iter(), true);
    assert_eq!(take(&mut followed), (5, 2, 8));
    followed.end(tracked(1, 1));
    assert_eq!(take(&mut followed), (3, 1, 6));
}
