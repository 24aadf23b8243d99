//! Entries of connection tracking as ctnetlink has them.

use std::net::{IpAddr, SocketAddr};

use super::accounting::{Tracked, Way};
use super::stale::{Entry, Tuple};
use crate::backend::nftables::netlink::{
    Error,
    attribute::{Writer, attributes, find, value},
};
use crate::state::objects::Protocol;

// include/uapi/linux/netfilter/nfnetlink_conntrack.h
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
// enum tcp_conntrack
const TCP_TIME_WAIT: u8 = 7;
const TCP_CLOSE: u8 = 8;
// include/uapi/linux/netfilter/nf_conntrack_common.h
const IPS_SEEN_REPLY: u32 = 1 << 1;
const CTA_COUNTERS_ORIG: u16 = 9;
const CTA_COUNTERS_REPLY: u16 = 10;
const CTA_COUNTERS_PACKETS: u16 = 1;
const CTA_COUNTERS_BYTES: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_STATUS_MASK: u16 = 26;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_REPLY_FLAGS: u16 = 2;
// enum ctnetlink_filter flags of net/netfilter/nf_conntrack_netlink.c: compare the protocol alone.
const CTA_FILTER_F_CTA_PROTO_NUM: u32 = 1 << 3;

/// Entries of a protocol.
pub(super) fn write_filter(writer: &mut Writer, of: u8) {
    let tuple = writer.nest(CTA_TUPLE_ORIG);
    let protocol = writer.nest(CTA_TUPLE_PROTO);
    writer.value(CTA_PROTO_NUM, &[of]);
    writer.end(protocol);
    writer.end(tuple);
    let filter = writer.nest(CTA_FILTER);
    writer.value(CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_CTA_PROTO_NUM.to_ne_bytes());
    writer.value(CTA_FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    writer.end(filter);
}

/// Only those of them that nobody has answered. The kernel filters by that since 5.15, and gives all before.
pub(super) fn write_unanswered(writer: &mut Writer, of: u8) {
    write_filter(writer, of);
    writer.value(CTA_STATUS, &0u32.to_be_bytes());
    writer.value(CTA_STATUS_MASK, &IPS_SEEN_REPLY.to_be_bytes());
}

/// A connection with what it carried, if it is translated.
pub(super) fn read_tracked(body: &[u8]) -> Result<Option<Tracked>, Error> {
    let (mut tuples, mut id, mut over, mut packets, mut bytes) = ([None, None], 0, false, 0, 0);
    let protocol =
        find(body, CTA_TUPLE_ORIG)?.and_then(|tuple| find(tuple, CTA_TUPLE_PROTO).transpose()).transpose()?;
    let Some(&[number]) = protocol.and_then(|protocol| find(protocol, CTA_PROTO_NUM).transpose()).transpose()? else {
        return Ok(None);
    };
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let Some(protocol) = protocols.into_iter().find(|protocol| protocol.number() == number) else { return Ok(None) };
    for attribute in attributes(body) {
        let attribute = attribute?;
        let inner = value(&attribute);
        match attribute.kind() {
            CTA_TUPLE_ORIG => tuples[0] = read_tuple(inner, number)?,
            CTA_TUPLE_REPLY => tuples[1] = read_tuple(inner, number)?,
            CTA_ID => id = inner.try_into().map(u32::from_be_bytes).unwrap_or_default(),
            CTA_PROTOINFO => {
                let state =
                    find(inner, CTA_PROTOINFO_TCP)?.map(|tcp| find(tcp, CTA_PROTOINFO_TCP_STATE)).transpose()?;
                over = state.flatten().is_some_and(|state| matches!(*state, [TCP_TIME_WAIT | TCP_CLOSE]));
            }
            CTA_COUNTERS_ORIG | CTA_COUNTERS_REPLY => {
                let number = |kind| -> Result<u64, Error> {
                    Ok(find(inner, kind)?.and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes))
                };
                packets = u64::saturating_add(packets, number(CTA_COUNTERS_PACKETS)?);
                bytes = u64::saturating_add(bytes, number(CTA_COUNTERS_BYTES)?);
            }
            _ => {}
        }
    }
    Ok(match tuples {
        [Some(original), Some(reply)] if original.destination != reply.source => {
            let way = Way { protocol, to: original.destination, endpoint: reply.source };
            Some(Tracked { id, way, over, packets, bytes })
        }
        _ => None,
    })
}

