//! Transactions and the rows of a map.

use std::{collections::HashSet, time::Duration};

use super::attribute::{attributes, find, text, value};
use super::batch::{
    Batch, GROUP, NFPROTO_INET, NFT_MSG_DELSETELEM, NFTA_SET_ELEM_LIST_ELEMENTS, NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE, NFTABLES,
};
use super::element::{
    Element, NFTA_LIST_ELEM, NFTA_SET_ELEM_EXPIRATION, NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_KEY_END,
    packets,
};
use super::error::{CommitError, Error, Refused, RefusedPart};
use super::kernel::{Dump, NetfilterSocket};
use super::op::{Op, Ops};

const NFT_MSG_GETSETELEM: u16 = NFTABLES | 13;
/// How often a map is read before giving up on a whole list, with pauses of 1, 2, 4… ms between.
const ATTEMPTS: usize = 9;

/// A connection to nf_tables of one network namespace: that of the thread which opened it, whatever thread uses it
/// later. All calls block for as long as the kernel works, so keep them off an async executor's threads. After an error
/// that is not a refusal, open another.
#[derive(Debug)]
pub struct Connection {
    pub(super) socket: NetfilterSocket,
}

impl Connection {
    /// Opens a connection in the caller's network namespace.
    ///
    /// # Errors
    /// A kernel without netfilter's netlink, or a sandbox that forbids the socket. CAP_NET_ADMIN is not asked for here.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: NetfilterSocket::open()? })
    }

    /// Applies `ops` to maps of `table` (family inet) in this order and in one transaction: all or nothing. Deleting a
    /// key and adding it again replaces a row without a moment in between.
    ///
    /// # Errors
    /// [`CommitError::Refused`] where the kernel says no (nothing has changed), with the operations among which the bad
    /// one is: where the kernel does not point at it, the transaction is tried again with a message for each row, to
    /// find it. [`CommitError::Netlink`] where nobody knows.
    pub fn commit(&self, table: &str, ops: &[Op<'_>]) -> Result<(), CommitError> {
        self.commit_pushed(table, ops.len(), &|push| ops.iter().for_each(|op| push(*op))).map(drop)
    }

    /// As [`Connection::commit`], for operations that need not all be in memory at once: `ops` pushes them in order, at
    /// most `most` of them, and the same ones whenever it is called. Gives the rows that were taken ([`Op::Take`]): one that a
    /// full buffer has lost is not there, so do not take more than some 2,000.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn commit_pushed(&self, table: &str, most: usize, ops: &Ops<'_>) -> Result<Vec<Taken>, CommitError> {
        if most == 0 {
            return Ok(Vec::new());
        }
        match self.transact(table, most, ops, GROUP) {
            Err(CommitError::Refused(Refused { ops: range, part: RefusedPart::Map(_), .. })) if range.len() > 1 => {
                self.transact(table, most, ops, 0)
            }
            result => result,
        }
    }

    fn transact(&self, table: &str, most: usize, ops: &Ops<'_>, group: usize) -> Result<Vec<Taken>, CommitError> {
        // At most a message for each operation, and the two around them.
        let sequence = self.socket.number(most + 2);
        let batch = Batch::new(table, ops, sequence, group);
        self.socket.send(&batch.bytes).map_err(|error| match error {
            Error::Socket { ref source, .. } => match source.raw_os_error() {
                // Nothing was sent.
                Some(errno @ (libc::EPERM | libc::EMSGSIZE | libc::ENOBUFS | libc::ENOMEM)) => {
                    batch.refused(table, 0, errno, None).into()
                }
                _ => CommitError::Netlink(error),
            },
            error => error.into(),
        })?;
        let mut acknowledged = false;
        let mut taken = Vec::new();
        let answers = self.socket.answers_and(&mut |kind, body| match kind {
            NFT_MSG_DELSETELEM => read_taken(body, &mut taken),
            _ => Ok(()),
        })?;
        for answer in answers {
            let message = answer.sequence.wrapping_sub(sequence) as usize;
            if message > batch.len() + 1 {
                continue;
            }
            if answer.errno != 0 {
                return Err(batch.refused(table, message, answer.errno, answer.offset).into());
            }
            acknowledged |= message == batch.len();
        }
        if acknowledged { Ok(taken) } else { Err(Error::Unanswered { bytes: batch.bytes.len() }.into()) }
    }

    /// Deletes a table of family inet with everything in it; false where there is none.
    ///
    /// # Errors
    /// As [`Connection::commit`].
    pub fn delete_table(&self, table: &str) -> Result<bool, CommitError> {
        match self.commit(table, &[Op::DeleteTable]) {
            Ok(()) => Ok(true),
            Err(CommitError::Refused(refused)) if refused.errno == libc::ENOENT => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives every row of a map or set of `table` (family inet) to `each`, in the kernel's order. Nothing is given
    /// before the whole map was read. Rows that expire (those that packets add) may lack or come twice where packets
    /// change the map meanwhile.
    ///
    /// # Errors
    /// [`Error::is_not_found`] where there is no such table or map; [`Error::Interrupted`] where the map never stands
    /// still for a whole list.
    pub fn dump(&self, table: &str, map: &str, each: &mut dyn FnMut(Element)) -> Result<(), Error> {
        self.dump_raw(table, map, &mut |bytes| {
            each(Element::read(bytes)?);
            Ok(())
        })
    }

    /// As [`Connection::dump`], with the packets that each row has counted; those without a counter are left out.
    ///
    /// # Errors
    /// As [`Connection::dump`].
    pub fn counters(&self, table: &str, map: &str, each: &mut dyn FnMut(Element, u64)) -> Result<(), Error> {
        self.dump_raw(table, map, &mut |bytes| {
            if let Some(packets) = packets(bytes)? {
                each(Element::read(bytes)?, packets);
            }
            Ok(())
        })
    }

    /// As [`Connection::dump`], for the bytes of each row.
    pub(super) fn dump_raw(
        &self,
        table: &str,
        map: &str,
        each: &mut dyn FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let what = || format!("map {map} of table inet {table}");
        for attempt in 0..ATTEMPTS {
            let dump = self.socket.dump(&what(), NFT_MSG_GETSETELEM, NFPROTO_INET, |writer| {
                writer.text(NFTA_SET_ELEM_LIST_TABLE, table);
                writer.text(NFTA_SET_ELEM_LIST_SET, map);
            })?;
            self.complete(&dump, what)?;
            if is_whole(&dump)? {
                return for_each_element(&dump, each);
            }
            std::thread::sleep(Duration::from_millis(1 << attempt));
        }
        Err(Error::Interrupted { what: what(), attempts: ATTEMPTS })
    }
}

/// A row that a transaction has taken out of its map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The map.
    pub map: String,
    /// The row.
    pub element: Element,
    /// The packets that it had counted; 0 where it had no counter.
    pub packets: u64,
}

