//! Laws of the way from events to rows, tried with generated histories: the maps in memory see every write, and a packet
//! looks at them after each.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use proptest::prelude::*;

pub(super) use maps::{Maps, Write};

use super::diff::{InForce, Room, Writes};
use super::following::Following;
use super::rows::{Fixed, key_of};
use crate::backend::nftables::laws::cluster::{event, history, settings};
use crate::desired::node_view::NodeView;
use crate::desired::target::Frontend;
use crate::desired::trace::Flow;
use crate::desired::{Desired, Touched};
use crate::settings::{DatapathSettings, SocketLb};
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::{Family, Protocol};

mod maps;
mod moments;

const FIXED: Fixed = Fixed {
    host_netns: 1,
    masquerade_ports: (16_384, 29_999),
    socket_lb: SocketLb::Auto,
    established_elsewhere: false,
};
const ROOMY: Room =
    Room { frontends: 1_000, slots: 1_000, addresses: 1_000, source_ranges: 1_000, members: 1_000, backends: 1_000 };
const TIGHT: Room = Room { frontends: 6, slots: 7, addresses: 1_000, source_ranges: 3, members: 5, backends: 6 };

/// The stages from events to maps.
struct World {
    settings: DatapathSettings,
    held: BTreeSet<IpAddr>,
    state: State,
    desired: Desired,
    following: Following,
    maps: Maps,
    now: u64,
}

impl World {
    fn new(settings: DatapathSettings, room: Room) -> Self {
        let held = ["192.168.0.2", "192.168.0.3", "fd00:1::2"].map(|ip| ip.parse().unwrap()).into();
        let desired = Desired::new(NodeView::new("here".into(), &settings, None, &held));
        let mut world = Self {
            settings,
            held,
            state: State::default(),
            following: Following::new(InForce::new(&room), room, FIXED),
            desired,
            maps: Maps::new(&room),
            now: 0,
        };
        let writes = world.following.full(&world.desired, 0);
        world.maps.write(&writes);
        world.following.in_force.written(0);
        world
    }

    fn follow(&mut self, event: Option<Event>) -> Touched {
        event.into_iter().for_each(|event| self.state.apply(event));
        let changes = self.state.take_changes();
        let view = NodeView::new("here".into(), &self.settings, self.state.node(), &self.held);
        self.desired.update(&self.state, &changes, view)
    }

    /// The writes that follow one event; to be made.
    fn writes(&mut self, event: Option<Event>) -> Writes {
        let touched = self.follow(event);
        self.now += 2;
        self.following.in_force.release(self.now, |_| true);
        self.following.incremental(&self.desired, &touched, self.now)
    }

    /// Follows one event. What a program may meet after each write is what the laws of moments say.
    fn step(&mut self, event: Option<Event>) -> usize {
        let writes = self.writes(event);
        let broken = moments::broken(&self.maps, &writes, &writes.phases());
        assert!(broken.is_empty(), "{}", broken.join("\n"));
        self.made(&writes);
        writes.len()
    }

    /// These writes are made.
    fn made(&mut self, writes: &Writes) {
        self.maps.write(writes);
        self.following.in_force.written(self.now);
    }

    /// The maps and what is known of them agree.
    fn assert_known(&self) {
        let known = &self.following.in_force;
        assert_eq!(self.maps.frontends, known.frontends);
        assert_eq!(self.maps.addresses, known.addresses);
        assert_eq!(self.maps.config, known.config);
        let members = known.services.values().flat_map(|service| service.members.iter().map(|(k, m)| (*k, *m)));
        assert_eq!(self.maps.members, members.collect());
        let ranges = known.services.values().flat_map(|service| service.ranges.iter().copied());
        assert_eq!(self.maps.ranges, ranges.collect());
        assert!(known.services.values().all(|service| !service.frontends.is_empty()));
    }

