//! Whether a table is there, its comment, its chains. For noticing that somebody changed it.

use std::collections::BTreeMap;

use super::attribute::{find, text, u32_be};
use super::batch::{NFPROTO_INET, NFTABLES};
use super::connection::Connection;
use super::error::Error;
use super::kernel::Dump;

// enum nf_tables_msg_types and the attributes of tables, chains, rules, expressions; include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_GETTABLE: u16 = NFTABLES | 1;
const NFT_MSG_GETCHAIN: u16 = NFTABLES | 4;
const NFT_MSG_GETGEN: u16 = NFTABLES | 16;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_HANDLE: u16 = 4;
const NFTA_TABLE_USERDATA: u16 = 6;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_CHAIN_FLAGS: u16 = 10;
const NFTA_GEN_ID: u16 = 1;
const NFTNL_UDATA_TABLE_COMMENT: u8 = 0;

/// With more chains than this the rules of each are asked for on their own. In one list of all rules the kernel begins at the first
/// one again for every 32 KiB that it fills: that grows with the square of their number (140,000 chains: half a minute).
const LISTED_AT_ONCE: usize = 10_000;

/// A table that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The kernel's number of the table: another one after it was deleted and made again.
    pub handle: u64,
    /// `NFT_TABLE_F_…`: 1 is dormant, all its chains are off.
    pub flags: u32,
    /// `comment "…"` of the table.
    pub comment: Option<String>,
}

/// What a chain is, for comparing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chain {
    /// How many rules.
    pub rules: usize,
    /// Whether it hangs on a hook, so that packets come to it without a rule or row that says so.
    pub base: bool,
    /// A digest (FNV-1a) of its hook, priority and policy and of its rules' expressions in order, without handles, comments and
    /// counters. Compare it with one taken from the same kernel after loading: the bytes of a rule may differ between
    /// kernels and between versions of `nft`.
    pub digest: u64,
}

impl Connection {
    /// The generation of the rules of this network namespace: changes with every transaction of anybody, and not with
    /// elements that packets add.
    ///
    /// # Errors
    /// The kernel refuses or the socket fails.
    pub fn generation(&self) -> Result<u32, Error> {
        let body = self.socket.get("the generation", NFT_MSG_GETGEN, 0, |_| {})?;
        let generation = find(&body, NFTA_GEN_ID)?;
        u32_be(generation.ok_or_else(|| Error::Malformed("a generation without a number".to_owned()))?)
    }

