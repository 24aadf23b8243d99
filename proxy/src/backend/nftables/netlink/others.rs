//! What a table may have beside chains, rules, sets and maps. Ours has none of it, so whatever there is, somebody added.

use std::collections::BTreeSet;

use super::attribute::{find, text};
use super::batch::{NFPROTO_INET, NFTABLES};
use super::connection::Connection;
use super::error::Error;

// enum nf_tables_msg_types, nft_object_attributes, nft_flowtable_attributes; include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_GETOBJ: u16 = NFTABLES | 19;
const NFT_MSG_GETFLOWTABLE: u16 = NFTABLES | 23;
/// Of objects as of flowtables.
const TABLE: u16 = 1;
const NAME: u16 = 2;

impl Connection {
    /// The names of the flowtables and of the named objects (counters, quotas, limits, helpers…) of a table of family inet, each
    /// behind what it is. Empty where there is no such table.
    ///
    /// # Errors
    /// The kernel refuses, the socket fails, or they change under every attempt to read them.
    pub fn others(&self, table: &str) -> Result<BTreeSet<String>, Error> {
        let mut found = BTreeSet::new();
        for (kind, question) in [("object", NFT_MSG_GETOBJ), ("flowtable", NFT_MSG_GETFLOWTABLE)] {
            let what = || format!("{kind}s of table inet {table}");
            let asked = self.socket.dump(&what(), question, NFPROTO_INET, |writer| writer.text(TABLE, table));
            let dump = match asked {
                Err(error) if error.is_not_found() => continue,
                dump => dump?,
            };
            self.complete(&dump, what)?;
            for message in dump.messages() {
                let (_, body) = message?;
                if let Some(name) = read_other(body, table)? {
                    found.insert(format!("{kind} {name}"));
                }
            }
        }
        Ok(found)
    }
}

/// The name of an object or flowtable as the kernel tells of it; `None` where it is in another table.
pub(super) fn read_other(body: &[u8], table: &str) -> Result<Option<String>, Error> {
    let is_here = find(body, TABLE)?.map(text).as_deref() == Some(table);
    Ok(if is_here { find(body, NAME)?.map(text) } else { None })
}
