//! What objects come to, all the way to the rows of both datapaths, and what has to hold of those whatever the objects say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::backend::nftables::maps::{elements, intervals, map_of, row, row_text};
use crate::backend::nftables::netlink::Element;
use crate::backend::nftables::rows::{Key, Rows, Wanted};
use crate::backend::nftables::text;
use crate::desired::Desired;
use crate::desired::node_view::NodeView;
use crate::settings::DatapathSettings;
use crate::state::State;
use crate::state::event::Event;
use crate::state::objects::Family;

/// Our Node's name.
pub const NODE: &str = "worker-1";
/// Objects of one case, at most: more show nothing new and take their time.
const MOST: usize = 64;

/// Follows events to rows, and looks at those.
pub fn follow(mut events: Vec<Event>) {
    events.truncate(MOST);
    let settings = DatapathSettings::default();
    let held: BTreeSet<IpAddr> = ["192.168.0.2", "fd00:1::2"].iter().flat_map(|ip| ip.parse()).collect();
    let view = |state: &State| NodeView::new(NODE.into(), &settings, state.node(), &held);
    let mut state = State::default();
    let mut desired = Desired::new(view(&state));
    for event in &events {
        state.apply(event.clone());
        let changes = state.take_changes();
        desired.update(&state, &changes, view(&state));
    }
    let wanted = Wanted::all(&desired, &Rows::new());
    let at_once = Wanted::all(&Desired::of(&state, view(&state)), &Rows::new());
    assert_eq!(wanted.rows, at_once.rows, "object after object is the same as all at once");
    rows(&wanted);
    let whole = text::whole(&wanted, desired.node());
    assert_eq!(whole.matches("\ntable ").count() + usize::from(whole.starts_with("table ")), 1, "{whole}");
    #[cfg(feature = "ebpf")]
    bpf(&desired);
    if are_distinct(&events) {
        let mut state = State::default();
        events.into_iter().rev().for_each(|event| state.apply(event));
        let backwards = Wanted::all(&Desired::of(&state, view(&state)), &Rows::new());
        assert_eq!(wanted.rows, backwards.rows, "the order of objects has no meaning");
    }
}

/// Whether no two events are of one object.
fn are_distinct(events: &[Event]) -> bool {
    let name = |event: &Event| match event {
        Event::Service(service) => Some(format!("Service {}", service.name)),
        Event::Slice(slice) => Some(format!("EndpointSlice {}", slice.name)),
        Event::Node(_) => Some("Node".to_owned()),
        Event::ServiceCidr(cidr) => Some(format!("ServiceCIDR {}", cidr.name)),
        _ => None,
    };
    let names: BTreeSet<Option<String>> = events.iter().map(name).collect();
    names.len() == events.len() && !names.contains(&None)
}

/// Rows say the same as values, as bytes and as text, and their text is words of nft's language and nothing else.
pub fn rows(wanted: &Wanted) {
    let mut cidrs: BTreeMap<Family, (Vec<Element>, Vec<ipnet::IpNet>)> = BTreeMap::new();
    for (key, value) in &wanted.rows {
        let text = row_text(key, value);
        let plain = |c: char| c.is_ascii_alphanumeric() || " .:/-_".contains(c);
        assert!(text.chars().all(plain), "{text:?}");
        let written = elements(key, value);
        match key {
            Key::ServiceCidr(net) => {
                let (elements, nets) = cidrs.entry(Family::of(net.addr())).or_default();
                elements.extend(written);
                nets.push(*net);
            }
            _ => {
                assert_eq!(written.len(), 1, "{text}");
                assert_eq!(row(map_of(key), &written[0]), Some((*key, value.clone())), "{text}");
            }
        }
    }
    for (family, (elements, mut nets)) in cidrs {
        nets.sort();
        let (mut found, strange) = intervals(family, &elements);
        found.sort();
        assert_eq!((found, strange), (nets, 0));
    }
}

/// The maps of the eBPF datapath: what is in force is what was wanted, and the same once more is nothing.
#[cfg(feature = "ebpf")]
fn bpf(desired: &Desired) {
    use crate::backend::ebpf::diff::{InForce, Room};
    use crate::backend::ebpf::following::Following;
    use crate::backend::ebpf::rows::Fixed;
    use crate::settings::{MapSizes, SocketLb};
    let fixed = Fixed {
        host_netns: 1,
        masquerade_ports: (16_384, 29_999),
        socket_lb: SocketLb::Auto,
        established_elsewhere: false,
    };
    let room = Room::of(&MapSizes::default());
    let mut following = Following::new(InForce::new(&room), room, fixed);
    following.full(desired, 0);
    assert!(following.full(desired, 1).is_empty(), "the same once more is nothing");
    let in_force = &following.in_force;
    let mut slots = BTreeSet::new();
    for (key, frontend) in &in_force.frontends {
        let service = &in_force.services[&frontend.service];
        assert!(service.frontends.contains(key));
        for (first, list) in &service.lists {
            assert!(*first as usize + list.len() <= room.slots);
            slots.extend((*first..).zip(list).map(|(at, slot)| (at, *slot)));
        }
    }
    let places: BTreeSet<u32> = slots.iter().map(|(at, _)| *at).collect();
    assert_eq!(places.len(), slots.len(), "no place has two endpoints");
}
