//! What the kernel tells of a packet's way through the rules (`NFT_MSG_TRACE`; `nft_trace_notify` of
//! net/netfilter/nf_tables_trace.c).

use crate::backend::nftables::netlink::Error;
use crate::backend::nftables::netlink::attribute::{find, frames, text, u32_be};
use crate::live::packet::Ends;
use crate::state::text::tame;

/// `NFT_NAME_MAXLEN`.
const LONGEST_NAME: usize = 256;

// include/uapi/linux/netfilter/nf_tables.h, nfnetlink.h
const NFT_MSG_TRACE: u16 = 10 << 8 | 17;
const NFTA_TRACE_TABLE: u16 = 1;
const NFTA_TRACE_CHAIN: u16 = 2;
const NFTA_TRACE_RULE_HANDLE: u16 = 3;
const NFTA_TRACE_TYPE: u16 = 4;
const NFTA_TRACE_VERDICT: u16 = 5;
const NFTA_TRACE_ID: u16 = 6;
const NFTA_TRACE_NETWORK_HEADER: u16 = 8;
const NFTA_TRACE_TRANSPORT_HEADER: u16 = 9;
const NFTA_TRACE_IIF: u16 = 10;
const NFTA_TRACE_OIF: u16 = 12;
const NFTA_TRACE_POLICY: u16 = 16;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFT_TRACETYPE_POLICY: u32 = 1;
const NFT_TRACETYPE_RULE: u32 = 3;

/// What a rule or a chain's policy said of a packet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The packet is thrown away.
    Drop,
    /// The hook is over for it.
    Accept,
    /// The next rule.
    Continue,
    /// Back to the chain that it came from.
    Return,
    /// To a chain and back.
    Jump(String),
    /// To a chain.
    Goto(String),
    /// Another number (queue, stolen).
    Other(i32),
}

/// One rule that matched a packet, or the policy at the end of a chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// The packet: the same at all its hooks.
    pub id: u32,
    /// The name of the table, of whatever family.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// The rule's handle; `None` where it is the policy, or the end of a chain that was jumped to.
    pub rule: Option<u64>,
    /// What was said.
    pub verdict: Verdict,
    /// The packet as it came to the hook: only with the first event of a hook.
    pub ends: Option<Ends>,
    /// Index of the interface that it came in by.
    pub iif: Option<u32>,
    /// Index of the interface that it leaves by.
    pub oif: Option<u32>,
}

/// The events in a datagram from the kernel; other messages are passed over.
///
/// # Errors
/// Bytes that are no messages.
pub fn read(bytes: &[u8]) -> Result<Vec<Event>, Error> {
    let mut events = Vec::new();
    for frame in frames(bytes) {
        let frame = frame?;
        if frame.message_type() == NFT_MSG_TRACE {
            events.push(event(frame.payload().get(4..).unwrap_or_default())?);
        }
    }
    Ok(events)
}

fn event(body: &[u8]) -> Result<Event, Error> {
    let number = |kind| find(body, kind)?.map(u32_be).transpose();
    let name = |kind| Ok::<_, Error>(find(body, kind)?.map(name).unwrap_or_default());
    let kind = number(NFTA_TRACE_TYPE)?.unwrap_or_default();
    let verdict = match (kind, find(body, NFTA_TRACE_VERDICT)?) {
        (NFT_TRACETYPE_POLICY, _) if number(NFTA_TRACE_POLICY)? == Some(0) => Verdict::Drop,
        (NFT_TRACETYPE_POLICY, _) => Verdict::Accept,
        (_, Some(nested)) => verdict(nested)?,
        (_, None) => Verdict::Continue,
    };
    let rule = find(body, NFTA_TRACE_RULE_HANDLE)?.filter(|_| kind == NFT_TRACETYPE_RULE);
    let network = find(body, NFTA_TRACE_NETWORK_HEADER)?;
    Ok(Event {
        id: number(NFTA_TRACE_ID)?.unwrap_or_default(),
        table: name(NFTA_TRACE_TABLE)?,
        chain: name(NFTA_TRACE_CHAIN)?,
        rule: rule.and_then(|handle| handle.try_into().ok()).map(u64::from_be_bytes),
        verdict,
        ends: network.zip(find(body, NFTA_TRACE_TRANSPORT_HEADER)?).and_then(|(n, t)| Ends::read(n, t)),
        iif: number(NFTA_TRACE_IIF)?,
        oif: number(NFTA_TRACE_OIF)?,
    })
}

/// The kernel takes any bytes for a name.
fn name(bytes: &[u8]) -> String {
    tame(&text(bytes), LONGEST_NAME)
}

fn verdict(nested: &[u8]) -> Result<Verdict, Error> {
    let code = find(nested, NFTA_VERDICT_CODE)?.map(u32_be).transpose()?.unwrap_or_default().cast_signed();
    let chain = || Ok::<_, Error>(find(nested, NFTA_VERDICT_CHAIN)?.map(name).unwrap_or_default());
    Ok(match code {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        other => Verdict::Other(other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::nftables::netlink::attribute::Writer;

    fn message(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        let message = writer.message(NFT_MSG_TRACE, 0, 0, 1, 0);
        writer.value(NFTA_TRACE_ID, &7u32.to_be_bytes());
        writer.text(NFTA_TRACE_TABLE, "kubeferry");
        writer.text(NFTA_TRACE_CHAIN, "services4");
        write(&mut writer);
        writer.end_message(message);
        writer.into_bytes()
    }

    #[test]
    fn a_rule_and_a_policy_are_read() {
        let mut bytes = message(|writer| {
            writer.value(NFTA_TRACE_TYPE, &NFT_TRACETYPE_RULE.to_be_bytes());
            writer.value(NFTA_TRACE_RULE_HANDLE, &42u64.to_be_bytes());
            let nest = writer.nest(NFTA_TRACE_VERDICT);
            writer.value(NFTA_VERDICT_CODE, &(-4i32).to_be_bytes());
            writer.text(NFTA_VERDICT_CHAIN, "refuse");
            writer.end(nest);
        });
        bytes.extend(message(|writer| {
            writer.value(NFTA_TRACE_TYPE, &NFT_TRACETYPE_POLICY.to_be_bytes());
            writer.value(NFTA_TRACE_POLICY, &0u32.to_be_bytes());
        }));
        let events = read(&bytes).unwrap();
        assert_eq!((events[0].id, events[0].rule, events[0].chain.as_str()), (7, Some(42), "services4"));
        assert_eq!(events[0].verdict, Verdict::Goto("refuse".to_owned()));
        assert_eq!((events[1].rule, &events[1].verdict), (None, &Verdict::Drop));
    }

    #[test]
    fn cut_bytes_are_an_error_and_other_messages_are_passed_over() {
        let bytes = message(|_| {});
        assert!((1..bytes.len()).all(|end| read(&bytes[..end]).is_err()));
        let mut other = bytes.clone();
        other[4..6].copy_from_slice(&(10u16 << 8 | 15).to_ne_bytes());
        assert_eq!(read(&other).unwrap(), []);
    }
}
