//! The tables of kube-proxy's nftables mode: one of each family, gone at once with everything in them.

use super::netlink::{
    ATTEMPTS, Answer, Change, DELRULE, DELTABLE, FAMILIES, GETTABLE, RULE_CHAIN, TABLE, generation, transact,
};
use super::{Outcome, names};
use crate::backend::nftables::netlink::Error;
use crate::backend::nftables::netlink::attribute::Writer;
use crate::backend::nftables::netlink::kernel::NetfilterSocket;

/// Removes them.
///
/// # Errors
/// The kernel refuses.
pub(super) fn remove() -> Result<Outcome, Error> {
    let mut outcome = Outcome::default();
    let socket = NetfilterSocket::open()?;
    for (family, ip) in FAMILIES {
        // First, and by itself: in the moment in which all goes, a packet may be translated no more and be refused still.
        flush(&socket, family, names::TABLE, names::CLUSTER_IPS_CHECK)?;
        if delete(&socket, family, names::TABLE)? {
            outcome.removed.push(format!("table {ip} {}", names::TABLE));
        }
    }
    Ok(outcome)
}

/// Whether a table is there.
pub(super) fn is_there(socket: &NetfilterSocket, family: u8, table: &str) -> Result<bool, Error> {
    match socket.get(&format!("table {table}"), GETTABLE, family, |writer| writer.text(TABLE, table)) {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Deletes the rules of a chain, if it is there.
fn flush(socket: &NetfilterSocket, family: u8, table: &str, chain: &str) -> Result<(), Error> {
    let what = || format!("rules of chain {chain}");
    let rules = |writer: &mut Writer| {
        writer.text(TABLE, table);
        writer.text(RULE_CHAIN, chain);
    };
    for _ in 0..ATTEMPTS {
        let generation = generation(socket)?;
        match transact(socket, generation, &[Change::new(DELRULE, family, rules)])? {
            Answer::Done | Answer::Refused(libc::ENOENT) => return Ok(()),
            Answer::Overtaken => {}
            Answer::Refused(errno) => return Err(Error::Refused { action: "delete", what: what(), errno }),
        }
    }
    Err(Error::Interrupted { what: what(), attempts: ATTEMPTS })
}

/// Deletes a table; false: there is none.
pub(super) fn delete(socket: &NetfilterSocket, family: u8, table: &str) -> Result<bool, Error> {
    let what = || format!("table {table}");
    for _ in 0..ATTEMPTS {
        let generation = generation(socket)?;
        if !is_there(socket, family, table)? {
            return Ok(false);
        }
        match transact(socket, generation, &[Change::new(DELTABLE, family, |writer| writer.text(TABLE, table))])? {
            Answer::Done => return Ok(true),
            Answer::Overtaken => {}
            Answer::Refused(errno) => return Err(Error::Refused { action: "delete", what: what(), errno }),
        }
    }
    Err(Error::Interrupted { what: what(), attempts: ATTEMPTS })
}
