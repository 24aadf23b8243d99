//! ICMP errors about translated packets: which flow they belong to.

use kubeferry_ebpf_common::Flow;
use kubeferry_ebpf_common::packet::{Unreadable, icmp};
use kubeferry_ebpf_common::stats::Counter;

use crate::connection::find;
use crate::skb::Skb;
use crate::stats::count;
use crate::work::Work;

/// Translates the error in `work` at a hook. The flow that it belongs to, if any.
#[inline(always)]
pub fn translate(skb: &Skb, work: &mut Work, hook: u8) -> Result<Option<&'static Flow>, Unreadable> {
    icmp::read_quote(skb, &work.packet, hook, &mut work.quoted, &mut work.headers, &mut work.key)?;
    let Some(flow) = find(&work.key) else { return Ok(None) };
    if flow.flags & (Flow::PENDING | Flow::KEEPS) == 0 {
        icmp::rewrite(skb, &work.packet, &work.quoted, hook, flow)?;
        count(Counter::IcmpError);
    }
    Ok(Some(flow))
}
