//! ICMP errors about translated packets: "fragmentation needed" above all, without which large packets vanish. An error
//! quotes the packet that it is about; it belongs to the flow in the other direction, and goes the way that flow goes.

use kubeferry_ebpf_common::stats::Counter;
use kubeferry_ebpf_common::{Flow, FlowKey, ICMPV6};

use crate::connection::find;
use crate::packet::{Buffer, Unreadable, read_v4, read_v6};
use crate::rewrite::{End, replace_words, write_address};
use crate::skb::Skb;
use crate::stats::count;
use crate::work::Work;

/// Bytes of an ICMP error before what it quotes.
const HEADER: u32 = 8;

/// Translates the error in `work` at a hook. The flow that it belongs to, if any.
#[inline(always)]
pub fn translate(skb: &Skb, work: &mut Work, hook: u8) -> Result<Option<&'static Flow>, Unreadable> {
    read_quote(skb, work, hook)?;
    rewrite(skb, work, hook)
}

/// Reads the quoted packet into `work.quoted`, and its key turned round into `work.key`.
#[inline(always)]
fn read_quote(skb: &Skb, work: &mut Work, hook: u8) -> Result<(), Unreadable> {
    let at = work.packet.l4 + HEADER;
    match work.packet.v4 {
        true => read_v4(skb, at, &mut work.quoted, &mut work.headers)?,
        false => read_v6(skb, at, &mut work.quoted, &mut work.headers)?,
    }
    let quoted = &mut work.quoted.key;
    quoted.reserved = 0;
    quoted.source_port = 0;
    quoted.destination_port = 0;
    if !work.quoted.later && work.quoted.has_ports() {
        // No more of the transport header needs to be there.
        let header = &mut work.headers.tcp;
        skb.load_first(work.quoted.l4, header, 4)?;
        work.quoted.key.source_port = header.source;
        work.quoted.key.destination_port = header.destination;
    }
    let quoted = &work.quoted.key;
    work.key.source = quoted.destination;
    work.key.destination = quoted.source;
    work.key.source_port = quoted.destination_port;
    work.key.destination_port = quoted.source_port;
    work.key.protocol = quoted.protocol;
    work.key.hook = hook;
    work.key.reserved = 0;
    Ok(())
}

/// Where the flow's packets get another destination, the error gets it too, and the quoted packet as its source; where
/// they get another source, the error gets it too, and the quoted packet as its destination. An error of a router on the way
/// is no exception, as with the kernel's own NAT: its sender's address may mean nothing where the error goes.
#[inline(always)]
fn rewrite(skb: &Skb, work: &mut Work, hook: u8) -> Result<Option<&'static Flow>, Unreadable> {
    let Some(flow) = find(&work.key) else { return Ok(None) };
    if flow.flags & (Flow::PENDING | Flow::KEEPS) != 0 {
        return Ok(Some(flow));
    }
    let (v4, l3, sum_at) = (work.packet.v4, work.packet.l3, work.packet.l4 + 2);
    let (inner, outer) =
        if hook == FlowKey::IN { (End::Source, End::Destination) } else { (End::Destination, End::Source) };
    let (quoted, port, port_at) = match inner {
        End::Source => (&work.quoted.key.source, work.quoted.key.source_port, work.quoted.l4),
        End::Destination => (&work.quoted.key.destination, work.quoted.key.destination_port, work.quoted.l4 + 2),
    };
    let ended = match outer {
        End::Source => &work.packet.key.source,
        End::Destination => &work.packet.key.destination,
    };
    // The sum of an IPv4 header with its own checksum stays the same; IPv6 has none.
    write_address(skb, v4, work.quoted.l3, inner, quoted, &flow.address)?;
    if !v4 {
        replace_words(skb, sum_at, quoted, &flow.address, 0)?;
    }
    if work.quoted.has_ports() && !work.quoted.later && port != flow.port {
        skb.replace_sum(sum_at, port.into(), flow.port.into(), 2)?;
        skb.store(port_at, &flow.port)?;
    }
    if work.quoted.has_ports() && !work.quoted.later && flow.flags & Flow::ALIAS != 0 {
        let (client, client_at) = match inner {
            End::Source => (work.quoted.key.destination_port, work.quoted.l4 + 2),
            End::Destination => (work.quoted.key.source_port, work.quoted.l4),
        };
        let alias = flow.device as u16;
        skb.replace_sum(sum_at, client.into(), alias.into(), 2)?;
        skb.store(client_at, &alias)?;
    }
    if work.packet.key.protocol == ICMPV6 {
        replace_words(skb, sum_at, ended, &flow.address, aya_ebpf::bindings::BPF_F_PSEUDO_HDR as u32)?;
    }
    write_address(skb, v4, l3, outer, ended, &flow.address)?;
    count(Counter::IcmpError);
    Ok(Some(flow))
}