/// What the kernel says of rows that a transaction has taken.
pub(super) fn read_taken(body: &[u8], taken: &mut Vec<Taken>) -> Result<(), Error> {
    let map = find(body, NFTA_SET_ELEM_LIST_SET)?.map(text).unwrap_or_default();
    let Some(list) = find(body, NFTA_SET_ELEM_LIST_ELEMENTS)? else { return Ok(()) };
    for attribute in attributes(list) {
        let attribute = attribute?;
        if attribute.kind() == NFTA_LIST_ELEM {
            let bytes = value(&attribute);
            let (element, packets) = (Element::read(bytes)?, packets(bytes)?.unwrap_or_default());
            taken.push(Taken { map: map.clone(), element, packets });
        }
    }
    Ok(())
}

/// Whether a dump holds every row once.
///
/// The kernel keeps its place in a dump as a number of rows passed. A hash map that has just grown is rearranged by a
/// worker in the background, and a dump that it overtakes passes over some rows and gives as many others twice (seen on
/// 6.18 after a commit of 110,000 rows); the generation does not change by that. So a row that comes twice means that
/// another lacks.
pub(super) fn is_whole(dump: &Dump) -> Result<bool, Error> {
    let mut seen = HashSet::new();
    let mut whole = true;
    for_each_element(dump, |bytes| {
        let mut identity: [&[u8]; 3] = [&[]; 3];
        let mut expires = false;
        for attribute in attributes(bytes) {
            let attribute = attribute?;
            match attribute.kind() {
                NFTA_SET_ELEM_KEY => identity[0] = value(&attribute),
                NFTA_SET_ELEM_KEY_END => identity[1] = value(&attribute),
                NFTA_SET_ELEM_FLAGS => identity[2] = value(&attribute),
                NFTA_SET_ELEM_EXPIRATION => expires = true,
                _ => {}
            }
        }
        whole &= expires || seen.insert(identity);
        Ok(())
    })?;
    Ok(whole)
}

/// Gives the bytes of each element of a dump to `each`.
pub(super) fn for_each_element<'a>(
    dump: &'a Dump,
    mut each: impl FnMut(&'a [u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    for message in dump.messages() {
        let (_, body) = message?;
        let Some(list) = find(body, NFTA_SET_ELEM_LIST_ELEMENTS)? else { continue };
        for attribute in attributes(list) {
            let attribute = attribute?;
            if attribute.kind() == NFTA_LIST_ELEM {
                each(value(&attribute))?;
            }
        }
    }
    Ok(())
}