/// An entry, if it is of this protocol.
pub(super) fn read(body: &[u8], protocol: u8) -> Result<Option<Entry>, Error> {
    let (mut tuples, mut answered) = ([None, None], false);
    let mut identity = Writer::default();
    for attribute in attributes(body) {
        let attribute = attribute?;
        match attribute.kind() {
            CTA_TUPLE_ORIG => tuples[0] = read_tuple(value(&attribute), protocol)?,
            CTA_TUPLE_REPLY => tuples[1] = read_tuple(value(&attribute), protocol)?,
            CTA_ID | CTA_ZONE => {}
            CTA_STATUS => {
                let status = value(&attribute).try_into().map(u32::from_be_bytes);
                answered = status.is_ok_and(|status| status & IPS_SEEN_REPLY != 0);
                continue;
            }
            _ => continue,
        }
        let nested = if attribute.nested_flag() { netlink_packet_core::NLA_F_NESTED } else { 0 };
        identity.value(attribute.kind() | nested, value(&attribute));
    }
    Ok(match tuples {
        [Some(original), Some(reply)] => Some(Entry { original, reply, answered, identity: identity.into_bytes() }),
        _ => None,
    })
}

/// A tuple, if it is of this protocol.
fn read_tuple(bytes: &[u8], of: u8) -> Result<Option<Tuple>, Error> {
    let (Some(ip), Some(protocol)) = (find(bytes, CTA_TUPLE_IP)?, find(bytes, CTA_TUPLE_PROTO)?) else {
        return Ok(None);
    };
    if find(protocol, CTA_PROTO_NUM)? != Some(&[of]) {
        return Ok(None);
    }
    let address = |v4, v6| -> Result<Option<IpAddr>, Error> {
        if let Some(bytes) = find(ip, v4)? {
            return Ok(<[u8; 4]>::try_from(bytes).ok().map(IpAddr::from));
        }
        Ok(find(ip, v6)?.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok()).map(IpAddr::from))
    };
    let port = |kind| -> Result<Option<u16>, Error> {
        Ok(find(protocol, kind)?.and_then(|bytes| <[u8; 2]>::try_from(bytes).ok()).map(u16::from_be_bytes))
    };
    let source = address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?.zip(port(CTA_PROTO_SRC_PORT)?);
    let destination = address(CTA_IP_V4_DST, CTA_IP_V6_DST)?.zip(port(CTA_PROTO_DST_PORT)?);
    Ok(source.zip(destination).map(|(source, destination)| Tuple {
        source: SocketAddr::from(source),
        destination: SocketAddr::from(destination),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_beyond_every_number_are_the_greatest_one() {
        let mut writer = Writer::default();
        let tuple = |writer: &mut Writer, kind: u16, from: [u8; 4], to: [u8; 4]| {
            let tuple = writer.nest(kind);
            let ip = writer.nest(CTA_TUPLE_IP);
            writer.value(CTA_IP_V4_SRC, &from);
            writer.value(CTA_IP_V4_DST, &to);
            writer.end(ip);
            let protocol = writer.nest(CTA_TUPLE_PROTO);
            writer.value(CTA_PROTO_NUM, &[6]);
            writer.value(CTA_PROTO_SRC_PORT, &5000u16.to_be_bytes());
            writer.value(CTA_PROTO_DST_PORT, &80u16.to_be_bytes());
            writer.end(protocol);
            writer.end(tuple);
        };
        tuple(&mut writer, CTA_TUPLE_ORIG, [10, 244, 0, 1], [10, 96, 0, 1]);
        tuple(&mut writer, CTA_TUPLE_REPLY, [10, 244, 0, 9], [10, 244, 0, 1]);
        for (kind, packets) in [(CTA_COUNTERS_ORIG, u64::MAX), (CTA_COUNTERS_REPLY, 7)] {
            let counters = writer.nest(kind);
            writer.value(CTA_COUNTERS_PACKETS, &packets.to_be_bytes());
            writer.value(CTA_COUNTERS_BYTES, &(u64::MAX - 3).to_be_bytes());
            writer.end(counters);
        }
        let tracked = read_tracked(&writer.into_bytes()).unwrap().unwrap();
        assert_eq!((tracked.packets, tracked.bytes), (u64::MAX, u64::MAX));
    }
}
