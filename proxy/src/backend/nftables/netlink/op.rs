//! One operation of a transaction, and those that are messages of their own: tables, chains and rules.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST};

use super::super::expression::Expression;
use super::attribute::Writer;
use super::batch::{NFPROTO_INET, NFTABLES};
use super::element::Element;

// enum nf_tables_msg_types, nft_table_attributes, nft_chain_attributes, nft_rule_attributes;
// include/uapi/linux/netfilter/nf_tables.h
const NFT_MSG_NEWTABLE: u16 = NFTABLES;
const NFT_MSG_NEWCHAIN: u16 = NFTABLES | 3;
const NFT_MSG_DELCHAIN: u16 = NFTABLES | 5;
const NFT_MSG_NEWRULE: u16 = NFTABLES | 6;
const NFT_MSG_DELRULE: u16 = NFTABLES | 8;
const NFT_MSG_DELTABLE: u16 = NFTABLES | 2;
const NFTA_TABLE: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_TABLE_F_OWNER: u32 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NF_INET_PRE_ROUTING: u32 = 0;
const NF_IP_PRI_NAT_DST: i32 = -100;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;

/// One change of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op<'a> {
    /// Add a row; the same row again is no error, the same key with other data is (`EEXIST`).
    Add {
        /// The map or set.
        map: &'a str,
        /// The row.
        element: &'a Element,
    },
    /// Delete a row by its key; data is not looked at. A row that is not there is an error (`ENOENT`).
    Delete {
        /// The map or set.
        map: &'a str,
        /// The row.
        element: &'a Element,
    },
    /// The same, and the kernel says what the row was, with what it counted until then.
    Take {
        /// The map or set.
        map: &'a str,
        /// The row.
        element: &'a Element,
    },
    /// Add the table.
    AddTable,
    /// Add a table that is the socket's own: only it can change the table, and the table goes when the socket is closed, be it by
    /// the process's end (Linux 5.12).
    AddOwnTable,
    /// Add an empty chain of type filter at a hook.
    AddFilterChain {
        /// Its name.
        chain: &'a str,
        /// `NF_INET_…`.
        hook: u32,
        /// Its place among the chains of the hook.
        priority: i32,
    },
    /// Add an empty chain of type nat, at prerouting: connection tracking translates as long as there is one.
    AddNatChain {
        /// Its name.
        chain: &'a str,
    },
    /// Add an empty chain. One of this name that is there is an error (`EEXIST`): it may have rules.
    AddChain {
        /// Its name.
        chain: &'a str,
    },
    /// Append a rule to a chain.
    AddRule {
        /// The chain.
        chain: &'a str,
        /// The rule.
        expressions: &'a [Expression],
    },
    /// Delete the rules of a chain.
    FlushChain {
        /// The chain.
        chain: &'a str,
    },
    /// Delete the table with everything in it.
    DeleteTable,
    /// Delete a chain with its rules. One that a row or rule still goes to is an error (`EBUSY`).
    DeleteChain {
        /// Its name.
        chain: &'a str,
    },
}

/// What is done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Add,
    Delete,
    Take,
}

impl<'a> Op<'a> {
    /// What the operation does to a row, the map and the row; `None` for an operation on chains.
    pub(super) fn row(&self) -> Option<(Way, &'a str, &'a Element)> {
        match *self {
            Op::Add { map, element } => Some((Way::Add, map, element)),
            Op::Delete { map, element } => Some((Way::Delete, map, element)),
            Op::Take { map, element } => Some((Way::Take, map, element)),
            _ => None,
        }
    }

    pub(super) fn write_chain(&self, writer: &mut Writer, table: &str, number: u32) {
        let (kind, flags) = match self {
            Op::AddTable | Op::AddOwnTable => (NFT_MSG_NEWTABLE, NLM_F_CREATE),
            Op::AddChain { .. } => (NFT_MSG_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL),
            Op::AddNatChain { .. } | Op::AddFilterChain { .. } => (NFT_MSG_NEWCHAIN, NLM_F_CREATE),
            Op::AddRule { .. } => (NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND),
            Op::FlushChain { .. } => (NFT_MSG_DELRULE, 0),
            Op::DeleteTable => (NFT_MSG_DELTABLE, 0),
            _ => (NFT_MSG_DELCHAIN, 0),
        };
        let message = writer.message(kind, NLM_F_REQUEST | flags, number, NFPROTO_INET, 0);
        writer.text(NFTA_TABLE, table);
        match *self {
            Op::AddChain { chain } | Op::DeleteChain { chain } => writer.text(NFTA_CHAIN_NAME, chain),
            Op::AddNatChain { chain } => base_chain(writer, chain, NF_INET_PRE_ROUTING, NF_IP_PRI_NAT_DST, "nat"),
            Op::AddFilterChain { chain, hook, priority } => base_chain(writer, chain, hook, priority, "filter"),
            Op::AddOwnTable => writer.value(NFTA_TABLE_FLAGS, &NFT_TABLE_F_OWNER.to_be_bytes()),
            Op::AddRule { chain, expressions } => {
                writer.text(NFTA_RULE_CHAIN, chain);
                let list = writer.nest(NFTA_RULE_EXPRESSIONS);
                for expression in expressions {
                    expression.write(writer);
                }
                writer.end(list);
            }
            Op::FlushChain { chain } => writer.text(NFTA_RULE_CHAIN, chain),
            Op::Add { .. } | Op::Delete { .. } | Op::Take { .. } | Op::AddTable | Op::DeleteTable => {}
        }
        writer.end_message(message);
    }

    pub(super) fn about(&self) -> About {
        match *self {
            Op::AddChain { chain }
            | Op::AddNatChain { chain }
            | Op::AddFilterChain { chain, .. }
            | Op::AddRule { chain, .. }
            | Op::FlushChain { chain }
            | Op::DeleteChain { chain } => About::Chain(chain.to_owned()),
            Op::Add { map, .. } => About::Rows { way: Way::Add, map: map.to_owned() },
            Op::Delete { map, .. } => About::Rows { way: Way::Delete, map: map.to_owned() },
            Op::Take { map, .. } => About::Rows { way: Way::Take, map: map.to_owned() },
            Op::AddTable | Op::AddOwnTable | Op::DeleteTable => About::Table,
        }
    }
}

fn base_chain(writer: &mut Writer, chain: &str, hook: u32, priority: i32, kind: &str) {
    writer.text(NFTA_CHAIN_NAME, chain);
    let nest = writer.nest(NFTA_CHAIN_HOOK);
    writer.value(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
    writer.value(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
    writer.end(nest);
    writer.text(NFTA_CHAIN_TYPE, kind);
}

/// Operations that need not all be in memory at once: pushes them in order, the same ones whenever it is called.
pub type Ops<'a> = dyn Fn(&mut dyn FnMut(Op<'_>)) + 'a;

/// What a message is about, for telling what was refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum About {
    Rows { way: Way, map: String },
    Chain(String),
    Table,
}