    /// Packets from everywhere to everything end as the model says.
    fn assert_answers(&self) {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut to: BTreeSet<(Protocol, SocketAddr)> = BTreeSet::new();
        for frontend in self.desired.frontends() {
            match frontend {
                Frontend::Address { ip, protocol, port } => {
                    to.extend([port, 1].map(|port| (protocol, SocketAddr::new(ip, port))));
                }
                Frontend::NodePort { family, protocol, port } => {
                    let held = self.desired.node().addresses.iter().filter(|ip| Family::of(**ip) == family);
                    to.extend(held.map(|ip| (protocol, SocketAddr::new(*ip, port))));
                }
            }
        }
        to.insert((Protocol::Tcp, "10.96.7.7:80".parse().unwrap()));
        let sources = ["10.244.0.1", "192.168.0.2", "192.168.7.7", "8.8.8.8", "10.200.0.1", "203.0.113.1"];
        let sources6 = ["fd00:244::1", "fd00:1::2", "2001:db8::1", "fd00:7::7"];
        for (protocol, to) in to {
            for from in if to.is_ipv4() { &sources[..] } else { &sources6[..] } {
                for iif in [None, Some("cbr0".to_owned())] {
                    let flow = Flow { from: ip(from), from_port: None, iif, protocol, to };
                    let (model, maps) = (self.desired.trace(&flow).outcome, self.maps.outcome(&flow));
                    assert_eq!(maps, model, "{flow:?}");
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn packets_end_as_the_model_says(settings in settings(), history in history()) {
        let mut world = World::new(settings, ROOMY);
        for event in history {
            world.step(Some(event));
            world.assert_known();
            prop_assert!(world.following.refused.is_empty());
            world.assert_answers();
        }
        prop_assert_eq!(world.step(None), 0, "the same once more is nothing");
        let full = world.following.full(&world.desired, world.now);
        prop_assert!(full.is_empty(), "following equals looking at everything: {:?}", full);
    }

    #[test]
    fn what_does_not_fit_is_left_out_whole_and_comes_back(settings in settings(), history in history(), last in event()) {
        let mut world = World::new(settings, TIGHT);
        for event in history {
            world.step(Some(event));
            world.assert_known();
            prop_assert!(world.maps.frontends.len() <= TIGHT.frontends);
            prop_assert!(world.maps.members.len() <= TIGHT.members && world.maps.ranges.len() <= TIGHT.source_ranges);
            // Of a service port either all frontends are in force or none.
            for frontend in world.desired.frontends() {
                let key = key_of(&frontend);
                let left_out = world.following.refused.contains_key(&key);
                prop_assert_eq!(world.maps.frontends.contains_key(&key), !left_out, "{}", frontend);
            }
        }
        let everything: Vec<_> = world.state.services().keys().cloned().collect();
        for name in everything {
            world.step(Some(Event::ServiceGone(name)));
        }
        prop_assert!(world.following.refused.is_empty() && world.maps.frontends.is_empty());
        world.step(Some(last));
        world.assert_known();
        world.following.in_force.release(world.now + 1, |_| true);
        let used: usize = world.following.in_force.services.values().flat_map(|s| &s.lists).map(|(_, l)| l.len()).sum();
        prop_assert_eq!(world.following.in_force.slots.used() as usize, used, "no slot is lost");
    }

    #[test]
    fn who_ends_between_two_writes_is_followed_by_another(settings in settings(), history in history(), last in event(), at in any::<prop::sample::Index>()) {
        let mut world = World::new(settings, ROOMY);
        for event in history {
            world.step(Some(event));
        }
        let touched = world.follow(Some(last));
        let writes = world.following.incremental(&world.desired, &touched, world.now);
        let all: Vec<Write> = writes.phases().iter().flat_map(Write::of).collect();
        all.iter().take(at.index(all.len() + 1)).for_each(|write| world.maps.make(*write));
        world.following = Following::new(world.maps.found().in_force(&ROOMY, world.now), ROOMY, FIXED);
        let writes = world.following.full(&world.desired, world.now);
        world.maps.write(&writes);
        world.following.in_force.written(world.now);
        world.assert_known();
        world.assert_answers();
    }

    #[test]
    fn an_address_that_comes_or_goes_is_followed(settings in settings(), history in history(), hold in any::<bool>()) {
        let mut world = World::new(settings, ROOMY);
        for event in history {
            world.step(Some(event));
        }
        // One of the endpoints' addresses.
        for ip in ["10.244.1.1", "192.168.0.2"] {
            let ip: IpAddr = ip.parse().unwrap();
            if hold { world.held.insert(ip) } else { world.held.remove(&ip) };
            world.step(None);
        }
        world.assert_known();
        let full = world.following.full(&world.desired, world.now);
        prop_assert!(full.is_empty(), "{:?}", full);
        world.assert_answers();
    }
}