    /// The table of family inet of this name, if it exists.
    ///
    /// # Errors
    /// The kernel refuses or the socket fails.
    pub fn table(&self, name: &str) -> Result<Option<Table>, Error> {
        let what = format!("table inet {name}");
        let body = match self.socket.get(&what, NFT_MSG_GETTABLE, NFPROTO_INET, |w| w.text(NFTA_TABLE_NAME, name)) {
            Ok(body) => body,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        read_table(&body).map(Some)
    }

    /// The chains of a table of family inet; empty where there is no such table.
    ///
    /// # Errors
    /// The kernel refuses, the socket fails, or the rules change under every attempt to read them.
    pub fn chains(&self, table: &str) -> Result<BTreeMap<String, Chain>, Error> {
        let what = || format!("chains of table inet {table}");
        let chains = self.socket.dump(&what(), NFT_MSG_GETCHAIN, NFPROTO_INET, |_| {})?;
        self.complete(&chains, what)?;
        let mut found: BTreeMap<String, (Chain, Fnv)> = BTreeMap::new();
        for message in chains.messages() {
            let (_, body) = message?;
            // The kernel lists the chains of all tables.
            if find(body, NFTA_CHAIN_TABLE)?.map(text).as_deref() != Some(table) {
                continue;
            }
            if let Some(name) = find(body, NFTA_CHAIN_NAME)? {
                found.insert(text(name), without_rules(body)?);
            }
        }
        if found.len() > LISTED_AT_ONCE {
            for (name, (chain, digest)) in &mut found {
                self.rules_of(table, name, chain, digest)?;
            }
        } else {
            self.rules(table, None, &mut |rule| {
                // A chain that came between the two questions counts as changed.
                if let Some((chain, digest)) = found.get_mut(&rule.chain) {
                    chain.rules += 1;
                    rule.expressions_without_state(|bytes| digest.add(bytes))?;
                }
                Ok(())
            })?;
        }
        Ok(found.into_iter().map(|(name, (chain, digest))| (name, Chain { digest: digest.0, ..chain })).collect())
    }

    /// One chain of a table of family inet, if it exists.
    ///
    /// # Errors
    /// As [`Connection::chains`].
    pub fn chain(&self, table: &str, name: &str) -> Result<Option<Chain>, Error> {
        let asked =
            self.socket.get(&format!("chain {name} of table inet {table}"), NFT_MSG_GETCHAIN, NFPROTO_INET, |w| {
                w.text(NFTA_CHAIN_TABLE, table);
                w.text(NFTA_CHAIN_NAME, name);
            });
        let (mut chain, mut digest) = match asked {
            Ok(body) => without_rules(&body)?,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        self.rules_of(table, name, &mut chain, &mut digest)?;
        Ok(Some(Chain { digest: digest.0, ..chain }))
    }

    /// Adds the rules of one chain; none where it has gone meanwhile.
    fn rules_of(&self, table: &str, name: &str, chain: &mut Chain, digest: &mut Fnv) -> Result<(), Error> {
        let rules = self.rules(table, Some(name), &mut |rule| {
            if rule.chain == name {
                chain.rules += 1;
                rule.expressions_without_state(|bytes| digest.add(bytes))?;
            }
            Ok(())
        });
        rules.or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
    }

    pub(super) fn complete(&self, dump: &Dump, what: impl Fn() -> String) -> Result<(), Error> {
        if dump.complete { Ok(()) } else { Err(Error::Interrupted { what: what(), attempts: dump.attempts }) }
    }
}

/// A table as the kernel tells of it.
pub(super) fn read_table(body: &[u8]) -> Result<Table, Error> {
    let handle = find(body, NFTA_TABLE_HANDLE)?.and_then(|value| value.try_into().ok());
    let comment = find(body, NFTA_TABLE_USERDATA)?.and_then(comment);
    let flags = find(body, NFTA_TABLE_FLAGS)?.map(u32_be).transpose()?.unwrap_or_default();
    Ok(Table { handle: handle.map_or(0, u64::from_be_bytes), comment, flags })
}

/// A chain as the kernel tells of it, and the digest that its rules are to be added to.
pub(super) fn without_rules(body: &[u8]) -> Result<(Chain, Fnv), Error> {
    let mut digest = Fnv::default();
    for attribute in [NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE, NFTA_CHAIN_FLAGS] {
        digest.add(find(body, attribute)?.unwrap_or_default());
    }
    Ok((Chain { rules: 0, base: find(body, NFTA_CHAIN_HOOK)?.is_some(), digest: 0 }, digest))
}

/// The comment among a table's user data: entries of kind (1 byte), length (1 byte), value.
fn comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let (value, behind) = rest.split_at_checked(usize::from(*length))?;
        if *kind == NFTNL_UDATA_TABLE_COMMENT {
            return Some(text(value));
        }
        data = behind;
    }
    None
}

/// FNV-1a, 64 bits: the same for the same bytes in every build.
#[derive(Debug)]
pub(super) struct Fnv(pub u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    /// Adds bytes, with their length, so that neighbours cannot run together.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in (bytes.len() as u64).to_be_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_found_among_user_data() {
        assert_eq!(comment(b"\x05\x01x\x00\x03hi\x00").as_deref(), Some("hi"));
        assert_eq!(comment(b""), None);
        assert_eq!(comment(b"\x00\x09hi"), None, "cut short");
    }

    #[test]
    fn a_digest_tells_neighbours_apart() {
        let digest = |parts: &[&[u8]]| {
            let mut fnv = Fnv::default();
            parts.iter().for_each(|part| fnv.add(part));
            fnv.0
        };
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
        assert_eq!(digest(&[b"ab", b"c"]), digest(&[b"ab", b"c"]));
    }
}
