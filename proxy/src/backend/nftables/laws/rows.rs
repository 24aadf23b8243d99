//! Rows say the same as typed values, as bytes and as text.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;

use crate::backend::nftables::draw::Turn;
use crate::backend::nftables::fake::parse_row;
use crate::backend::nftables::maps::{elements, intervals, map_of, row, row_text};
use crate::backend::nftables::netlink::Element;
use crate::backend::nftables::rows::{Key, Part, Value};
use crate::desired::target::Frontend;
use crate::state::objects::{Family, Protocol};

fn ip(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => any::<[u8; 4]>().prop_map(IpAddr::from).boxed(),
        Family::V6 => any::<[u8; 16]>().prop_map(IpAddr::from).boxed(),
    }
}

fn net(family: Family) -> impl Strategy<Value = IpNet> {
    let most = if family == Family::V4 { 32 } else { 128u8 };
    (ip(family), 0..=most).prop_map(|(ip, length)| IpNet::new(ip, length).unwrap().trunc())
}

fn row_of(family: Family) -> impl Strategy<Value = (Key, Value)> {
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let frontend = (ip(family), protocol.clone(), 1..=u16::MAX);
    let address = frontend.clone().prop_map(|(ip, protocol, port)| Frontend::Address { ip, protocol, port });
    let node_port = frontend.prop_map(move |(_, protocol, port)| Frontend::NodePort { family, protocol, port });
    let any_frontend = prop_oneof![address.clone(), node_port].boxed();
    let chain = || "[a-z][a-z0-9-]{0,40}".prop_map(|name| Value::Chain(Arc::from(name)));
    let endpoint = (ip(family), any::<u16>()).prop_map(|(ip, port)| Value::Endpoint(SocketAddr::new(ip, port)));
    let set = |key: BoxedStrategy<Key>| key.prop_map(|key| (key, Value::Present)).boxed();
    prop_oneof![
        (any_frontend.clone(), select(vec![Part::Verdict, Part::Remember]), chain())
            .prop_map(|(frontend, part, value)| (Key::Of(frontend, part), value)),
        (address.clone(), chain()).prop_map(|(frontend, value)| (Key::Of(frontend, Part::Ranged), value)),
        (any_frontend, any::<u32>(), endpoint.clone())
            .prop_map(|(frontend, slot, value)| (Key::Of(frontend, Part::Endpoint(slot)), value)),
        set((address, net(family)).prop_map(|(frontend, net)| Key::Of(frontend, Part::SourceRange(net))).boxed()),
        set(ip(family).prop_map(Key::Hairpin).boxed()),
        set(ip(family).prop_map(Key::ClusterIp).boxed()),
        set(ip(family).prop_map(Key::NodePortAddress).boxed()),
        ((protocol, any::<u64>(), any::<u32>()), endpoint).prop_map(move |((protocol, identity, slot), value)| {
            (Key::Turn(Turn { family, protocol, identity }, slot), value)
        }),
    ]
}

fn any_row() -> impl Strategy<Value = (Key, Value)> {
    select(Family::BOTH.to_vec()).prop_flat_map(row_of)
}

fn distinct_nets() -> impl Strategy<Value = (Family, Vec<IpNet>)> {
    select(Family::BOTH.to_vec()).prop_flat_map(|family| {
        // Short prefixes of few addresses, so that neighbours come up.
        let near = (0..=255u8, 4..=8u8).prop_map(move |(first, length)| {
            let ip = match family {
                Family::V4 => IpAddr::from([first, 0, 0, 0]),
                Family::V6 => IpAddr::from([first, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            };
            IpNet::new(ip, length).unwrap().trunc()
        });
        let nets = prop::collection::vec(prop_oneof![near, net(family)], 0..8);
        nets.prop_map(move |nets| (family, IpNet::aggregate(&nets)))
    })
}

proptest! {
    #[test]
    fn rows_come_back_from_bytes((key, value) in any_row()) {
        let written = elements(&key, &value);
        prop_assert_eq!(written.len(), 1);
        prop_assert_eq!(row(map_of(&key), &written[0]), Some((key, value)));
    }

    #[test]
    fn rows_come_back_from_text((key, value) in any_row()) {
        prop_assert_eq!(parse_row(map_of(&key), &row_text(&key, &value)), Some((key, value)));
    }

    #[test]
    fn intervals_come_back_from_bytes_in_any_order((family, nets) in distinct_nets(), reverse in any::<bool>()) {
        let mut all: Vec<Element> =
            nets.iter().flat_map(|net| elements(&Key::ServiceCidr(*net), &Value::Present)).collect();
        if reverse {
            all.reverse();
        }
        prop_assert_eq!(intervals(family, &all), (nets.clone(), 0));
        // nft leaves an end out where the next interval begins, and marks the lowest address where none begins there.
        let starts: Vec<_> = all.iter().filter(|element| !element.interval_end).map(|element| element.key.clone()).collect();
        all.retain(|element| !element.interval_end || !starts.contains(&element.key));
        let lowest = vec![0; if family == Family::V4 { 4 } else { 16 }];
        if !starts.contains(&lowest) {
            all.push(Element { interval_end: true, ..Element::new(lowest, crate::backend::nftables::netlink::Data::None) });
        }
        prop_assert_eq!(intervals(family, &all), (nets, 0));
    }
}

#[test]
fn an_interval_that_is_no_prefix_is_strange() {
    let key = |last: u8| vec![10, 0, 0, last];
    let found = Element::interval(key(1), &key(5));
    assert_eq!(intervals(Family::V4, &found), (Vec::new(), 1));
}
