//! How the sets and maps of a table are declared. For noticing that somebody made one anew in another way.

use std::collections::BTreeMap;

use super::attribute::{attributes, find, text, u32_be, value};
use super::batch::{NFPROTO_INET, NFTABLES};
use super::connection::Connection;
use super::error::Error;
use super::ruleset::Fnv;

// enum nft_set_attributes, nft_set_flags; include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_GETSET: u16 = NFTABLES | 10;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFT_SET_ANONYMOUS: u32 = 1;
/// Flags, key type and length, data type and length, policy, description (size, parts of the key), timeout, interval of
/// the collection, user data (`typeof`), type of objects, expressions of every element. Not the handle, and not what
/// changes with the elements.
const DECLARATION: [u16; 13] = [3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18];

impl Connection {
    /// A digest (FNV-1a) of the declaration of each set and map of a table of family inet, by name; for those within a
    /// rule (`{ tcp, udp }`), of their elements too. As for [`Chain`](super::Chain), compare it with one from the same
    /// kernel. Empty where there is no such table.
    ///
    /// # Errors
    /// The kernel refuses, the socket fails, or the sets change under every attempt to read them.
    pub fn sets(&self, table: &str) -> Result<BTreeMap<String, u64>, Error> {
        let what = || format!("sets of table inet {table}");
        let dump = self.socket.dump(&what(), NFT_MSG_GETSET, NFPROTO_INET, |writer| writer.text(NFTA_SET_TABLE, table));
        let dump = match dump {
            Err(error) if error.is_not_found() => return Ok(BTreeMap::new()),
            dump => dump?,
        };
        self.complete(&dump, what)?;
        let mut found = BTreeMap::new();
        for message in dump.messages() {
            let (_, body) = message?;
            let (name, flags, mut digest) = read_set(body)?;
            if flags & NFT_SET_ANONYMOUS != 0 {
                // They stay as they are while their rule is there, but another rule's may come to the same name.
                let mut elements = Vec::new();
                self.dump_raw(table, &name, &mut |element| {
                    elements.push(element.to_vec());
                    Ok(())
                })?;
                elements.sort();
                elements.iter().for_each(|element| digest.add(element));
            }
            found.insert(name, digest.0);
        }
        Ok(found)
    }
}

/// A set as the kernel tells of it: name, flags, and the digest of its declaration.
pub(super) fn read_set(body: &[u8]) -> Result<(String, u32, Fnv), Error> {
    let name = find(body, NFTA_SET_NAME)?.map(text).unwrap_or_default();
    let mut digest = Fnv::default();
    for attribute in attributes(body) {
        let attribute = attribute?;
        if DECLARATION.contains(&attribute.kind()) {
            digest.add(&attribute.kind().to_be_bytes());
            digest.add(value(&attribute));
        }
    }
    let flags = find(body, NFTA_SET_FLAGS)?.map(u32_be).transpose()?.unwrap_or_default();
    Ok((name, flags, digest))
}
