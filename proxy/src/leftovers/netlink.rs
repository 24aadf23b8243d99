//! Transactions of nf_tables in any family, on a state that nobody has changed since it was read.

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};

use crate::backend::nftables::netlink::Error;
use crate::backend::nftables::netlink::attribute::{Writer, find, u32_be};
use crate::backend::nftables::netlink::kernel::NetfilterSocket;

// include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
const NFTABLES: u16 = 10 << 8;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_BATCH_GENID: u16 = 1;
const NFTA_GEN_ID: u16 = 1;
pub(super) const GETTABLE: u16 = NFTABLES | 1;
pub(super) const DELTABLE: u16 = NFTABLES | 2;
pub(super) const GETCHAIN: u16 = NFTABLES | 4;
pub(super) const DELCHAIN: u16 = NFTABLES | 5;
pub(super) const GETRULE: u16 = NFTABLES | 7;
pub(super) const DELRULE: u16 = NFTABLES | 8;
const GETGEN: u16 = NFTABLES | 16;
/// The name of a table, in every message; and what else these messages name.
pub(super) const TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const EXPRESSION_NAME: u16 = 1;
pub(super) const EXPRESSION_DATA: u16 = 2;
/// How often a transaction is begun anew because somebody else was faster.
pub(super) const ATTEMPTS: usize = 10;

/// NFPROTO_IPV4 and NFPROTO_IPV6, as `nft` calls them.
pub(super) const FAMILIES: [(u8, &str); 2] = [(2, "ip"), (10, "ip6")];

/// A message of a transaction: its kind, family, and attributes.
#[derive(Debug)]
pub(super) struct Change {
    kind: u16,
    family: u8,
    attributes: Vec<u8>,
}

impl Change {
    /// With the attributes that `write` writes.
    pub(super) fn new(kind: u16, family: u8, write: impl FnOnce(&mut Writer)) -> Self {
        let mut writer = Writer::default();
        write(&mut writer);
        Self { kind, family, attributes: writer.into_bytes() }
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Answer {
    /// It is in force.
    Done,
    /// Somebody changed rules since the generation: read again.
    Overtaken,
    /// The kernel refused, and nothing has changed.
    Refused(i32),
}

/// The number of the last transaction of anybody.
pub(super) fn generation(socket: &NetfilterSocket) -> Result<u32, Error> {
    let body = socket.get("the generation of the rules", GETGEN, 0, |_| {})?;
    u32_be(find(&body, NFTA_GEN_ID)?.ok_or_else(|| Error::Malformed("a generation without a number".to_owned()))?)
}

/// All of these changes or none, and none if the generation is another one by now.
pub(super) fn transact(socket: &NetfilterSocket, generation: u32, changes: &[Change]) -> Result<Answer, Error> {
    let sequence = socket.number(changes.len() + 2);
    let mut writer = Writer::default();
    let begin = writer.message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, sequence, 0, NFNL_SUBSYS_NFTABLES);
    writer.value(NFNL_BATCH_GENID, &generation.to_be_bytes());
    writer.end_message(begin);
    let mut number = sequence;
    for (at, change) in changes.iter().enumerate() {
        number = number.wrapping_add(1);
        let last = if at + 1 == changes.len() { NLM_F_ACK } else { 0 };
        let message = writer.message(change.kind, NLM_F_REQUEST | last, number, change.family, 0);
        writer.raw(&change.attributes);
        writer.end_message(message);
    }
    let acknowledged = number;
    let end = writer.message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, number.wrapping_add(1), 0, NFNL_SUBSYS_NFTABLES);
    writer.end_message(end);
    let bytes = writer.into_bytes();
    match socket.send(&bytes) {
        // Nothing was sent.
        Err(Error::Socket { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
            return Ok(Answer::Refused(libc::EPERM));
        }
        result => result?,
    }
    let mut done = false;
    for answer in socket.answers()? {
        if answer.sequence.wrapping_sub(sequence) as usize > changes.len() + 1 {
            continue;
        }
        match answer.errno {
            0 => done |= answer.sequence == acknowledged,
            libc::ERESTART => return Ok(Answer::Overtaken),
            errno => return Ok(Answer::Refused(errno)),
        }
    }
    if done { Ok(Answer::Done) } else { Err(Error::Unanswered { bytes: bytes.len() }) }
}
